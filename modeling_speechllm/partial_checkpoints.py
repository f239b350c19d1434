"""Checkpoints that hold the trained groups alone, beside the ids and revisions of their frozen parents."""

import os
from collections.abc import Iterable
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

TRAINED_FILE = "trained.safetensors"
# Arguments of `from_pretrained` that concern the checkpoint itself, and those that concern its frozen parents.
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
_PARENT_ARGUMENTS = (
    *("dtype", "torch_dtype", "device_map", "quantization_config", "attn_implementation", "max_memory"),
    *("offload_folder", "token", "cache_dir", "local_files_only"),
)


def check_keys(source: str, missing: Iterable, unexpected: Iterable, mismatched: Iterable) -> None:
    """Raises a ValueError that names the wrong keys of a checkpoint, if there are any."""
    findings = []
    for what, keys in (("is missing", missing), ("has unexpected", unexpected), ("has wrongly shaped", mismatched)):
        keys = sorted(keys)
        if keys:
            findings.append(f"{what} {len(keys)} weights ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    if findings:
        raise ValueError(
            f"The checkpoint {str(source)!r} {' and '.join(findings)}. Missing weights would be random, so it is not "
            "loaded. Use a complete checkpoint that matches its config.json; to keep only the trained part, save with "
            "save_pretrained(folder, trained_only=True)."
        )


def save_trained(model: PreTrainedModel, folder: str, state: dict[str, Any] | None = None) -> None:
    """Writes the groups of `model` that have trained parameters, see `SpeechLLMPreTrainedModel.save_pretrained`;
    `state` is its state dict where it had to be gathered."""
    trained = [
        group
        for group, modules in model.group_modules().items()
        if any(parameter.requires_grad for module in modules for parameter in module.parameters())
    ]
    if not trained:
        raise ValueError("trained_only: every group is frozen. Unfreeze one, or save the whole model.")
    if not model.config.parents:
        raise ValueError(
            "trained_only: the frozen parents are unknown, so the parts could not be put together again. Build the "
            "model with SpeechLLMForConditionalGeneration.from_parts from ids or folders, or save the whole model."
        )
    keys = model.group_keys(trained)
    state = model.state_dict() if state is None else state
    state = {key: value.contiguous().cpu() for key, value in state.items() if key in keys}
    os.makedirs(folder, exist_ok=True)
    partial = os.path.join(folder, TRAINED_FILE + ".partial")
    save_file(state, partial, metadata={"format": "pt"})
    os.replace(partial, os.path.join(folder, TRAINED_FILE))
    model.config.architectures = [type(model).__name__]
    model.config.trained_groups = trained
    try:
        model.config.save_pretrained(folder)
    finally:
        model.config.trained_groups = None
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def trained_groups(source: str, kwargs: dict[str, Any]) -> list[str] | None:
    """The groups that the checkpoint `source` holds, None if it is a whole one."""
    if kwargs.get("config") is not None:
        return getattr(kwargs["config"], "trained_groups", None)
    hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if kwargs.get(key) is not None}
    try:
        return PreTrainedConfig.get_config_dict(source, **hub)[0].get("trained_groups")
    except OSError:  # no config there: an adapter's folder, or a wrong name, which the caller reports better
        return None


def load_trained(model_class: type, source: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    """A `model_class` from the frozen parents of the checkpoint `source` and the weights in it.

    Raises:
        ValueError: keys that are missing, mismatched or unexpected, by name.
    """
    hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if kwargs.get(key) is not None}
    parent_kwargs = {key: kwargs[key] for key in _PARENT_ARGUMENTS if kwargs.get(key) is not None}
    config = kwargs.get("config") or model_class.config_class.from_pretrained(source, **hub)
    path = cached_file(source, TRAINED_FILE, **hub)
    groups, config.trained_groups = config.trained_groups, None
    model = model_class.from_parts(
        audio=config.parents["audio"]["id"],
        text=config.parents["text"]["id"],
        audio_revision=config.parents["audio"]["revision"],
        text_revision=config.parents["text"]["revision"],
        config=config,
        **parent_kwargs,
    )
    state, loaded, expected = model.state_dict(), load_file(path), model.group_keys(groups)
    mismatched = [key for key in loaded.keys() & expected if loaded[key].shape != state[key].shape]
    check_keys(source, expected - loaded.keys(), loaded.keys() - expected, mismatched)
    model.load_state_dict(loaded, strict=False)
    model.tie_weights()
    return model
