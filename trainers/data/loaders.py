"""Data loaders whose batches are a function of seed and epoch, dealt to processes by ourselves, not by Accelerate."""

from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from tqdm import tqdm
from trl import SFTConfig

from processing_speechllm import SpeechLLMProcessor

from .collators import SpeechCollator
from .sampling import LengthBatchSampler, StreamBatches, TrainingRows

BATCHES_PER_WORKER = 4  # at least, for workers that nobody asked for


class EpochLoader(DataLoader):
    """A data loader that hands the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def is_stream(dataset: Any) -> bool:
    """Whether the dataset has no length."""
    return not hasattr(dataset, "__len__")


def count_tokens(row: dict[str, Any], processor: SpeechLLMProcessor) -> int:
    """Tokens that a row takes in the LLM, audio and text, without what the chat template adds."""
    texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
    texts = [text or "" for text in texts]
    for message in row.get("messages") or []:
        content = message["content"]
        texts = [*texts, content] if isinstance(content, str) else [*texts, *(b.get("text") or "" for b in content)]
    samples = round(row["duration"] * processor.feature_extractor.sampling_rate)
    return processor.audio_token_count(samples) + len(processor.tokenizer(" ".join(texts))["input_ids"])


def build_loader(
    dataset: Dataset | IterableDataset,
    collate: SpeechCollator,
    args: SFTConfig,
    rank: int,
    world_size: int,
    training: bool,
    start: int = 0,
    in_order: bool = False,
) -> DataLoader:
    """
    The batches of one process.

    Args:
        dataset: rows; `duration` (seconds) is needed for batches by length.
        collate: rows -> batch; its processor counts tokens.
        args: the trainer's `SpeechTrainingConfig`.
        rank, world_size: this process and how many there are.
        training: by `batch_seconds` or `batch_tokens` if set, else by `per_device_eval_batch_size`.
        start: batches of a stream that a resumed run has had.
        in_order: the rows as they stand in the dataset, as they also come where `train_sampling_strategy` is
            "sequential", and in evaluation unless it was set to "group_by_length" or there is a budget.

    Raises:
        ValueError: batches by length without durations, or a stream where a length or an order is needed.
    """
    budget = args.batch_seconds or args.batch_tokens
    sequential = args.train_sampling_strategy == "sequential"
    columns = dataset.column_names
    grouped = args.train_sampling_strategy == "group_by_length"
    if args.groups_by_default and not is_stream(dataset):
        grouped = training and "duration" in columns
    by_length = not in_order and (grouped or budget is not None)
    if (by_length or is_stream(dataset)) and columns is not None and "duration" not in columns:
        raise ValueError(
            "Batches by length, and batches of a stream, need the column 'duration' (seconds). Add it with "
            "trainers.data.loading.with_durations."
        )
    budget = budget if training else None
    batch_size = args.per_device_train_batch_size if training else args.per_device_eval_batch_size
    limits = {
        "batch_size": None if budget else batch_size,
        "budget": budget,
        "seed": args.data_seed if args.data_seed is not None else args.seed,
        "rank": rank,
        "world_size": world_size,
    }

    stay = training and args.workers_by_default

    def settings(batches: float) -> dict[str, Any]:
        """Of a loader of so many batches, which few do not need all the workers for that come by default; these stay
        from epoch to epoch of a training."""
        workers = args.dataloader_num_workers
        if args.workers_by_default:
            workers = int(min(workers, batches // BATCHES_PER_WORKER))
        return {
            "collate_fn": collate,
            "num_workers": workers,
            "pin_memory": args.dataloader_pin_memory and torch.accelerator.is_available(),
            # What is random about a row comes with its key, so workers that stay make the batches of new ones.
            "persistent_workers": bool(workers and (args.dataloader_persistent_workers or stay)),
            "prefetch_factor": args.dataloader_prefetch_factor if workers else None,
            "multiprocessing_context": args.dataloader_multiprocessing_context if workers else None,
            "in_order": args.dataloader_in_order,
        }

    def cost(row: dict[str, Any]) -> float:
        return count_tokens(row, collate.processor) if args.batch_tokens else row["duration"]

    if is_stream(dataset):
        if not training:
            raise ValueError("An eval_dataset must have a length. Make one: Dataset.from_list(list(stream.take(n))).")
        if sequential:
            raise ValueError(
                "A stream is mixed within buffer_size rows; leave train_sampling_strategy at its default."
            )
        batches = StreamBatches(dataset, cost, buffer_rows=args.buffer_size, start=start, **limits)
        return DataLoader(batches, batch_size=None, **settings(BATCHES_PER_WORKER))  # batched in one place
    if training and args.batch_tokens:
        needed = [name for name in ("text", "messages", "duration") if name in columns]
        costs = list(map(cost, tqdm(dataset.select_columns(needed), desc="Counting tokens")))
    else:
        costs = dataset["duration"] if by_length else [1.0] * len(dataset)
    shuffle = training and not (sequential or in_order)
    steps = world_size * args.gradient_accumulation_steps if training else 1
    sampler = LengthBatchSampler(costs, group_by_length=by_length, step_batches=steps, shuffle=shuffle, **limits)
    return EpochLoader(TrainingRows(dataset), batch_sampler=sampler, **settings(len(sampler)))


__all__ = ["EpochLoader", "build_loader", "count_tokens", "is_stream"]
