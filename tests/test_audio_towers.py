"""Towers: padding changes nothing, length costs what it is, windows lose and double nothing."""

import copy

import pytest
import torch
from conftest import AUDIO_CONFIGS, random_audio, scatter_weights, tiny_speechllm, whisper_config
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor

from modeling_speechllm import build_audio_tower, output_length
from modeling_speechllm.audio_towers import load_encoder

# The same sums in another order: float32 rounding through a few layers.
CLOSE = {"rtol": 0, "atol": 2e-5}


def tower_of(name, **settings):
    torch.manual_seed(0)
    tower = build_audio_tower(AUDIO_CONFIGS[name](), **settings)
    scatter_weights(tower)
    return tower.eval()


def seconds_like(name, *lengths):
    """Input lengths: mel frames for Whisper, about 80 samples each for waveforms."""
    return [length if name == "whisper" else 400 + 80 * length for length in lengths]


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_a_batch_equals_its_members_alone(name):
    tower = tower_of(name, window=20)
    model = tiny_speechllm(name)
    lengths = seconds_like(name, 7, 33, 90)  # the last is longer than two windows for Whisper
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


@pytest.mark.parametrize("frames", [1, 2, 7, 20])
def test_whisper_without_padding_is_the_original_encoder_of_that_many_positions(frames):
    tower = tower_of("whisper")
    features = torch.randn(1, 8, 2 * frames)
    original = copy.deepcopy(tower.encoder)
    original.embed_positions.weight.data = original.embed_positions.weight[:frames]
    original.embed_positions.num_embeddings = original.config.max_source_positions = frames
    expected = original(features).last_hidden_state
    torch.testing.assert_close(tower(features).last_hidden_state, expected, **CLOSE)


def test_pad_to_window_is_the_original_encoder_on_the_original_features():
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    tower = tower_of("whisper")
    tower = build_audio_tower(whisper_config(max_source_positions=50), pad_to_window=True).eval()
    scatter_weights(tower)
    waveform = torch.randn(5000).numpy() * 0.1
    padded = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_features  # one padded second
    expected = tower.encoder(padded).last_hidden_state
    mask = torch.arange(100)[None] < 32  # ceil(5000 / 160) valid mel frames
    output = tower(padded, mask)
    assert int(output.lengths) == 16
    assert torch.equal(output.last_hidden_state, expected[:, :16])


def test_pad_to_window_says_when_the_features_are_not_padded():
    tower = build_audio_tower(whisper_config(), pad_to_window=True)
    with pytest.raises(ValueError, match="39 mel frames, not a multiple of the window's 40.*pad_to_window=True"):
        tower(torch.randn(1, 8, 39))


@pytest.mark.parametrize("mel_frames", [6, 24, 40])
def test_whisper_pays_for_the_audio_s_length_only(mel_frames):
    tower, seen = tower_of("whisper"), []
    tower.encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    tower(torch.randn(2, 8, mel_frames))
    assert seen == [(2, mel_frames // 2, 16)]


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_windows_lose_and_double_nothing_at_the_seams(name):
    """Every window's frames are the encoder's own for exactly that stretch of the audio."""
    window, hop, field = 6, {"whisper": 2, "wav2vec2-adapter": 640}.get(name, 320), 400
    tower = tower_of(name, window=window)
    total = window * hop * 2 + hop * 3 + (0 if name == "whisper" else field)
    features, _ = random_audio(tiny_speechllm(name), [total])
    output = tower(features)
    size = window * hop + (0 if name == "whisper" else 80)
    pieces = []
    for start in range(0, total, window * hop):
        piece = features[..., start : start + size]
        if output_length(piece.shape[-1], tower.stages) > 0:
            pieces.append(tower.encode(piece, torch.tensor([piece.shape[-1]])))
    pieces = torch.cat(pieces, dim=1)
    assert pieces.shape[1] == int(output.lengths) == output_length(total, tower.stages)
    torch.testing.assert_close(output.last_hidden_state, pieces, **CLOSE)


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_lengths_by_arithmetic_are_the_lengths_produced(name):
    tower = tower_of(name, window=5)
    shortest = 1 if name == "whisper" else 400
    step = 1 if name == "whisper" else 53
    for length in range(shortest, shortest + 40 * step, step):
        features, _ = random_audio(tiny_speechllm(name), [length]) if length == shortest else (None, None)
        features = torch.randn(1, 8, length) if name == "whisper" else torch.randn(1, length)
        output = tower(features)
        assert output.last_hidden_state.shape[1] == int(output.lengths) == output_length(length, tower.stages)


def test_too_short_audio_names_the_row_and_the_minimum():
    tower = tower_of("hubert")
    with pytest.raises(ValueError, match=r"row 1 has 399 input positions.*\(400 are needed\)"):
        tower(torch.randn(2, 800), torch.arange(800)[None] < torch.tensor([[800], [399]]))


def test_left_padding_is_refused():
    with pytest.raises(ValueError, match="padded on the right"):
        tower_of("whisper")(torch.randn(1, 8, 10), torch.tensor([[0] * 4 + [1] * 6]))


def test_a_frozen_tower_runs_in_evaluation_mode_without_gradients():
    tower = build_audio_tower(whisper_config(dropout=0.5)).train()
    features = torch.randn(1, 8, 20)
    assert tower(features).last_hidden_state.requires_grad
    tower.requires_grad_(False)
    output = tower(features).last_hidden_state
    assert not output.requires_grad
    assert torch.equal(output, tower(features).last_hidden_state)  # no dropout although the model trains


def test_encoder_loads_from_whole_and_encoder_only_checkpoints(tmp_path):
    from transformers import WhisperForConditionalGeneration

    whole = scatter_weights(WhisperForConditionalGeneration(whisper_config()))
    whole.save_pretrained(tmp_path / "whole")
    whole.model.encoder.save_pretrained(tmp_path / "encoder")
    expected = whole.model.encoder.state_dict()
    for folder in ("whole", "encoder"):
        encoder = load_encoder(str(tmp_path / folder))
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, expected[key]), key


def test_unknown_family_lists_the_supported_ones(tmp_path):
    from transformers import BertConfig, BertModel

    small = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(small).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert' model, for which there is no audio tower.*whisper, wav2vec2"):
        load_encoder(str(tmp_path))
