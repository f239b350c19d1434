"""LoRA adapters added to the weights of their LLM, without PEFT, whose import takes longer than all of the rest.

Of plain LoRA alone: W + alpha / r * B A on linear layers (arXiv 2106.09685, equation 3). `plain` says whether an
adapter is; whatever else PEFT has, and whatever it will have, is PEFT's.
"""

import json
from collections.abc import Iterable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # before PEFT's names of weights
# What a config may say without another meaning of the weights. Other keys must be empty.
SAID = {
    *("peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
    *("lora_dropout", "bias", "init_lora_weights", "megatron_core", "qalora_group_size"),
}


def plain(config: dict[str, Any]) -> bool:
    """Whether an adapter's config is that of plain LoRA."""
    return (
        config.get("peft_type") == "LORA"
        and config.get("bias", "none") == "none"
        and config.get("init_lora_weights", True) in (True, False, "gaussian")
        and not any(value for key, value in config.items() if key not in SAID)
    )


def check_untied(model: PreTrainedModel, adapted: Iterable[nn.Module], adapter: str) -> None:
    """Raises a ValueError where an adapter of the head alone, or of the input embeddings alone, would be added to the
    weight that both are."""
    head = model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return
    if any(getattr(module, "weight", None) is head.weight for module in adapted):
        raise ValueError(
            f"Adapter {adapter!r} changes the LLM's head or its input embeddings, which are one weight in this LLM, "
            "so it cannot be added to them: both would change. Merge it into a copy of the LLM whose config has "
            "tie_word_embeddings=False, and give that as `text`."
        )


@torch.no_grad()
def add_plain_lora(model: PreTrainedModel, adapter: str, **hub: Any) -> bool:
    """
    Adds a plain LoRA adapter to the weights of a model, in place.

    Args:
        adapter: Hub id or folder.
        hub: how the Hub is reached.

    Returns:
        Whether it did; False, with nothing changed, for what is not plain LoRA on linear layers of this model.

    Raises:
        ValueError: it changes weights that the LLM's head and embeddings share, see [`check_untied`].
    """
    paths = [
        cached_file(adapter, name, _raise_exceptions_for_missing_entries=False, **hub) for name in (CONFIG, WEIGHTS)
    ]
    if None in paths:
        return False
    with open(paths[0], encoding="utf-8") as file:
        config = json.load(file)
    if not plain(config):
        return False
    weights, modules = load_file(paths[1]), dict(model.named_modules())
    pairs = {}
    for name in (key for key in weights if key.endswith(".lora_A.weight")):
        module = modules.get(name.removeprefix(PREFIX).removesuffix(".lora_A.weight"))
        first, second = weights[name], weights.get(name.replace(".lora_A.", ".lora_B."))
        # PEFT adds in the weight's precision; another class than this is quantised, sharded, or adapted already.
        if type(module) is not nn.Linear or second is None:
            return False
        if (len(second), first.shape[1]) != tuple(module.weight.shape) or len(first) != config["r"]:
            return False
        pairs[module] = (first, second)
    if not pairs or 2 * len(pairs) != len(weights):
        return False
    check_untied(model, pairs, adapter)
    for module, (first, second) in pairs.items():
        weight = module.weight
        first, second = first.to(weight.device, torch.float32), second.to(weight.device, torch.float32)
        change = (config["lora_alpha"] / config["r"]) * (second @ first)
        weight += change.to(weight.dtype)
    return True


__all__ = ["add_plain_lora", "check_untied"]
