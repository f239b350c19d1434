"""Data loaders whose batches are a function of seed and epoch, dealt to processes by ourselves, not by Accelerate."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from .sampling import LengthBatchSampler, StreamBatches, TrainingRows
from .speech_config import SpeechTrainingConfig


class EpochLoader(DataLoader):
    """A data loader that hands the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def is_stream(dataset: Any) -> bool:
    """Whether the dataset has no length."""
    return not hasattr(dataset, "__len__")


def build_loader(
    dataset: Dataset | IterableDataset,
    collate: Callable[[list[dict]], dict],
    args: SpeechTrainingConfig,
    rank: int,
    world_size: int,
    training: bool,
    start: int = 0,
) -> DataLoader:
    """
    The batches of one process.

    Args:
        dataset: rows; `duration` (seconds) is needed for batches by length.
        collate: rows -> batch.
        args: the trainer's config.
        rank, world_size: this process and how many there are.
        training: in order of the seed and by `batch_seconds`, else by `per_device_eval_batch_size`.
        start: batches of a stream that a resumed run has had.

    Raises:
        ValueError: batches by length without durations, or a stream where a length is needed.
    """
    by_length = args.train_sampling_strategy == "group_by_length" or args.batch_seconds is not None
    columns = dataset.column_names
    if (by_length or is_stream(dataset)) and columns is not None and "duration" not in columns:
        raise ValueError(
            "Batches by length, and batches of a stream, need the column 'duration' (seconds). Add it with "
            "trainers.data.with_durations."
        )
    budget = args.batch_seconds if training else None
    batch_size = args.per_device_train_batch_size if training else args.per_device_eval_batch_size
    limits = {
        "batch_size": None if budget else batch_size,
        "budget": budget,
        "seed": args.data_seed if args.data_seed is not None else args.seed,
        "rank": rank,
        "world_size": world_size,
    }
    workers = args.dataloader_num_workers
    settings = {
        "collate_fn": collate,
        "num_workers": workers,
        "pin_memory": args.dataloader_pin_memory and torch.accelerator.is_available(),
        "persistent_workers": bool(workers and args.dataloader_persistent_workers),
        "prefetch_factor": args.dataloader_prefetch_factor if workers else None,
    }
    if is_stream(dataset):
        if not training:
            raise ValueError("An eval_dataset must have a length. Make one: Dataset.from_list(list(stream.take(n))).")
        batches = StreamBatches(
            dataset, cost=lambda row: row["duration"], buffer_rows=args.buffer_size, start=start, **limits
        )
        return DataLoader(batches, batch_size=None, **settings)
    costs = dataset["duration"] if by_length else [1.0] * len(dataset)
    sampler = LengthBatchSampler(costs, group_by_length=by_length, **limits)
    return EpochLoader(TrainingRows(dataset), batch_sampler=sampler, **settings)


__all__ = ["EpochLoader", "build_loader", "is_stream"]
