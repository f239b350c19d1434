"""Speech encoders as transformers has them: their classes, and loading one alone out of a whole checkpoint."""

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging

from .audio_families import encoder_config

# Encoders that no Auto class knows; the others are built and loaded by theirs.
ENCODER_CLASSES = {"whisper": WhisperEncoder, "seamless_m4t_v2": SeamlessM4Tv2SpeechEncoder}
# Where whole checkpoints keep the encoder's weights; the others are found by transformers itself.
ENCODER_PREFIXES = {
    "whisper": r"^(model\.)?encoder\.",
    "seamless_m4t_v2": r"^speech_encoder\.",
    "parakeet_encoder": r"^encoder\.",
    "qwen2_audio_encoder": r"^(model\.)?audio_tower\.",
    "audioflamingo3_encoder": r"^(model\.)?audio_tower\.",
}


def load_encoder(audio: str, config: PreTrainedConfig | None = None, **kwargs) -> PreTrainedModel:
    """Pretrained encoder from a Hub id or folder: a whole checkpoint, of which only the encoder is loaded, or an
    encoder-only one.

    Args:
        audio: Hub id or folder.
        config: the encoder's config in place of the checkpoint's, for example one with `add_adapter=False`.
        **kwargs: `from_pretrained` arguments (`dtype`, `revision`, `device_map`, ...).

    Raises:
        ValueError: unknown family; weights that the checkpoint lacks, by name.
    """
    hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
    config = encoder_config(config or AutoConfig.from_pretrained(audio, **hub), audio)
    encoder_class = ENCODER_CLASSES.get(config.model_type, AutoModel)
    if config.model_type in ENCODER_PREFIXES:
        kwargs["key_mapping"] = {ENCODER_PREFIXES[config.model_type]: ""}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else transformers lists every weight of the rest of a whole model
    try:
        encoder, info = encoder_class.from_pretrained(audio, config=config, output_loading_info=True, **kwargs)
    finally:
        logging.set_verbosity(verbosity)
    missing = [key for key in info["missing_keys"] if "masked_spec_embed" not in key]
    if missing:
        raise ValueError(
            f"{audio!r} lacks {len(missing)} encoder weights, the first: {', '.join(sorted(missing)[:3])}. "
            "They would be random. Use a complete checkpoint."
        )
    return encoder


def new_encoder(config: PreTrainedConfig, attention: str | None = None) -> PreTrainedModel:
    """An encoder with new weights, for those of a checkpoint that holds all of them.

    Args:
        config: the encoder's.
        attention: `attn_implementation`.
    """
    encoder_class = ENCODER_CLASSES.get(config.model_type)
    build = AutoModel.from_config if encoder_class is None else encoder_class._from_config
    return build(config, attn_implementation=attention)


__all__ = ["load_encoder", "new_encoder"]
