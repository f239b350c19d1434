"""Configuration of a SpeechLLM: an audio encoder's config, a connector's settings, a causal LM's config.

Unusual here: how many audio tokens a clip becomes is *data* (`audio_stages`, `connector_stages`), so that the
processor, which imports nothing of this package, and the model count alike.
"""

import copy
from dataclasses import asdict, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_connectors import connector_config
from .lengths import receptive_field

AUDIO_TOKEN = "<|audio|>"
WAVEFORM_FAMILIES = ("wav2vec2", "hubert", "wavlm")
AUDIO_FAMILIES = ("whisper", *WAVEFORM_FAMILIES)
# What transformers itself may write beside the fields of a config class.
_COMMON_FIELDS = {
    *("model_type", "auto_map", "custom_pipelines", "quantization_config", "torch_dtype", "num_labels"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_commit_hash"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
    *("name_or_path", "_name_or_path"),
    # ... and what its Trainer sets on the config of the model it trains.
    *("use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("output_attentions", "per_layer_config", "tie_last_hidden_states", "transformers_weights"),
}


def audio_stages(audio_config: PreTrainedConfig) -> list[dict]:
    """Stages from input units (mel frames for Whisper, samples for waveform encoders) to encoder frames."""
    if audio_config.model_type == "whisper":
        return [{"kernel": 3, "stride": 1, "padding": 1}, {"kernel": 3, "stride": 2, "padding": 1}]
    stages = [
        {"kernel": kernel, "stride": stride}
        for kernel, stride in zip(audio_config.conv_kernel, audio_config.conv_stride, strict=True)
    ]
    if getattr(audio_config, "add_adapter", False):
        adapter = {"kernel": audio_config.adapter_kernel_size, "stride": audio_config.adapter_stride, "padding": 1}
        stages += [dict(adapter) for _ in range(audio_config.num_adapter_layers)]
    return stages


@strict
class SpeechLLMConfig(PreTrainedConfig):
    r"""Configuration of a [`SpeechLLMForConditionalGeneration`].

    Args:
        audio_config (`PreTrainedConfig` or `dict`): config of the speech encoder: Whisper, wav2vec2 (also MMS, XLS-R),
            HuBERT or WavLM.
        text_config (`PreTrainedConfig` or `dict`): config of any causal language model of transformers.
        connector (`dict`, *optional*): `{"type": name, ...settings}`; filled up with the connector's defaults.
        audio_token_id (`int`): id of the audio placeholder; may lie outside the LLM's embedding table, which is left
            as it is.
        pad_to_window (`bool`, defaults to `False`): Whisper only: let the encoder see 30-second windows padded with
            silence, as in its pretraining, instead of the audio's own length.
        audio_window (`int`, *optional*): encoder frames per window; longer audio is windowed inside the tower.
            Defaults to Whisper's positions, 1500 for waveform encoders.
        initializer_range (`float`, defaults to 0.02): standard deviation of new weights.
        parents (`dict`, *optional*): Hub ids (or folders) and revisions of encoder and LLM, written by `from_parts`.
        trained_groups (`list[str]`, *optional*): in a checkpoint of trained parts only, the groups it holds.
    """

    model_type = "speechllm"
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    connector: dict | None = None
    audio_token_id: int = 0
    pad_to_window: bool = False
    audio_window: int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    parents: dict | None = None
    trained_groups: list[str] | None = None

    def __post_init__(self, **kwargs):
        generation = GenerationConfig._get_default_generation_params()  # popped by the base class
        unknown = sorted(name for name in kwargs if name not in _COMMON_FIELDS and name not in generation)
        if unknown:
            known = [field.name for field in fields(SpeechLLMConfig) if field.name not in _BASE_FIELDS]
            raise ValueError(
                f"SpeechLLMConfig has no field {', '.join(unknown)}. Its fields: {', '.join(sorted(known))}. "
                "Remove or correct the field, or update speechllm if a newer version wrote this config."
            )
        super().__post_init__(**kwargs)
        if self.audio_config.model_type not in AUDIO_FAMILIES:
            raise ValueError(
                f"No audio tower for model type {self.audio_config.model_type!r}. "
                f"Supported families: {', '.join(AUDIO_FAMILIES)}."
            )
        if self.pad_to_window and self.audio_config.model_type != "whisper":
            raise ValueError(
                f"pad_to_window is Whisper's pretrained behaviour; {self.audio_config.model_type!r} has no window to "
                "pad to. Leave it False."
            )
        self.connector = asdict(connector_config(self.connector))
        if self.audio_window is None:
            self.audio_window = getattr(self.audio_config, "max_source_positions", None) or 1500
        limit = getattr(self.audio_config, "max_source_positions", None)
        if self.audio_window < 1 or (limit is not None and self.audio_window > limit):
            raise ValueError(f"audio_window={self.audio_window} frames must be from 1 to {limit or 'any number'}.")
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    @property
    def audio_stages(self) -> list[dict]:
        """Stages from input units (mel frames or samples) to encoder frames."""
        return audio_stages(self.audio_config)

    @property
    def connector_stages(self) -> list[dict]:
        """Stages from encoder frames to audio tokens."""
        return connector_config(self.connector).stages(self.audio_window)

    @property
    def audio_window_inputs(self) -> int:
        """Input units (mel frames or samples) that make one full window of `audio_window` encoder frames."""
        return self.audio_window * receptive_field(self.audio_stages)[1]

    @property
    def audio_size(self) -> int:
        """Width of the encoder's frames."""
        adapted = getattr(self.audio_config, "add_adapter", False)
        return self.audio_config.output_hidden_size if adapted else self.audio_config.hidden_size

    @property
    def audio_layers(self) -> list[int]:
        """Encoder layers that the connector mixes, empty for the encoder's output alone."""
        layers = connector_config(self.connector).layers
        count = self.audio_config.num_hidden_layers + 1
        layers = list(range(count)) if layers == "all" else layers or []
        if not all(-count <= layer < count for layer in layers):
            raise ValueError(f"Connector layers {layers} are not all from 0 to {count - 1}, which this encoder has.")
        return [layer % count for layer in layers]

    @property
    def hidden_size(self) -> int:
        """Width of the LLM; DeepSpeed's "auto" values read it."""
        return self.text_config.hidden_size

    @classmethod
    def from_parts(
        cls,
        audio: "str | PreTrainedConfig",
        text: "str | PreTrainedConfig",
        connector: dict | str | None = None,
        **kwargs: Any,
    ) -> "SpeechLLMConfig":
        """Config from Hub ids, local folders or configs of a speech encoder and a causal LM.

        Args:
            audio, text: Hub id, folder, or `PreTrainedConfig`.
            connector: settings as in [`SpeechLLMConfig`]; a name alone takes its defaults.
            **kwargs: further fields of [`SpeechLLMConfig`] (`audio_token_id`, `pad_to_window`, ...).
        """
        audio = AutoConfig.from_pretrained(audio) if isinstance(audio, str) else audio
        text = AutoConfig.from_pretrained(text) if isinstance(text, str) else text
        return cls(
            audio_config=copy.deepcopy(audio),  # a loaded model's config is its own
            text_config=copy.deepcopy(text.get_text_config(decoder=True)),
            connector=asdict(connector_config(connector)),
            **kwargs,
        )


_BASE_FIELDS = {field.name for field in fields(PreTrainedConfig)}

__all__ = ["AUDIO_TOKEN", "SpeechLLMConfig", "audio_stages"]
