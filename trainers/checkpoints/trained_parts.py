"""Which weights are trained, in what they are held and how fast: groups in full, in float32, adapters beside them."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_speechllm.pretrained_speechllm import GROUPS

HALF = (torch.bfloat16, torch.float16)
QUANTIZED = ("is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit")  # as transformers marks such models
MODULES = {"encoder": ["audio_tower"], "connector": ["multi_modal_projector"], "llm": ["language_model", "lm_head"]}
GATE = "gate"  # of a query bank, within the connector
PARTS = (*GROUPS, GATE)  # that can have a learning rate of their own


def train_groups(model: PreTrainedModel, groups: Sequence[str]) -> None:
    """
    Freezes all groups of a SpeechLLM but these, which are then held in float32.

    Raises:
        ValueError: a quantised LLM among them.
    """
    if "llm" in groups and getattr(model, "is_quantized", False):
        raise ValueError(
            "A quantised LLM cannot be trained in full. Take llm out of train_groups and train it by LoRA "
            "(lora_groups: [llm]), or load it without quantization."
        )
    model.freeze(*GROUPS)
    model.unfreeze(*groups)
    hold_in_float32(model)


@contextmanager
def beside_quantized(model: PreTrainedModel, adapters: bool) -> Iterator[None]:
    """
    Lets a trainer be made for a model with a quantised, frozen LLM: what is trained beside it stays as it is.

    transformers refuses quantised models without adapters, as if their quantised weights were to be trained; TRL
    rounds all that is trained beside quantised weights to bf16; and bitsandbytes, on CPUs with AVX512-BF16, lays 4-bit
    weights out anew at the first forward without gradients, through which none pass any more.
    """
    if not getattr(model, "is_quantized", False):
        yield
        return
    packed = [module for module in model.modules() if getattr(module, "support_avx512bf16_for_cpu", False)]
    if packed:
        model.state_dict()  # lays the weights out as they were
    for module in packed:
        module.support_avx512bf16_for_cpu = False
    marks = {name: model.__dict__.pop(name) for name in QUANTIZED if name in model.__dict__ and not adapters}
    trained = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    if not adapters:
        model.is_quantized = False
    yield
    vars(model).update(marks)
    for name, value in model.named_parameters():
        plain = name.replace("modules_to_save.default.", "").replace("base_layer.", "")
        if value.requires_grad and value.dtype in HALF:
            value.data = trained[plain].clone() if plain in trained else value.data.float()


def hold_in_float32(model: PreTrainedModel) -> None:
    """Trained weights of half precision, and the buffers beside them, become float32, in place: at the usual learning
    rates a step is smaller than bf16 can tell apart. Those that transformers has sharded as it loaded them stay as
    they are."""
    if model.is_distributed_loading_by_transformers:
        return
    for modules in model.group_modules().values():
        for module in modules:
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            for tensor in [*trained, *module.buffers()] if trained else []:
                if tensor.dtype in HALF:
                    tensor.data = tensor.data.float()


def beside_adapters(peft_config: Any, groups: Sequence[str]) -> Any:
    """
    A PEFT config with which groups are trained, and saved, in full beside its adapters.

    Raises:
        ValueError: prompt learning, which has no place in prompts with audio, or adapters on a group that is trained
            in full.
    """
    if peft_config.is_prompt_learning:
        raise ValueError(
            f"{type(peft_config).__name__} puts learned tokens before the prompt, which the trainers' prompts with "
            "audio have no place for. Take LoRA (trainers.lora_config), or train the connector in full."
        )
    named = peft_config.target_modules if isinstance(peft_config.target_modules, (list, set)) else []
    twice = [group for group in groups if any(name.startswith(f"model.{MODULES[group][0]}.") for name in named)]
    if twice:
        raise ValueError(f"{', '.join(twice)}: in train_groups and under adapters too. Take it out of one of the two.")
    peft_config = copy.copy(peft_config)
    whole = [name for group in groups for name in MODULES[group]]
    peft_config.modules_to_save = [*(peft_config.modules_to_save or []), *whole] or None
    return peft_config


def part_of(name: str) -> str | None:
    """The part, of `PARTS`, that a parameter of a trained model, wrapped or not, belongs to by its name."""
    parts = name.split(".")
    group = next((group for group, modules in MODULES.items() if set(modules) & set(parts)), None)
    return GATE if group == "connector" and {"bank", GATE} <= set(parts) else group


def own_rates(named: Iterable[tuple[str, nn.Parameter]], rates: Mapping[str, float]) -> dict[nn.Parameter, float]:
    """
    The trained parameters whose learning rate is not the common one, with theirs.

    Args:
        named: the model's parameters by name.
        rates: by part, of `PARTS`; a gate without one of its own goes with its connector.

    Raises:
        ValueError: a part of which nothing is trained.
    """
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in rates}
    for name, value in named:
        part = part_of(name)
        part = "connector" if part == GATE and GATE not in rates else part
        if value.requires_grad and part in rates:
            parts[part].append(value)
    for part, values in parts.items():
        if not values:
            whence = "only a query bank has one: `languages` and `gate` among the connector's settings"
            whence = whence if part == GATE else "by train_groups, or by LoRA on it"
            raise ValueError(
                f"learning_rates: nothing of {part} is trained. Leave it out, or have it trained ({whence})."
            )
    return {value: rates[part] for part, values in parts.items() for value in values}


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Mapping[nn.Parameter, float]) -> None:
    """
    Splits the groups of an optimizer that has made no step yet, and no scheduler, by their parameters' own rates.

    Raises:
        ValueError: an optimizer that does not hold the parameters.
    """
    held = {value for group in optimizer.param_groups for value in group["params"]}
    if not held.issuperset(rates):
        raise ValueError(
            f"learning_rates: {type(optimizer).__name__} does not hold the model's parameters one by one, so they "
            "cannot have rates of their own. Take another optim, or leave learning_rates out."
        )
    split = []
    for group in optimizer.param_groups:
        by_rate: dict[float | None, list[nn.Parameter]] = {}
        for value in group["params"]:
            by_rate.setdefault(rates.get(value), []).append(value)
        split += [
            {**group, "params": values, "lr": group["lr"] if rate is None else rate}
            for rate, values in by_rate.items()
        ]
    common = optimizer.defaults["lr"]  # comes first where it is in use: the rate of the first group is logged
    optimizer.param_groups[:] = sorted(split, key=lambda group: group["lr"] != common)


def tie_head(model: PreTrainedModel) -> None:
    """Makes head and embeddings of an LLM one again, which PEFT has copied each for itself."""
    head, embeddings = (
        getattr(module, "modules_to_save", None) for module in (model.lm_head, model.model.language_model)
    )
    if head is None or embeddings is None:
        return
    for name, copied in head.items():
        embedding: nn.Module = embeddings[name].get_input_embeddings()
        copied.weight = embedding.weight


def has_tied_head(model: PreTrainedModel) -> bool:
    """Whether the LLM's head is its embeddings."""
    return model.lm_head.weight is model.get_input_embeddings().weight


__all__ = [
    "PARTS",
    "beside_adapters",
    "beside_quantized",
    "has_tied_head",
    "hold_in_float32",
    "own_rates",
    "set_learning_rates",
    "tie_head",
    "train_groups",
]
