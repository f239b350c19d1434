"""LoRA adapters on any group of a SpeechLLM."""

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modeling_speechllm.pretrained_speechllm import GROUPS


def lora_config(
    model: PreTrainedModel,
    groups: list[str],
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    modules: list[str] | None = None,
) -> LoraConfig:
    """
    Adapters on all linear layers of the groups, or on those of some names; the LLM's head is left out.

    Args:
        model: a SpeechLLM.
        groups: of `encoder`, `connector` and `llm`.
        rank, alpha, dropout: of the adapters.
        modules: last names of the linear layers, such as `k_proj`; None is all.

    Raises:
        ValueError: an unknown group, or a name that no linear layer of the groups has.
    """
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"lora_groups: no group {', '.join(unknown)}. Groups: {', '.join(GROUPS)}.")
    names = {"encoder": "audio_tower", "connector": "multi_modal_projector", "llm": "language_model"}
    targets = [
        f"model.{names[group]}.{name}"
        for group in groups
        for name, module in getattr(model.model, names[group]).named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    found = sorted({name.rpartition(".")[2] for name in targets})
    missing = sorted(set(modules or []) - set(found))
    if missing:
        raise ValueError(f"lora_modules: no linear layer is called {', '.join(missing)}, only {', '.join(found)}.")
    if modules is not None:
        targets = [name for name in targets if name.rpartition(".")[2] in modules]
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)


__all__ = ["lora_config"]
