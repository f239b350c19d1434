"""Checkpoints that hold what differs from the frozen parents alone, beside the parents' ids and revisions.

What differs is found by comparison, not by `requires_grad`: a merged adapter, an LLM trained and then frozen, and
resized embeddings are all saved. Every weight of a parent has a digest from the moment that it was loaded.
"""

import copy
import json
import os
from contextlib import nullcontext
from typing import Any

import torch
from huggingface_hub import create_repo
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.initialization import no_init_weights
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.modeling_utils import _add_variant
from transformers.utils.hub import cached_file

from .audio_encoders import new_encoder
from .packed_weights import pack, unpack
from .parents import (
    ADAPTER,
    HUB_ARGUMENTS,
    SOURCE_ARGUMENTS,
    check_keys,
    chosen,
    located_parents,
    naming,
    relative_to_checkpoint,
)

TRAINED_FILE = "trained.safetensors"
# Arguments of `from_pretrained` that concern the checkpoint itself, and those that concern its frozen parents.
_CHECKPOINT_ARGUMENTS = (*HUB_ARGUMENTS, "revision", "subfolder")
_PARENT_ARGUMENTS = (
    *("dtype", "torch_dtype", "device_map", "quantization_config", "attn_implementation", "experts_implementation"),
    *("max_memory", "offload_folder", "offload_buffers", "trust_remote_code", "use_safetensors", "weights_only"),
    *("low_cpu_mem_usage", "use_kernels", "disable_mmap"),
)
# What Auto classes and pipelines hand on beside the caller's own arguments.
_INTERNAL_ARGUMENTS = ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "code_revision", "tqdm_class")
_ROW = 256  # words of 8 bytes

COPIED = "copied"  # of the file's metadata: keys that are left out, see `Connector.copied`

Digests = dict[str, dict[torch.dtype, tuple]]  # of every weight, in its own and in each coarser precision


def digest(tensor: torch.Tensor) -> tuple | None:
    """Shape of a tensor and exact sums over its bits, told apart by place; None where it cannot be read (on the meta
    device, or of a class of its own, as some quantised weights are), which cannot be trained either.

    No hash of all bytes, so that it costs little where the weights are: one of 8 billion weights takes seconds.
    """
    tensor = tensor.detach()
    if type(tensor) is not torch.Tensor or tensor.device.type == "meta":
        return None
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    whole = len(flat) // (8 * _ROW) * (8 * _ROW)
    # A checkpoint may be mapped from its file at any byte, words of 8 bytes may not.
    aligned = flat[:whole] if flat.data_ptr() % 8 == 0 else flat[:whole].clone()
    words = aligned.view(torch.int64).unflatten(0, (-1, _ROW))
    sums = (_sum_by_place(part) for part in (words.sum(1), words.sum(0), flat[whole:].to(torch.int64)))
    return tuple(tensor.shape), *sums


def _sum_by_place(values: torch.Tensor) -> int:
    """Sum of integers times their places from 1, modulo 2^64."""
    return int((values * torch.arange(1, len(values) + 1, device=values.device)).sum())


def weight_digests(state: dict[str, torch.Tensor]) -> Digests:
    """Digests of weights as they are, and of float32 ones as half precision would have them."""
    digests = {}
    for key, tensor in state.items():
        coarser = (torch.bfloat16, torch.float16) if tensor.dtype == torch.float32 else ()
        digests[key] = {dtype: digest(tensor.to(dtype)) for dtype in (tensor.dtype, *coarser)}
    return digests


def is_unchanged(tensor: torch.Tensor, known: dict[torch.dtype, tuple]) -> bool:
    """Whether a weight still is the one that these digests are of, whatever its precision now."""
    if tensor.dtype in known:
        now = digest(tensor)
        return now is None or now == known[tensor.dtype]
    original = next(iter(known))
    if tensor.is_floating_point() and original.is_floating_point and original.itemsize < tensor.dtype.itemsize:
        before = tensor.to(original)  # a wider precision holds the same values exactly
        return torch.equal(before.to(tensor.dtype), tensor) and digest(before) == known[original]
    return False


def record_parents(model: PreTrainedModel, groups: list[str]) -> None:
    """Remembers what the weights of these groups are now, when they were just loaded from their parents."""
    state = model.state_dict()
    for group in groups:
        model.parent_digests[group] = weight_digests({key: state[key] for key in model.group_keys([group])})


def changed_groups(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> list[str]:
    """The groups of `model` that are not its parents': the connector, those with trained parameters, and those whose
    weights in `state` differ from what was loaded.

    Raises:
        ValueError: a group whose weights have other names than its parent's, as with adapters that are not merged.
    """
    modules = model.group_modules()
    trained = {name for name, parts in modules.items() if any(p.requires_grad for m in parts for p in m.parameters())}
    trained.add("connector")  # has no parent
    if not modules.keys() <= trained | model.parent_digests.keys():  # loaded whole, or joined of objects
        model.parent_digests |= _loaded_again(model).parent_digests | model.parent_digests
    changed = []
    for group in modules:
        keys, known = model.group_keys([group]), model.parent_digests.get(group)
        if known is None:  # loaded from a checkpoint that holds it whole
            changed.append(group)
            continue
        if strange := sorted(keys ^ known.keys()):
            raise ValueError(
                f"trained_only: the {group}'s weights are not named as its parent's ({', '.join(strange[:2])}), so "
                "they could not be put back. Merge adapters first (merge_and_unload), save them with PEFT's own "
                "save_pretrained, or save the whole model."
            )
        if group in trained or not all(is_unchanged(state[key], known[key]) for key in keys):
            changed.append(group)
    return changed


def _loaded_again(model: PreTrainedModel) -> PreTrainedModel:
    """A new model joined of the parents that `model` names."""
    options = {"dtype": model.model.language_model.dtype, "config": copy.deepcopy(model.config)}
    if getattr(model, "hf_quantizer", None) is not None:
        options["quantization_config"] = model.hf_quantizer.quantization_config
    return type(model).from_parts(**parent_arguments(model.config.parents), **options)


def parent_arguments(parents: dict[str, dict]) -> dict[str, Any]:
    """Arguments of `from_parts` that name these parents again."""
    audio, text = parents["audio"], parents["text"]
    return {
        "audio": audio["id"],
        "text": text["id"],
        "audio_revision": audio["revision"],
        "text_revision": text["revision"],
        **chosen(text, SOURCE_ARGUMENTS),
        **({"text_adapter": text[ADAPTER]} if text.get(ADAPTER) else {}),
    }


def save_trained(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    state_dict: dict[str, Any] | None = None,
    *,
    storage: str | None = None,
    is_main_process: bool = True,
    push_to_hub: bool = False,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    token: str | bool | None = None,
    **hub: Any,
) -> None:
    """Writes what differs from the parents of `model`, see `SpeechLLMPreTrainedModel.save_pretrained`.

    Args:
        state_dict: the model's where it had to be gathered.
        storage: fewer bits, see `save_pretrained`.
        is_main_process: False writes nothing.
        push_to_hub: upload the folder too, with `**hub` (`repo_id`, `private`, `commit_message`, `create_pr`).
        variant: part of the weights' name, as in transformers.
        max_shard_size: has no effect, the trained part is one file.
    """
    if not is_main_process:
        return
    if not model.can_generate():
        raise ValueError(
            "trained_only needs the model with its head. Load the checkpoint with "
            "SpeechLLMForConditionalGeneration, or save the whole model."
        )
    if not model.config.parents:
        raise ValueError(
            "trained_only: the frozen parents are unknown, so the parts could not be put together again. Build the "
            "model with SpeechLLMForConditionalGeneration.from_parts from ids or folders, or save the whole model."
        )
    state = model.state_dict() if state_dict is None else state_dict
    groups = changed_groups(model, state)
    keys = model.group_keys(groups)
    if strangers := sorted(keys - state.keys()):
        raise ValueError(
            f"trained_only: the state dict lacks {len(strangers)} weights ({', '.join(strangers[:3])}). Gather all of "
            "it, or save the whole model."
        )
    weights = {}
    for key in sorted(keys):
        tensor = load_offloaded_parameter(model, key) if state[key].device.type == "meta" else state[key]
        weights[key] = tensor.contiguous().cpu()
    metadata = {"format": "pt"}
    if storage is not None:
        left_out = copied_keys(model, weights)
        weights = pack({key: value for key, value in weights.items() if key not in left_out}, storage)
        metadata[COPIED] = json.dumps(left_out)
    folder = os.fspath(folder)
    os.makedirs(folder, exist_ok=True)
    if push_to_hub:
        hub_names = {name: hub.pop(name) for name in ("commit_message", "create_pr") if name in hub}
        name = hub.pop("repo_id", os.path.basename(os.path.abspath(folder)))
        repo = create_repo(name, exist_ok=True, token=token, **hub).repo_id
        timestamps = model._get_files_timestamps(folder)
    elif hub:
        raise TypeError(f"save_pretrained with trained_only takes no {', '.join(sorted(hub))} without push_to_hub.")
    file = os.path.join(folder, _add_variant(TRAINED_FILE, variant))
    save_file(weights, file + ".partial", metadata=metadata)
    os.replace(file + ".partial", file)
    _write_config(model, folder, groups)
    if push_to_hub:
        model._upload_modified_files(folder, repo, timestamps, token=token, **hub_names)


def connector_copies(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What the connector copied out of the LLM's embeddings, or would, by key of the model's state."""
    connector = model.base_model.multi_modal_projector
    name = next(name for name, module in model.named_modules() if module is connector)
    embeddings = model.embedding_weight()
    return {f"{name}.{key}": value for key, value in connector.copied(embeddings).items()}


def copied_keys(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> list[str]:
    """Keys of `weights` that still are what the connector copied."""
    copies = connector_copies(model)
    return sorted(key for key, value in copies.items() if key in weights and torch.equal(weights[key], value.cpu()))


def _write_config(model: PreTrainedModel, folder: str, groups: list[str]) -> None:
    """The config of a checkpoint with these groups, the generation config, and remote code where the model is."""
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = model.model.language_model.dtype
    parents, config.parents = config.parents, relative_to_checkpoint(config.parents, folder)
    config.trained_groups = groups
    try:
        if model.is_remote_code():
            custom_object_save(model, folder, config=config)
        config.save_pretrained(folder)
    finally:
        config.trained_groups, config.parents = None, parents
    model.generation_config.save_pretrained(folder)


def check_config_file(source: str, kwargs: dict[str, Any]) -> None:
    """Raises an OSError for a folder without a config, in whose place transformers would take the defaults: a model of
    billions of random weights."""
    folder = os.path.join(os.path.expanduser(source), kwargs.get("subfolder") or "")
    names = ("config.json", "adapter_config.json")
    if kwargs.get("config") is None and os.path.isdir(folder):
        if not any(os.path.isfile(os.path.join(folder, name)) for name in names):
            raise OSError(
                f"SpeechLLM {source!r} could not be loaded: there is no config.json in {folder}. Give the folder that "
                "save_pretrained wrote, whole, or pass config=..."
            )


def trained_groups(source: str, kwargs: dict[str, Any]) -> list[str] | None:
    """The groups that the checkpoint `source` holds, None if it is a whole one."""
    if isinstance(kwargs.get("config"), PreTrainedConfig):
        return getattr(kwargs["config"], "trained_groups", None)
    hub = chosen(kwargs, _CHECKPOINT_ARGUMENTS)
    try:
        return PreTrainedConfig.get_config_dict(kwargs.get("config") or source, **hub)[0].get("trained_groups")
    except OSError:  # no config there: an adapter's folder, or a wrong name, which the caller reports better
        return None


def load_trained(model_class: type, source: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    """A `model_class` from the frozen parents of the checkpoint `source` and the weights in it.

    Raises:
        TypeError: arguments that neither the checkpoint, nor its config, nor its parents take.
        ValueError: keys that are missing, mismatched or unexpected, by name.
        OSError: a parent that is not found, by name.
    """
    hub = chosen(kwargs, _CHECKPOINT_ARGUMENTS)
    for_parents = chosen(kwargs, (*_PARENT_ARGUMENTS, *HUB_ARGUMENTS))
    config, generation_config = kwargs.get("config"), kwargs.get("generation_config")
    taken = {*_CHECKPOINT_ARGUMENTS, *_PARENT_ARGUMENTS, *_INTERNAL_ARGUMENTS}
    taken |= {"config", "generation_config", "variant", "ignore_mismatched_sizes"}
    rest = {name: value for name, value in kwargs.items() if name not in taken}
    if isinstance(config, PreTrainedConfig):
        config = copy.deepcopy(config)
    else:
        config, rest = model_class.config_class.from_pretrained(
            config or source, return_unused_kwargs=True, **hub, **rest
        )
    if rest:
        raise TypeError(
            f"A checkpoint of trained parts takes no argument {', '.join(sorted(rest))}. Leave it out, or load the "
            "checkpoint without, save it whole, and load that with it."
        )
    path = cached_file(source, _add_variant(TRAINED_FILE, kwargs.get("variant")), **hub)
    with naming("SpeechLLM", source), safe_open(path, "pt") as file:  # a damaged one
        copied = json.loads((file.metadata() or {}).get(COPIED, "[]"))
        loaded = unpack({key: file.get_tensor(key) for key in file.keys()})
    groups, config.trained_groups = config.trained_groups, None
    parents = config.parents = located_parents(config.parents, source)
    for_parents.setdefault("dtype", for_parents.pop("torch_dtype", None) or config.dtype)
    arguments = parent_arguments(parents)
    if "encoder" in groups:  # its parent's weights are not needed
        attention = for_parents.get("attn_implementation")
        attention = attention.get("audio_config") if isinstance(attention, dict) else attention
        with no_init_weights():
            arguments |= {"audio": new_encoder(config.audio_config, attention), "audio_revision": None}
    # What is new gets its weights from the checkpoint: drawing them first would only take time.
    with no_init_weights() if "connector" in groups else nullcontext():
        model = model_class.from_parts(**arguments, config=config, **for_parents)
    model.config.parents = parents
    if "encoder" in groups:
        model.parent_digests["encoder"] = None
    if "llm" in groups:
        _fit_embeddings(model, loaded)
    state, expected = model.state_dict(), model.group_keys(groups) - set(copied)
    mismatched = [key for key in loaded.keys() & expected if loaded[key].shape != state[key].shape]
    check_keys(source, expected - loaded.keys(), loaded.keys() - expected, mismatched)
    model.load_state_dict(loaded, strict=False)
    model.tie_weights()
    if copied:
        copies = connector_copies(model)
        check_keys(source, set(copied) - copies.keys(), [], [])
        model.load_state_dict({key: copies[key] for key in copied}, strict=False)
    model.config.name_or_path = model.name_or_path = str(source)  # the latter is what PEFT records
    model.generation_config = generation_config or _generation_config(source, hub) or model.generation_config
    return model


def _fit_embeddings(model: PreTrainedModel, loaded: dict[str, torch.Tensor]) -> None:
    """Gives the LLM as many embeddings as the checkpoint has, where they were resized."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    rows = loaded.get(f"{name}.weight", embeddings.weight).shape[0]
    if rows != embeddings.weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _generation_config(source: str, hub: dict[str, Any]) -> GenerationConfig | None:
    """The checkpoint's own, None where it has none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return GenerationConfig.from_pretrained(source, **hub)
    except OSError:
        folder = os.path.join(os.path.expanduser(source), hub.get("subfolder") or "")
        if os.path.exists(os.path.join(folder, "generation_config.json")):
            raise
        return None


__all__ = ["TRAINED_FILE", "check_config_file", "check_keys", "load_trained", "save_trained", "trained_groups"]
