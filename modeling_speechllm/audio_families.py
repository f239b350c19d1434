"""The supported speech encoders as their configs tell: lengths, widths, layers, windows.

Every family has a class of input positions: mel frames of 10 ms, stacked pairs of them, or samples.
"""

import math

from transformers import PreTrainedConfig

from .lengths import receptive_field

# Whisper encoders that average every two frames before their last layer norm.
POOLED_FAMILIES = ("qwen2_audio_encoder", "audioflamingo3_encoder")
WHISPER_FAMILIES = ("whisper", *POOLED_FAMILIES)
WAVEFORM_FAMILIES = ("wav2vec2", "hubert", "wavlm")
STACKED_FAMILIES = ("wav2vec2-bert", "seamless_m4t_v2")  # of SeamlessM4TFeatureExtractor: two mel frames per position
FILTERBANK_FAMILIES = (*STACKED_FAMILIES, "parakeet_encoder")
AUDIO_FAMILIES = ("whisper", *WAVEFORM_FAMILIES, *FILTERBANK_FAMILIES, *POOLED_FAMILIES)
# Whole models whose encoder has a config of its own, and its name in theirs.
WHOLE_MODELS = {
    "parakeet_ctc": "encoder_config",
    "parakeet_rnnt": "encoder_config",
    "parakeet_tdt": "encoder_config",
    "qwen2_audio": "audio_config",
    "audioflamingo3": "audio_config",
}
WINDOW_SECONDS = 30


def encoder_config(config: PreTrainedConfig, source: str | None = None) -> PreTrainedConfig:
    """The speech encoder's own config: of a whole model's config its part, else the config itself.

    Raises:
        ValueError: unknown family (of the checkpoint `source`), with the supported ones.
    """
    if config.model_type in WHOLE_MODELS:
        config = getattr(config, WHOLE_MODELS[config.model_type])
    if config.model_type not in AUDIO_FAMILIES:
        raise ValueError(
            f"No audio tower for model type {config.model_type!r}{f' of {source!r}' if source else ''}. Supported "
            f"families: {', '.join(AUDIO_FAMILIES)}, and the encoders of {', '.join(WHOLE_MODELS)}."
        )
    return config


def has_adapter(audio_config: PreTrainedConfig) -> bool:
    """The encoder ends in strided convolutions, so that its output is shorter than its layers' states."""
    return bool(getattr(audio_config, "add_adapter", False))


def audio_stages(audio_config: PreTrainedConfig) -> list[dict]:
    """Stages from input positions to encoder frames, see [`stage_length`]."""
    family = audio_config.model_type
    if family in WHISPER_FAMILIES:
        pooling = [{"kernel": 2, "stride": 2}] if family in POOLED_FAMILIES else []
        return [{"kernel": 3, "stride": 1, "padding": 1}, {"kernel": 3, "stride": 2, "padding": 1}, *pooling]
    if family == "parakeet_encoder":
        kernel, stride = audio_config.subsampling_conv_kernel_size, audio_config.subsampling_conv_stride
        stage = {"kernel": kernel, "stride": stride, "padding": (kernel - 1) // 2}
        return [dict(stage) for _ in range(int(math.log2(audio_config.subsampling_factor)))]
    if family in WAVEFORM_FAMILIES:
        strides = zip(audio_config.conv_kernel, audio_config.conv_stride, strict=True)
        stages = [{"kernel": kernel, "stride": stride} for kernel, stride in strides]
    else:
        stages = []
    if has_adapter(audio_config):
        name = "adaptor" if family == "seamless_m4t_v2" else "adapter"
        kernel, stride = getattr(audio_config, f"{name}_kernel_size"), getattr(audio_config, f"{name}_stride")
        adapter = {"kernel": kernel, "stride": stride, "padding": 1 if family in WAVEFORM_FAMILIES else stride // 2}
        stages += [dict(adapter) for _ in range(audio_config.num_adapter_layers)]
    return stages


def audio_size(audio_config: PreTrainedConfig) -> int:
    """Width of the encoder's frames."""
    adapted = has_adapter(audio_config) and audio_config.model_type != "seamless_m4t_v2"
    return audio_config.output_hidden_size if adapted else audio_config.hidden_size


def audio_layer_count(audio_config: PreTrainedConfig) -> int:
    """Transformer (or conformer) layers of the encoder."""
    seamless = audio_config.model_type == "seamless_m4t_v2"
    return audio_config.speech_encoder_layers if seamless else audio_config.num_hidden_layers


def audio_feature_size(audio_config: PreTrainedConfig) -> int | None:
    """Features of one input position, None for raw samples."""
    if audio_config.model_type in WAVEFORM_FAMILIES:
        return None
    stacked = audio_config.model_type in STACKED_FAMILIES
    return audio_config.feature_projection_input_dim if stacked else audio_config.num_mel_bins


def window_limit(audio_config: PreTrainedConfig) -> int | None:
    """Most encoder frames of one window, by the encoder's positions; None where they are relative."""
    if audio_config.model_type not in WHISPER_FAMILIES:
        return None
    return audio_config.max_source_positions // (2 if audio_config.model_type in POOLED_FAMILIES else 1)


def default_window(audio_config: PreTrainedConfig) -> int:
    """Encoder frames per window: all the encoder has positions for, or those of 30 seconds."""
    family = audio_config.model_type
    per_second = 16000 if family in WAVEFORM_FAMILIES else 50 if family in STACKED_FAMILIES else 100
    hop = receptive_field(audio_stages(audio_config))[1]
    return window_limit(audio_config) or math.ceil(WINDOW_SECONDS * per_second / hop)


__all__ = ["AUDIO_FAMILIES", "audio_stages", "encoder_config"]
