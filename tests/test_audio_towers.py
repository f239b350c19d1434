"""Towers: padding changes nothing, length costs what it is, windows lose and double nothing."""

import pytest
import torch
from conftest import (
    AUDIO_CONFIGS,
    WAVEFORM_NAMES,
    WHISPER_NAMES,
    positions,
    random_audio,
    scatter_weights,
    tiny_speechllm,
    whisper_config,
)
from torch.nn import functional as F

from modeling_speechllm import audio_towers, build_audio_tower, output_length
from modeling_speechllm.connector_base import length_mask

# The same sums in another order: float32 rounding through a few layers.
CLOSE = {"rtol": 0, "atol": 2e-5}


def tower_of(name, **settings):
    torch.manual_seed(0)
    tower = build_audio_tower(AUDIO_CONFIGS[name](), **settings)
    scatter_weights(tower)
    return tower.eval()


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_a_batch_equals_its_members_alone(name):
    tower = tower_of(name, window=10)
    model = tiny_speechllm(name)
    lengths = positions(name, 7, 33, 90)  # the last is longer than two windows, but for waveforms
    features, mask = random_audio(model, lengths)
    features = F.pad(features, (0, 500), value=9.0)  # padding full of rubbish
    mask = F.pad(mask, (0, 500))
    batch = tower(features, mask)
    for row, length in enumerate(lengths):
        alone = tower(features[row : row + 1, ..., :length])
        frames = int(batch.lengths[row])
        assert frames == int(alone.lengths) == output_length(length, tower.stages)
        torch.testing.assert_close(batch.last_hidden_state[row, :frames], alone.last_hidden_state[0], **CLOSE)
        assert (batch.last_hidden_state[row, frames:] == 0).all()


def test_pad_to_window_says_when_the_features_are_not_padded():
    tower = build_audio_tower(whisper_config(), pad_to_window=True)
    with pytest.raises(ValueError, match="39 mel frames, not a multiple of the window's 40.*pad_to_window=True"):
        tower(torch.randn(1, 8, 39))


@pytest.mark.parametrize("name", WHISPER_NAMES)
@pytest.mark.parametrize("mel_frames", [6, 24, 40])
def test_whisper_pays_for_the_audio_s_length_only(name, mel_frames):
    tower, seen = tower_of(name), []
    tower.encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    tower(torch.randn(2, 8, mel_frames))
    assert seen == [(2, mel_frames // 2, 16)]


HOPS = {"whisper": 2, "qwen2-audio": 4, "audio-flamingo-3": 4, "wav2vec2-adapter": 640, "w2v-bert": 1}
HOPS |= {"w2v-bert-adapter": 2, "seamless": 8, "seamless-no-adapter": 1, "parakeet": 8}
OVERLAPS = {**dict.fromkeys(WAVEFORM_NAMES, 80), "seamless": 4}  # input positions that two windows share


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_windows_are_the_encoder_s_own_frames_of_each_stretch(name):
    window, hop, overlap = 6, HOPS.get(name, 320), OVERLAPS.get(name, 0)
    tower = tower_of(name, window=window)
    total = window * hop * 2 + hop * 3 + (400 if name in WAVEFORM_NAMES else 0)
    features, _ = random_audio(tiny_speechllm(name), [total])
    output = tower(features)
    pieces = []
    for start in range(0, total, window * hop):
        piece = features[..., start : start + window * hop + overlap]
        if output_length(piece.shape[-1], tower.stages) > 0:
            encoded = tower.encode(piece, torch.tensor([piece.shape[-1]]))
            # Seamless' first frame of a later window is the last of the one before, which saw the overlap too.
            pieces.append(encoded[:, 1:] if name == "seamless" and start else encoded)
    pieces = torch.cat(pieces, dim=1)
    assert pieces.shape[1] == int(output.lengths) == output_length(total, tower.stages)
    torch.testing.assert_close(output.last_hidden_state, pieces, **CLOSE)


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_windows_lose_and_double_nothing_at_the_seams(name):
    """With every position a channel and every convolution a plain sum, frames tell what they were made of."""
    hop = HOPS.get(name, 320)
    tower = tower_of(name, window=3)
    total = 3 * hop * 3 + hop // 2 + (400 if name in WAVEFORM_NAMES else 2)
    pace = 80 if name in WAVEFORM_NAMES else 1  # a channel for every 80 samples
    channel = torch.arange(total) // pace
    marks = F.one_hot(channel).T.float()[None]

    def sums(features, lengths, layers=None):
        for stage in tower.stages:
            kernel = torch.ones(features.shape[1], 1, stage["kernel"])
            settings = {"stride": stage["stride"], "padding": stage.get("padding", 0), "groups": features.shape[1]}
            features, lengths = F.conv1d(features, kernel, **settings), output_length(lengths, [stage])
            features = features * length_mask(lengths, features.shape[-1])[:, None]
        return features.transpose(1, 2)

    tower.encode = sums
    made = tower(marks).last_hidden_state[0]
    uncut = sums(marks, torch.tensor([total]))[0]
    assert made.shape == uncut.shape
    assert (made <= uncut).all()
    assert torch.equal(made.sum(0) > 0, uncut.sum(0) > 0)
    if name in WAVEFORM_NAMES and name != "wav2vec2-adapter" or name == "seamless":
        assert torch.equal(made, uncut)  # not even the convolutions notice the seam


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_lengths_by_arithmetic_are_the_lengths_produced(name):
    tower = tower_of(name, window=5)
    shortest = 400 if name in WAVEFORM_NAMES else 3 if name in WHISPER_NAMES[1:] else 1
    step = 53 if name in WAVEFORM_NAMES else 1
    with pytest.raises(ValueError, match=rf"too few for one encoder frame \({shortest} are needed\)"):
        tower(random_audio(tiny_speechllm(name), [shortest])[0][..., 1:])
    longest, _ = random_audio(tiny_speechllm(name), [shortest + 90 * step])
    for length in range(shortest, shortest + 90 * step, step):
        output = tower(longest[..., :length])
        assert output.last_hidden_state.shape[1] == int(output.lengths) == output_length(length, tower.stages)


def test_too_short_audio_names_the_row_and_the_minimum():
    tower = tower_of("hubert")
    with pytest.raises(ValueError, match=r"row 1 has 399 input positions.*\(400 are needed\)"):
        tower(torch.randn(2, 800), torch.arange(800)[None] < torch.tensor([[800], [399]]))


def test_left_padding_is_refused():
    with pytest.raises(ValueError, match="padded on the right"):
        tower_of("whisper")(torch.randn(1, 8, 10), torch.tensor([[0] * 4 + [1] * 6]))


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_a_frozen_tower_runs_in_evaluation_mode_without_gradients(name):
    config = AUDIO_CONFIGS[name]()
    for dropout in ("dropout", "hidden_dropout", "feat_proj_dropout", "speech_encoder_dropout"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.5)
    tower = build_audio_tower(config).train()
    features, _ = random_audio(tiny_speechllm(name), positions(name, 30))
    assert tower(features).last_hidden_state.requires_grad
    tower.requires_grad_(False)
    output = tower(features).last_hidden_state
    assert not output.requires_grad
    assert torch.equal(output, tower(features).last_hidden_state)  # no dropout although the model trains


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_many_windows_in_several_passes_give_what_one_pass_gives(name, monkeypatch):
    tower = tower_of(name, window=5)
    model = tiny_speechllm(name)
    lengths = positions(name, 200, 33)
    features, mask = random_audio(model, lengths)
    with torch.no_grad():
        expected = tower(features, mask).last_hidden_state
        monkeypatch.setattr(audio_towers, "windows_per_pass", lambda device: 3)
        passes, encode = [], tower.encode
        monkeypatch.setattr(tower, "encode", lambda *args, **kwargs: passes.append(1) or encode(*args, **kwargs))
        torch.testing.assert_close(tower(features, mask).last_hidden_state, expected, **CLOSE)
    assert len(passes) > 2


@pytest.mark.parametrize("pad_to_window", [False, True])
def test_layers_mixed_in_the_tower_are_those_mixed_after_it(pad_to_window, monkeypatch):
    monkeypatch.setattr(audio_towers, "windows_per_pass", lambda device: 2)
    model = tiny_speechllm("whisper", connector={"type": "stack_mlp", "stride": 4, "layers": "all"})
    tower, mixer = model.model.audio_tower, model.model.multi_modal_projector.layer_mix
    tower.pad_to_window = pad_to_window
    with torch.no_grad():
        mixer.weight.copy_(torch.tensor([0.3, -0.7, 1.1]))
    features, mask = random_audio(model, [200, 40])
    seen = []

    def mix(hidden):
        seen.append(hidden.shape)
        return mixer(hidden)

    with torch.no_grad():
        apart = tower(features, mask, model.config.audio_layers)
        together = tower(features, mask, model.config.audio_layers, mix)
    assert max(shape[0] for shape in seen) == 2 and len(seen) > 1
    torch.testing.assert_close(together.last_hidden_state, mixer(apart.last_hidden_state))
    gradients = model.get_audio_features(features, mask).pooler_output
    with torch.no_grad():
        torch.testing.assert_close(model.get_audio_features(features, mask).pooler_output, gradients.detach())
    gradients.sum().backward()
    assert mixer.weight.grad.any()
