"""Tiny models from configs, the same for every test: offline, CPU, seeded."""

import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from transformers import (
    AudioFlamingo3EncoderConfig,
    HubertConfig,
    LlamaConfig,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    Qwen2AudioEncoderConfig,
    SeamlessM4TFeatureExtractor,
    SeamlessM4Tv2Config,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration
from modeling_speechllm.audio_families import audio_stages
from modeling_speechllm.lengths import receptive_field
from modeling_speechllm.partial_checkpoints import record_parents

# The page in a real browser is tested where there is one: Debian's packages chromium and chromium-driver.
collect_ignore = [] if shutil.which("chromium") and shutil.which("chromedriver") else ["test_page_browser.py"]
torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

VOCABULARY = 64
VERBOSITY = transformers.utils.logging.get_verbosity()


@pytest.fixture(autouse=True)
def verbosity():
    """What a command does to transformers' logging reaches no other test, whichever runs next in the process."""
    transformers.utils.logging.set_verbosity(VERBOSITY)


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


POOLED = {
    "num_mel_bins": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 16,
    "max_source_positions": 20,
}
CONFORMER = {
    "hidden_size": 16,
    "feature_projection_input_dim": 8,
    "conv_depthwise_kernel_size": 5,
    "left_max_position_embeddings": 4,
    "right_max_position_embeddings": 2,
}
W2V_BERT = {
    **CONFORMER,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def seamless_config(**changes) -> SeamlessM4Tv2Config:
    """A whole model small enough to build; of its text and unit parts only the sizes are cut."""
    sizes = {
        **dict.fromkeys(("encoder_layers", "decoder_layers", "t2u_encoder_layers", "t2u_decoder_layers"), 1),
        **{f"{part}_ffn_dim": 16 for part in ("encoder", "decoder", "t2u_encoder", "t2u_decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder", "t2u_encoder", "t2u_decoder")},
        **dict.fromkeys(("vocab_size", "t2u_vocab_size", "char_vocab_size", "unit_hifi_gan_vocab_size"), 40),
        **dict.fromkeys(("t2u_variance_predictor_embed_dim", "t2u_variance_predictor_hidden_dim"), 8),
        **dict.fromkeys(("unit_embed_dim", "lang_embed_dim", "spkr_embed_dim"), 8),
        **dict.fromkeys(("max_position_embeddings", "t2u_max_position_embeddings", "upsample_initial_channel"), 64),
        "speech_encoder_layers": 2,
        "speech_encoder_attention_heads": 2,
        "speech_encoder_intermediate_size": 32,
        "speech_encoder_chunk_size": 7,
        "speech_encoder_left_chunk_num": 2,
    }
    return SeamlessM4Tv2Config(**CONFORMER | sizes | changes)


AUDIO_CONFIGS = {
    "whisper": whisper_config,
    "wav2vec2-layer-norm": lambda: Wav2Vec2Config(**WAVEFORM, feat_extract_norm="layer", do_stable_layer_norm=True),
    "wav2vec2-group-norm": lambda: Wav2Vec2Config(**WAVEFORM),
    "wav2vec2-adapter": lambda: Wav2Vec2Config(
        **WAVEFORM, add_adapter=True, num_adapter_layers=1, output_hidden_size=16
    ),
    "hubert": lambda: HubertConfig(**WAVEFORM),
    "wavlm": lambda: WavLMConfig(**WAVEFORM),
    "w2v-bert": lambda: Wav2Vec2BertConfig(**W2V_BERT),
    "w2v-bert-adapter": lambda: Wav2Vec2BertConfig(**W2V_BERT, add_adapter=True, output_hidden_size=8),
    "seamless": seamless_config,
    "seamless-no-adapter": lambda: seamless_config(add_adapter=False),
    "parakeet": lambda: ParakeetEncoderConfig(
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        **{"conv_kernel_size": 5, "subsampling_conv_channels": 8, "num_mel_bins": 8},
    ),
    "qwen2-audio": lambda: Qwen2AudioEncoderConfig(**POOLED),
    "audio-flamingo-3": lambda: AudioFlamingo3EncoderConfig(**POOLED),
}
WAVEFORM_NAMES = [name for name in AUDIO_CONFIGS if name.startswith(("wav2vec2", "hubert", "wavlm"))]
WHISPER_NAMES = ["whisper", "qwen2-audio", "audio-flamingo-3"]


def feature_extractor(name):
    """The kind of extractor that the encoder comes with, of the tiny config's sizes."""
    if name in WAVEFORM_NAMES:
        return Wav2Vec2FeatureExtractor()
    if name == "parakeet":
        return ParakeetFeatureExtractor(feature_size=8)
    if name in WHISPER_NAMES:
        return WhisperFeatureExtractor(feature_size=8)
    return SeamlessM4TFeatureExtractor(feature_size=4, num_mel_bins=4)


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


def enable_checkpointing(model):
    """Activation checkpointing, by its name from transformers 5.23 on or the one before."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


def name_parents(model):
    """Lets a tiny model pass for one that was just joined of the parents "a" and "b"."""
    model.config.parents = {"audio": {"id": "a", "revision": None}, "text": {"id": "b", "revision": None}}
    record_parents(model, ["encoder", "llm"])


def positions(name, *half_frames):
    """Input lengths: about half an encoder frame each; for waveforms 80 samples each above the shortest."""
    hop = receptive_field(audio_stages(AUDIO_CONFIGS[name]()))[1]
    return [400 + 80 * half if name in WAVEFORM_NAMES else max(half * hop // 2, hop) for half in half_frames]


def random_audio(model, lengths, seed=0):
    """Right-padded features `(audios, [features,] positions)` and mask for lengths in input positions."""
    generator = torch.Generator().manual_seed(seed)
    size = model.config.audio_feature_size
    size = (size,) if size else ()
    features = torch.zeros(len(lengths), *size, max(lengths))
    for row, length in enumerate(lengths):
        features[row, ..., :length] = torch.randn(*size, length, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return features, mask.long()


@pytest.fixture
def model():
    return tiny_speechllm()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Under `pytest -n` a file's tests run in one process, which makes their costly fixtures once; files keep their
    order, since those with the fewest tests take longest."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
