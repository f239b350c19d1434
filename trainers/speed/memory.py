"""Whether the activations of a training fit into memory, or are to be computed again in the backward pass.

Arithmetic on lengths and sizes, on the safe side: a layer of an LLM keeps 12 numbers per position and unit of its
width and 4 per unit of its inner width (counted with `saved_tensors_hooks` for Llama, Qwen2, Gemma 2, Phi 3, GPT-NeoX
and OLMoE in float32 and bf16: 0.4 to 1.0 of that), and twice what comes out must be free.
"""

from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from processing_speechllm import SpeechLLMProcessor, stage_length

PER_WIDTH, PER_INNER_WIDTH = 12, 4  # numbers that a layer keeps for each position
ROOM = 2  # times the estimate that must be free
SAMPLED = 1000  # rows whose texts are measured
CHARACTERS_PER_TOKEN = 2  # fewer than any common script and tokenizer have
TEMPLATE = 64  # positions of a chat template and an instruction


class LargestBatch(NamedTuple):
    """The most that a batch of one device can have, padding included."""

    rows: int
    longest: int  # LLM positions of a row
    frames: int  # encoder frames of all rows

    @property
    def positions(self) -> int:
        return self.rows * self.longest


def largest_batch(rows: Dataset, processor: SpeechLLMProcessor, args: Any) -> LargestBatch:
    """Of rows with durations, by the trainer's settings; texts are measured in a sample."""
    seconds = max(rows["duration"], default=0.0)
    samples = round(seconds * processor.feature_extractor.sampling_rate)
    frames = stage_length(samples, [*processor.feature_stages, *processor.audio_stages])
    names = [name for name in ("text", "messages") if name in rows.column_names]
    step = max(len(rows) // SAMPLED, 1)
    texts = rows.select_columns(names).select(range(0, len(rows), step)) if names else []
    characters = max((sum(len(str(value)) for value in row.values()) for row in texts), default=0)
    longest = processor.audio_token_count(samples) + characters // CHARACTERS_PER_TOKEN + TEMPLATE
    count = args.per_device_train_batch_size
    if args.batch_tokens:
        count = max(args.batch_tokens // longest, 1)
    elif args.batch_seconds:
        count = max(int(args.batch_seconds // max(seconds, 1e-3)), 1)
    return LargestBatch(count, longest, count * frames)


def activations_of_llm(config: Any, batch: LargestBatch, size: int) -> int:
    """Bytes that an LLM's layers keep for the backward pass, `size` for a number."""
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    inner = max(inner) if isinstance(inner, (list, tuple)) else inner
    inner *= getattr(config, "num_experts_per_tok", None) or 1
    layers, kept = config.num_hidden_layers, PER_WIDTH * config.hidden_size + PER_INNER_WIDTH * inner
    bytes_kept = batch.positions * layers * kept * size
    if config._attn_implementation == "eager":  # it keeps the weights, which are made in float32
        heads = getattr(config, "num_attention_heads", 1)
        bytes_kept += batch.rows * layers * heads * batch.longest**2 * (size + 4)
    return bytes_kept


def activations_of(modules: list[nn.Module], frames: int) -> int:
    """Bytes that the linear layers of trained modules and what follows them keep, in float32."""
    linear = [part for module in modules for part in module.modules() if isinstance(part, nn.Linear)]
    return 6 * frames * sum(part.in_features + part.out_features for part in linear)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free where a model will be trained; None where that is not known."""
    if device.type == "cpu":
        free = psutil.virtual_memory().available
        limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
        if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text) - int(used.read_text()))
        return free
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return None


def activations_fit(
    model: PreTrainedModel, rows: Any, processor: SpeechLLMProcessor, args: Any, runs_llm: bool
) -> bool:
    """
    Whether a training can keep its activations.

    Args:
        model: the SpeechLLM, with what is trained requiring gradients.
        rows: the training set; a stream, or rows without `duration`, is not known well enough, so they do not.
        processor, args: the trainer's.
        runs_llm: whether the objective runs the LLM.
    """
    free = free_memory(args.device)
    if free is None or not isinstance(rows, Dataset) or "duration" not in rows.column_names:
        return False
    batch = largest_batch(rows, processor, args)
    parameters = list(model.parameters())
    absent = [tensor for tensor in parameters if tensor.device.type != args.device.type]  # will be moved there
    trained = sum(tensor.numel() for tensor in parameters if tensor.requires_grad)
    needed = (
        sum(tensor.numel() * tensor.element_size() for tensor in absent) + 12 * trained
    )  # gradients, Adam's states
    groups = model.group_modules()
    for group in ("encoder", "connector"):
        if any(tensor.requires_grad for module in groups[group] for tensor in module.parameters()):
            needed += ROOM * activations_of(groups[group], batch.frames)
    if runs_llm:
        size = max(next(model.model.language_model.parameters()).element_size(), 2)
        needed += ROOM * activations_of_llm(model.config.text_config, batch, size)
    return needed <= free


__all__ = ["LargestBatch", "activations_fit", "activations_of_llm", "free_memory", "largest_batch"]
