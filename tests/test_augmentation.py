"""Augmentation is what it says, and a function of the generator handed in."""

import random

import numpy as np
import pytest
import soundfile
import torch

from processing_speechllm.audio import AudioError
from trainers.data.augmentation import (
    AugmentationSettings,
    add_noise,
    augment_samples,
    change_speed,
    mask_features,
    pink,
)

RATE = 16000
SINE = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
ALL = AugmentationSettings(
    speed_factors=(0.9, 1.0, 1.1), noise_probability=0.5, time_masks=2, time_mask_width=30, frequency_masks=2
)


def pitch(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))


def snr(clean: np.ndarray, noisy: np.ndarray) -> float:
    noise = noisy.astype(np.float64) - clean
    return 10 * np.log10(np.mean(np.square(clean, dtype=np.float64)) / np.mean(noise**2))


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_divides_the_length_and_multiplies_the_pitch(factor):
    faster = change_speed(SINE, RATE, factor)
    assert faster.dtype == np.float32
    assert len(faster) == pytest.approx(RATE / factor, abs=1)
    assert pitch(faster) == pytest.approx(440 * factor, abs=1.5)  # the width of a bin


@pytest.mark.parametrize("wanted", [-5.0, 0.0, 12.5, 40.0])
def test_noise_has_exactly_the_ratio_asked_for(wanted):
    noise = np.random.default_rng(0).standard_normal(RATE)
    assert snr(SINE, add_noise(SINE, noise, wanted)) == pytest.approx(wanted, abs=1e-3)  # float32 samples


def test_augmented_samples_have_a_ratio_in_the_range():
    settings = AugmentationSettings(noise_probability=1.0, noise_snr_range=(5.0, 15.0))
    found = [snr(SINE, augment_samples(SINE, RATE, random.Random(draw), settings)) for draw in range(30)]
    assert min(found) >= 4.999 and max(found) <= 15.001
    assert max(found) - min(found) > 5


def test_pink_noise_falls_by_three_decibels_an_octave():
    power = np.abs(np.fft.rfft(pink(np.random.default_rng(0).standard_normal(2**16)))) ** 2
    octaves = [10 * np.log10(power[2**n : 2 ** (n + 1)].mean()) for n in range(8, 15)]
    np.testing.assert_allclose(np.diff(octaves), -3.01, atol=0.7)  # the spread of few bins


def test_augmentation_is_a_function_of_the_generator_alone():
    def draw(seed):
        rng = random.Random(f"{seed}|0|7")
        samples = augment_samples(SINE, RATE, rng, ALL)
        return samples, mask_features(torch.arange(80.0 * 100).reshape(80, 100), rng, ALL)

    first = draw(3)
    np.random.seed(9), torch.manual_seed(9), random.seed(9)
    before = torch.random.get_rng_state()
    again = draw(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert len({draw(seed)[0].tobytes() for seed in range(8)}) > 4


def test_every_speed_is_drawn_and_noise_as_often_as_asked():
    settings = AugmentationSettings(speed_factors=(0.9, 1.0, 1.1))
    lengths = {len(augment_samples(SINE[:1600], RATE, random.Random(draw), settings)) for draw in range(30)}
    assert len(lengths) == 3
    settings = AugmentationSettings(noise_probability=0.25)
    noisy = [augment_samples(SINE, RATE, random.Random(draw), settings) is not SINE for draw in range(400)]
    assert 70 < sum(noisy) < 130


def test_default_settings_change_nothing():
    assert augment_samples(SINE, RATE, random.Random(0), AugmentationSettings()) is SINE
    features = torch.ones(8, 20)
    assert mask_features(features, random.Random(0), AugmentationSettings()) is features


def test_silence_gets_no_noise():
    silence = np.zeros(100, dtype=np.float32)
    settings = AugmentationSettings(noise_probability=1.0)
    assert not augment_samples(silence, RATE, random.Random(0), settings).any()


@pytest.mark.parametrize("rate, seconds", [(16000, 0.2), (8000, 3.0)], ids=["shorter", "longer, other rate"])
def test_recorded_noise_comes_from_the_folder_at_the_ratio(rate, seconds, tmp_path):
    (tmp_path / "deep").mkdir()
    hum = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(int(rate * seconds)) / rate)
    soundfile.write(tmp_path / "deep" / "hum.wav", hum, rate)
    settings = AugmentationSettings(noise_probability=1.0, noise_snr_range=(10.0, 10.0), noise_folder=str(tmp_path))
    noisy = augment_samples(SINE, RATE, random.Random(0), settings)
    assert snr(SINE, noisy) == pytest.approx(10.0, abs=1e-3)
    assert pitch(noisy - SINE) == pytest.approx(1000, abs=5)


def test_a_silent_stretch_of_a_recording_is_not_taken_for_noise(tmp_path):
    click = np.zeros(16000)
    click[12345] = 0.5
    soundfile.write(tmp_path / "click.wav", click, RATE)
    settings = AugmentationSettings(noise_probability=1.0, noise_snr_range=(10.0, 10.0), noise_folder=str(tmp_path))
    for draw in range(5):
        noisy = augment_samples(SINE[:50], RATE, random.Random(draw), settings)
        assert snr(SINE[:50], noisy) == pytest.approx(10.0, abs=1e-3)


@pytest.mark.filterwarnings("ignore:.*digital silence")
def test_a_noise_folder_that_cannot_be_used_is_named(tmp_path):
    settings = AugmentationSettings(noise_probability=1.0, noise_folder=str(tmp_path / "quiet"))
    (tmp_path / "quiet").mkdir()
    with pytest.raises(ValueError, match="quiet has no audio files"):
        augment_samples(SINE, RATE, random.Random(0), settings)
    soundfile.write(tmp_path / "quiet" / "nothing.wav", np.zeros(1000), RATE)
    with pytest.raises(AudioError, match="nothing.wav: is silent"):
        augment_samples(SINE, RATE, random.Random(0), settings)


def masked(features: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    return (features != result) & torch.isclose(result, features.mean())


def test_masks_are_bands_of_the_mean_that_keep_to_their_share():
    features = torch.rand(40, 200, generator=torch.Generator().manual_seed(0))
    settings = AugmentationSettings(
        time_masks=3, time_mask_width=100, frequency_masks=2, frequency_mask_width=27, max_masked_share=0.3
    )
    shares = []
    for draw in range(50):
        hidden = masked(features, mask_features(features, random.Random(draw), settings))
        bins, positions = hidden.all(dim=1), hidden.all(dim=0)
        assert torch.equal(hidden, bins[:, None] | positions[None])
        shares.append((bins.float().mean().item(), positions.float().mean().item()))
    assert np.max(shares, axis=0) == pytest.approx([0.3, 0.3], abs=0.1)
    assert np.max(shares) <= 0.3 + 1e-6


def test_masks_keep_to_their_width():
    features = torch.rand(40, 200, generator=torch.Generator().manual_seed(0))
    settings = AugmentationSettings(time_masks=1, time_mask_width=5)
    widths = {
        int(masked(features, mask_features(features, random.Random(draw), settings)).all(dim=0).sum())
        for draw in range(80)
    }
    assert widths == {0, 1, 2, 3, 4, 5}


def test_raw_waveforms_cannot_be_masked():
    with pytest.raises(ValueError, match=r"not shape \(16000,\).*Set time_masks and frequency_masks to 0"):
        mask_features(torch.zeros(16000), random.Random(0), ALL)


@pytest.mark.parametrize(
    "change",
    [
        {"speed_factors": ()},
        {"speed_factors": (0.0, 1.0)},
        {"noise_probability": 1.5},
        {"noise_snr_range": (20.0, 10.0)},
        {"time_masks": -1},
        {"max_masked_share": 2.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change)).split("_")[0]):
        AugmentationSettings(**change)
