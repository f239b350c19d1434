"""Configuration of a SpeechLLM: an audio encoder's config, a connector's settings, a causal LM's config.

Unusual here: how many audio tokens a clip becomes is *data* (`audio_stages`, `connector_stages`), so that the
processor, which imports nothing of this package, and the model count alike.
"""

import copy
import os
import tempfile
from dataclasses import asdict, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from .audio_families import (
    WHISPER_FAMILIES,
    audio_feature_size,
    audio_layer_count,
    audio_size,
    audio_stages,
    default_window,
    encoder_config,
    has_adapter,
    window_limit,
)
from .configuration_connectors import connector_config
from .lengths import receptive_field
from .older_transformers import SubConfigSpec

AUDIO_TOKEN = "<|audio|>"
PARTS = {"audio_config": "whisper", "text_config": "llama"}  # and the family that each is of, where it does not say
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


@strict
class SpeechLLMConfig(PreTrainedConfig):
    r"""Configuration of a [`SpeechLLMForConditionalGeneration`].

    Args:
        audio_config (`PreTrainedConfig` or `dict`): config of the speech encoder, or of a whole model that has one:
            Whisper, wav2vec2 (also MMS, XLS-R), HuBERT, WavLM, w2v-BERT 2.0, SeamlessM4T v2, Parakeet, Qwen2-Audio,
            Audio Flamingo 3.
        text_config (`PreTrainedConfig` or `dict`): config of any causal language model of transformers.
        connector (`dict`, *optional*): `{"type": name, ...settings}`; filled up with the connector's defaults.
        audio_token_id (`int`): id of the audio placeholder; may lie outside the LLM's embedding table, which is left
            as it is.
        pad_to_window (`bool`, defaults to `False`): Whisper and encoders made from it only: let the encoder see
            30-second windows padded with silence, as in its pretraining, instead of the audio's own length.
        audio_window (`int`, *optional*): encoder frames per window; longer audio is windowed inside the tower.
            Defaults to what Whisper has positions for, to 30 seconds for encoders with relative positions.
        initializer_range (`float`, defaults to 0.02): standard deviation of new weights.
        parents (`dict`, *optional*): Hub ids (or folders) and revisions of encoder and LLM, written by `from_parts`.
        trained_groups (`list[str]`, *optional*): in a checkpoint of trained parts only, the groups it holds.
    """

    model_type = "speechllm"
    if SubConfigSpec is None:
        sub_configs = dict.fromkeys(PARTS, AutoConfig)
    else:
        sub_configs_defaults = {part: SubConfigSpec(AutoConfig, model_type=family) for part, family in PARTS.items()}

    # What `Trainer` cannot gather from several processes: no batch in its first dimension.
    keys_to_ignore_at_inference = [
        *("past_key_values", "cache", "audio_hidden_states", "connector", "router_logits", "aux_loss"),
    ]
    # Sharded by transformers itself (`distributed_config`): beside the LLM's own units, encoder and connector are each
    # gathered at once. Inside them, batches differ in how often a module runs.
    base_model_fsdp_plan = {"audio_tower": "free_full_weight", "multi_modal_projector": "free_full_weight"}

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
        if SubConfigSpec is None:
            self._make_parts()
        super().__post_init__(**kwargs)
        self.audio_config = encoder_config(self.audio_config)
        if self.pad_to_window and self.audio_config.model_type not in WHISPER_FAMILIES:
            raise ValueError(
                f"pad_to_window is Whisper's pretrained behaviour; {self.audio_config.model_type!r} has no window to "
                "pad to. Leave it False."
            )
        self.connector = asdict(connector_config(self.connector))
        if self.audio_window is None:
            self.audio_window = default_window(self.audio_config)
        limit = window_limit(self.audio_config)
        if self.audio_window < 1 or (limit is not None and self.audio_window > limit):
            raise ValueError(f"audio_window={self.audio_window} frames must be from 1 to {limit or 'any number'}.")
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    def _make_parts(self) -> None:
        """Configs of the parts that came as dicts or not at all, which transformers from 5.23 on makes itself."""
        for name, family in PARTS.items():
            part = getattr(self, name) or {}
            if isinstance(part, dict):
                setattr(self, name, AutoConfig.for_model(**{"model_type": family} | part))

    @property
    def audio_stages(self) -> list[dict]:
        """Stages from input positions (mel frames, stacked mel frames or samples) to encoder frames."""
        return audio_stages(self.audio_config)

    @property
    def connector_stages(self) -> list[dict]:
        """Stages from encoder frames to audio tokens."""
        return connector_config(self.connector).stages(self.audio_window)

    @property
    def audio_window_inputs(self) -> int:
        """Input positions that make one full window of `audio_window` encoder frames."""
        return self.audio_window * receptive_field(self.audio_stages)[1]

    @property
    def audio_size(self) -> int:
        """Width of the encoder's frames."""
        return audio_size(self.audio_config)

    @property
    def audio_feature_size(self) -> int | None:
        """Features of one input position, None for raw samples."""
        return audio_feature_size(self.audio_config)

    @property
    def audio_layers(self) -> list[int]:
        """Encoder layers that the connector mixes, empty for the encoder's output alone.

        Raises:
            ValueError: layers that the encoder lacks, or whose frames its adapter makes fewer.
        """
        layers = connector_config(self.connector).layers
        count = audio_layer_count(self.audio_config) + 1
        layers = list(range(count)) if layers == "all" else layers or []
        if not all(-count <= layer < count for layer in layers):
            raise ValueError(f"Connector layers {layers} are not all from 0 to {count - 1}, which this encoder has.")
        layers = [layer % count for layer in layers]
        if has_adapter(self.audio_config) and layers:
            raise ValueError(
                "Connector layers: this encoder ends in an adapter, with fewer frames than its layers have, so they "
                "cannot be mixed. Load it without: load_encoder(..., config=...) with add_adapter=False there."
            )
        return layers

    @property
    def hidden_size(self) -> int:
        """Width of the LLM; DeepSpeed's "auto" values read it."""
        return self.text_config.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """As transformers' own, without the folders that the parts came from; `parents` names them on purpose."""
        content = super().to_dict()
        for name in self.sub_configs:
            content[name].pop("_name_or_path", None)
        if self._auto_class is None and not type(self).__module__.startswith("transformers_modules."):
            content.pop("auto_map", None)  # of an exported folder, whose code files do not go with what is saved here
        return content

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As transformers' own, but of a config that can be loaded again.

        Raises:
            ValueError: values set since it was made that no config can have, or fields that it does not know.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = os.path.join(folder, "config.json")
                self.to_json_file(file)
                type(self).from_json_file(file)
        except Exception as error:  # of any field, of any part's config
            raise ValueError(
                f"This config could not be loaded again, so it is not saved: {error} Correct what was set on it."
            ) from error
        super().save_pretrained(save_directory, **kwargs)

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
        audio = encoder_config(AutoConfig.from_pretrained(audio) if isinstance(audio, str) else audio)
        text = AutoConfig.from_pretrained(text) if isinstance(text, str) else text
        return cls(
            audio_config=copy.deepcopy(audio),  # a loaded model's config is its own
            text_config=copy.deepcopy(text.get_text_config(decoder=True)),
            connector=asdict(connector_config(connector)),
            **kwargs,
        )


_BASE_FIELDS = {field.name for field in fields(PreTrainedConfig)}

__all__ = ["AUDIO_TOKEN", "SpeechLLMConfig", "audio_stages"]
