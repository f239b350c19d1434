"""What both SpeechLLM classes share: three groups of weights, frozen, saved and loaded by name.

A checkpoint can hold the trained parts alone; loading it fetches the frozen parents and checks every key.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .audio_families import WHISPER_FAMILIES
from .composition import without_zero_init
from .configuration_speechllm import SpeechLLMConfig
from .connector_base import Initialized
from .parents import check_keys, naming
from .partial_checkpoints import TRAINED_FILE, check_config_file, load_trained, save_trained, trained_groups

GROUPS = ("encoder", "connector", "llm")


class SpeechLLMPreTrainedModel(PreTrainedModel):
    """Loading, saving and freezing, common to both SpeechLLM classes."""

    config: SpeechLLMConfig
    config_class = SpeechLLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["cache", "past_key_values"]
    attention_was_chosen = False  # by `attn_implementation`: then trainers leave it as it is

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Initialized):
            module.initialize(self.config.initializer_range)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs: Any) -> None:
        """As in transformers; the connector follows the model's own, which a dict names `""`."""
        super().set_attn_implementation(attn_implementation, **kwargs)
        self.attention_was_chosen = True
        self.base_model.multi_modal_projector.set_attn_implementation(self.config._attn_implementation)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Initialised as transformers' own models are: it takes weights of other code that are all loaded for
        initialised, and then buffers that a module fills in its children (Falcon-H1's multipliers) stay empty."""
        return False

    def group_modules(self) -> dict[str, list[nn.Module]]:
        """The three groups that are frozen, trained and saved by name."""
        base = self.base_model
        llm = [base.language_model] + ([self.lm_head] if base is not self else [])
        return {"encoder": [base.audio_tower], "connector": [base.multi_modal_projector], "llm": llm}

    def freeze(self, *groups: str) -> None:
        """Stops training of `groups`: any of `"encoder"`, `"connector"`, `"llm"`."""
        self._require_grad(groups, False)

    def unfreeze(self, *groups: str) -> None:
        """Trains `groups`: any of `"encoder"`, `"connector"`, `"llm"`."""
        self._require_grad(groups, True)

    def _require_grad(self, groups: tuple[str, ...], value: bool) -> None:
        modules = self.group_modules()
        for group in groups:
            if group not in modules:
                raise ValueError(f"No parameter group {group!r}. Groups: {', '.join(GROUPS)}.")
            for module in modules[group]:
                module.requires_grad_(value)
        if self.config.audio_config.model_type in WHISPER_FAMILIES:  # sinusoids, never trained
            self.base_model.audio_tower.encoder.embed_positions.requires_grad_(False)

    def group_keys(self, groups: list[str]) -> set[str]:
        """State-dict keys of whole groups, tied copies left out."""
        names = {id(module): name for name, module in self.named_modules()}
        prefixes = tuple(names[id(module)] + "." for group in groups for module in self.group_modules()[group])
        tied = getattr(self, "all_tied_weights_keys", {})
        return {key for key in self.state_dict() if key.startswith(prefixes) and key not in tied}

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        trained_only: bool = False,
        storage: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves the whole model, or with `trained_only` what is not its parents' alone.

        Args:
            save_directory: folder.
            trained_only: write `trained.safetensors` with the connector and every group that is trained or whose
                weights differ from those of the parent it was loaded from (an adapter merged, resized embeddings),
                and into `config.json` the ids and revisions of the parents (known after `from_parts`).
            storage: with `trained_only`, hold the weights in fewer bits than they are computed in: `"float16"`,
                `"bfloat16"`, or `"int8"`, `"int6"`, `"int5"`, `"int4"` (a scale per 32 values). They are loaded in the
                precision of the model again. What a connector copied out of the LLM's embeddings, and did not train,
                is left out then.
            **kwargs: `PreTrainedModel.save_pretrained` arguments: `state_dict`, `is_main_process`, `push_to_hub`, ...

        Raises:
            ValueError: `trained_only` without known parents, or with adapters that are not merged; `storage` of a
                whole model, or one that is not known.
        """
        if trained_only:
            save_trained(self, save_directory, storage=storage, **kwargs)
            return
        if storage is not None:
            raise ValueError(
                f"storage={storage!r} is for the trained part. Add trained_only=True, or save a model in fewer bits: "
                "model.to(torch.bfloat16).save_pretrained(folder)."
            )
        if getattr(self, "is_quantized", False):
            self._weight_conversions = None  # bitsandbytes' have no way back; its weights are saved as they are
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):  # what an earlier call left would be loaded in its place by some
            Path(save_directory, TRAINED_FILE).unlink(missing_ok=True)

    @classmethod
    @without_zero_init()
    def from_pretrained(cls, pretrained_model_name_or_path: str | None, *args: Any, **kwargs: Any):
        """As `PreTrainedModel.from_pretrained`, but loud on any missing, mismatched or unexpected key.

        A folder saved with `trained_only=True` is merged with its frozen parents, which are loaded by the ids and
        revisions in its config; `dtype`, `device_map`, `quantization_config` and `attn_implementation` go to them.

        Raises:
            ValueError: keys that are missing, mismatched or unexpected, by name.
            OSError: a checkpoint or a parent that is not found, by name.
        """
        source = pretrained_model_name_or_path
        if source is None or kwargs.get("state_dict") is not None:
            return super().from_pretrained(source, *args, **kwargs)
        source = os.fspath(source)
        check_config_file(source, kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        if trained_groups(source, kwargs):
            with naming("SpeechLLM", source):
                model = cls._load_trained(source, kwargs)
            info = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        else:
            accepted = kwargs.pop("ignore_mismatched_sizes", False)
            with naming("SpeechLLM", source):
                model, info = super().from_pretrained(
                    source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
                )
            mismatched = [] if accepted else [key[0] for key in info["mismatched_keys"]]
            check_keys(source, info["missing_keys"], info["unexpected_keys"], mismatched)
        model.attention_was_chosen = kwargs.get("attn_implementation") is not None
        return (model, info) if wants_info else model

    @classmethod
    def _load_trained(cls, source: str, kwargs: dict[str, Any]) -> "SpeechLLMPreTrainedModel":
        return load_trained(cls, source, kwargs)


__all__ = ["GROUPS", "SpeechLLMPreTrainedModel"]
