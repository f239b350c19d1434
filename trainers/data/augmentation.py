"""Augmentation of training audio: speed and noise on samples, masks on log-mel features.

Everything is a function of the random generator handed in, so that a row's augmentation can depend on seed, epoch and
row alone. The speed changes an audio's length, and with it its number of audio tokens: augment before the processor
counts them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from processing_speechllm.audio import AudioError, load_audio

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@dataclass
class AugmentationSettings:
    """
    How training audio is changed; by default, not at all.

    Args:
        speed_factors (`Sequence[float]`, *optional*, defaults to `(1.0,)`): one of these is drawn per audio; BLOOMZMMS
            and Kaldi use 0.9, 1.0, 1.1. As with sox `speed`, pitch changes too. In a training an audio keeps its
            speed where a slower one would make it longer than the processor takes.
        noise_probability (`float`, *optional*, defaults to 0.0): share of audios that get noise.
        noise_snr_range (`Sequence[float]`, *optional*, defaults to `(10.0, 30.0)`): signal-to-noise ratio in dB, drawn
            evenly between the two.
        noise_folder (`str`, *optional*): folder of noise recordings, searched with its subfolders. Without it the
            noise is white or pink, one as often as the other.
        time_masks (`int`, *optional*, defaults to 0): masks along time (SpecAugment, Park et al. 2019; its LibriSpeech
            double policy has 2 of at most 100 positions, and 2 of at most 27 mel bins).
        time_mask_width (`int`, *optional*, defaults to 100): widest time mask in feature positions.
        frequency_masks (`int`, *optional*, defaults to 0): masks along frequency.
        frequency_mask_width (`int`, *optional*, defaults to 27): widest frequency mask in mel bins.
        max_masked_share (`float`, *optional*, defaults to 0.5): share of positions, and of mel bins, that all masks
            together may cover.
    """

    speed_factors: Sequence[float] = (1.0,)
    noise_probability: float = 0.0
    noise_snr_range: Sequence[float] = (10.0, 30.0)
    noise_folder: str | None = None
    time_masks: int = 0
    time_mask_width: int = 100
    frequency_masks: int = 0
    frequency_mask_width: int = 27
    max_masked_share: float = 0.5

    def __post_init__(self):
        low, high = self.noise_snr_range
        checks = {
            "speed_factors must be one or more positive numbers": self.speed_factors and min(self.speed_factors) > 0,
            "noise_probability must be from 0 to 1": 0 <= self.noise_probability <= 1,
            "noise_snr_range must be two numbers in dB, the lower first": low <= high,
            "masks and mask widths must not be negative": min(
                self.time_masks, self.time_mask_width, self.frequency_masks, self.frequency_mask_width
            )
            >= 0,
            "max_masked_share must be from 0 to 1": 0 <= self.max_masked_share <= 1,
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(f"{message}, not as in {self}.")


def augment_samples(
    samples: np.ndarray, rate: int, rng: random.Random, settings: AugmentationSettings, longest: float | None = None
) -> np.ndarray:
    """
    Change speed and add noise.

    Args:
        samples: float32 mono samples `(samples,)`.
        rate: their sampling rate in Hz.
        rng: where all random choices come from.
        settings: see `AugmentationSettings`.
        longest (`float`, *optional*): seconds; audio that its speed would make longer than that keeps its own speed.

    Returns:
        `np.ndarray`: float32 samples; with a speed factor f, 1 / f as many.

    Raises:
        AudioError: a noise recording that cannot be used.
    """
    factor = rng.choice(list(settings.speed_factors))
    if longest is None or len(samples) / factor <= longest * rate:
        samples = change_speed(samples, rate, factor)
    if rng.random() < settings.noise_probability and samples.any():
        snr = rng.uniform(*settings.noise_snr_range)
        samples = add_noise(samples, _draw_noise(len(samples), rate, rng, settings), snr)
    return samples


def change_speed(samples: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Play `samples` (samples,) of `rate` Hz `factor` times as fast, pitch included: resampling, as sox `speed`."""
    if factor == 1:
        return samples
    import soxr

    return soxr.resample(samples, rate * factor, rate, quality="HQ").astype(np.float32)


def add_noise(samples: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """`samples` with `noise` of the same length, scaled so that the ratio of mean powers is `snr` dB."""
    signal_power, noise_power = (np.mean(np.square(wave, dtype=np.float64)) for wave in (samples, noise))
    scale = np.sqrt(signal_power / noise_power * 10 ** (-snr / 10))
    return (samples + scale * noise).astype(np.float32)


def mask_features(features: torch.Tensor, rng: random.Random, settings: AugmentationSettings) -> torch.Tensor:
    """
    SpecAugment (Park et al. 2019): bands of time and of frequency are set to the mean of the features.

    Args:
        features: log-mel `(features, positions)` of one audio, without padding.
        rng: where all random choices come from.
        settings: numbers and widths of the masks. A mask covers at most `max_masked_share` divided by the number of
            masks along its axis, so that all together keep to the share.

    Returns:
        `torch.Tensor`: a masked copy, or `features` itself where no masks are asked for.

    Raises:
        ValueError: the features are not (features, positions).
    """
    if settings.time_masks == settings.frequency_masks == 0:
        return features
    if features.ndim != 2:
        raise ValueError(
            f"SpecAugment masks log-mel features (features, positions), not shape {tuple(features.shape)}: encoders "
            "of raw waveforms have none. Set time_masks and frequency_masks to 0, and use speed and noise instead."
        )
    from torchaudio.functional import mask_along_axis

    with torch.random.fork_rng(devices=[]):  # torchaudio draws from torch's generator
        torch.manual_seed(rng.getrandbits(63))
        mean = features.mean().item()
        for axis, masks, width in [
            (0, settings.frequency_masks, settings.frequency_mask_width),
            (1, settings.time_masks, settings.time_mask_width),
        ]:
            for _ in range(masks):
                widest = min(width, int(features.shape[axis] * settings.max_masked_share / masks))
                if widest > 0:  # torchaudio draws a width below its argument
                    features = mask_along_axis(features, widest + 1, mean, axis)
    return features


def _draw_noise(length: int, rate: int, rng: random.Random, settings: AugmentationSettings) -> np.ndarray:
    """Noise (length,) of any power but zero."""
    if settings.noise_folder is not None:
        return _recorded_noise(length, rate, rng, settings.noise_folder)
    white = np.random.default_rng(rng.getrandbits(64)).standard_normal(length)
    return white if rng.random() < 0.5 else pink(white)


def pink(white: np.ndarray) -> np.ndarray:
    """White noise (samples,) with its power made to fall as 1 / frequency; a single sample stays as it is."""
    spectrum = np.fft.rfft(white)
    if len(spectrum) == 1:
        return white
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return np.fft.irfft(spectrum, len(white))


def _recorded_noise(length: int, rate: int, rng: random.Random, folder: str) -> np.ndarray:
    """A stretch of a recording from a random place on, from its start again where it ends."""
    path = rng.choice(_recordings(folder))
    recording = load_audio(path, sampling_rate=rate)
    if not recording.any():
        raise AudioError(f"{path}: is silent, so it is no noise. Remove it from {folder}.")
    stretch = np.resize(np.roll(recording, -rng.randrange(len(recording))), length)
    if not stretch.any():  # a silent stretch: start at the loudest sample
        stretch = np.resize(np.roll(recording, -int(np.abs(recording).argmax())), length)
    return stretch


@lru_cache(maxsize=8)
def _recordings(folder: str) -> list[str]:
    found = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not found:
        raise ValueError(
            f"noise_folder {folder} has no audio files ({', '.join(AUDIO_SUFFIXES)}). Check the path, or leave it out "
            "for generated noise."
        )
    return found
