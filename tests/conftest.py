"""Tiny models from configs, the same for every test: offline, CPU, seeded."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import HubertConfig, LlamaConfig, Wav2Vec2Config, WavLMConfig, WhisperConfig

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

VOCABULARY = 64
WAVEFORM = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def whisper_config(**changes) -> WhisperConfig:
    """Windows of 20 frames (40 mel frames)."""
    settings = {
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "num_mel_bins": 8,
        "max_source_positions": 20,
        "vocab_size": 50,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    }
    return WhisperConfig(**settings | changes)


AUDIO_CONFIGS = {
    "whisper": whisper_config,
    "wav2vec2-layer-norm": lambda: Wav2Vec2Config(**WAVEFORM, feat_extract_norm="layer", do_stable_layer_norm=True),
    "wav2vec2-group-norm": lambda: Wav2Vec2Config(**WAVEFORM),
    "wav2vec2-adapter": lambda: Wav2Vec2Config(
        **WAVEFORM, add_adapter=True, num_adapter_layers=1, output_hidden_size=16
    ),
    "hubert": lambda: HubertConfig(**WAVEFORM),
    "wavlm": lambda: WavLMConfig(**WAVEFORM),
}


def text_config(**changes) -> LlamaConfig:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**settings | changes)


def scatter_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough that every part of a tiny model shows in its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_positions" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def tiny_speechllm(audio="whisper", text=None, connector=None, audio_token_id=VOCABULARY, **changes):
    """A whole random SpeechLLM in evaluation mode; its placeholder id lies just outside the LLM's table."""
    config = SpeechLLMConfig.from_parts(
        audio=AUDIO_CONFIGS[audio]() if isinstance(audio, str) else audio,
        text=text or text_config(),
        connector=connector or {"type": "stack_mlp", "stride": 4},
        audio_token_id=audio_token_id,
        **changes,
    )
    torch.manual_seed(0)
    return scatter_weights(SpeechLLMForConditionalGeneration(config)).eval()


def random_audio(model, lengths, seed=0):
    """Right-padded features `(audios, [mel,] positions)` and mask for input lengths in mel frames or samples."""
    generator = torch.Generator().manual_seed(seed)
    mel = (8,) if model.config.audio_config.model_type == "whisper" else ()
    features = torch.zeros(len(lengths), *mel, max(lengths))
    for row, length in enumerate(lengths):
        features[row, ..., :length] = torch.randn(*mel, length, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return features, mask.long()


@pytest.fixture
def model():
    return tiny_speechllm()
