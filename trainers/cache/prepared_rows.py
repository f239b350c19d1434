"""Rows on their way to the encoder: read once, decoded in threads, put into batches by length."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from processing_speechllm import AudioError

from .frame_cache import audio_keys


@dataclass
class PreparedRow:
    """A row whose audios are features.

    Args:
        id: of the row.
        row: all its columns.
        features: of each audio by its key, `(features, positions)` or `(samples,)`.
        masks: of each audio, `(positions or samples,)`, 1 where valid.
        seconds: of each audio by its key.
        error: why it cannot be used.
    """

    id: str
    row: dict
    features: dict[str, np.ndarray] = field(default_factory=dict)
    masks: list[np.ndarray] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def longest(self) -> int:
        """Positions of its longest audio."""
        return max(feature.shape[-1] for feature in self.features.values())


def numbered_rows(
    rows: Iterable[dict], seen: set[str], process: int = 0, processes: int = 1
) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Ids and readers of one process's rows, every `processes`-th.

    Of a `datasets.Dataset` a row is read when its reader is called; others are gone through whole by every process.

    Args:
        rows: a data set, a stream, or any iterable of rows.
        seen: gets the ids of all rows; may hold keys that no row may have.
        process, processes: which part.

    Raises:
        ValueError: a row without an id, or with one that was seen.
    """
    if isinstance(rows, Dataset):
        ids = list(rows["id"]) if "id" in rows.column_names else [None] * len(rows)
        readers = ((row_id, lambda number=number: rows[number]) for number, row_id in enumerate(ids))
    else:
        readers = ((row.get("id"), lambda row=row: row) for row in rows)
    for number, (row_id, read) in enumerate(readers):
        if not isinstance(row_id, str) or not row_id:
            raise ValueError(
                f"Row {number} has no id (found {row_id!r}), by which the cache would find it. Give every row a text "
                "`id` of its own."
            )
        reserve(row_id, seen)
        if number % processes == process:
            yield row_id, read


def reserve(key: str, seen: set[str]) -> None:
    """Adds a key to those seen, and refuses one that is there already."""
    if key in seen:
        raise ValueError(f"Two rows would be {key!r} in the cache. Give every row an id of its own.")
    seen.add(key)


def prepare_row(processor: Any, row_id: str, row: dict, decode: bool = True) -> PreparedRow:
    """Decodes a row's audio and makes its features; what is wrong with an audio becomes the row's `error`."""
    prepared, audio = PreparedRow(row_id, row), row["audio"]
    if not decode:
        return prepared
    try:
        for key, source in zip(audio_keys(row_id, audio), audio if isinstance(audio, list) else [audio], strict=False):
            samples = processor.load_audio(source)
            inputs = processor.audio_inputs([samples])  # alone: padding to the batch comes later
            prepared.features[key] = inputs["input_features"][0]
            prepared.masks.append(inputs["input_features_mask"][0])
            prepared.seconds[key] = len(samples) / processor.feature_extractor.sampling_rate
    except AudioError as error:
        prepared.error = str(error)
    return prepared


def in_threads(function: Callable, items: Iterable, threads: int) -> Iterator:
    """`map(function, items)` in order, a few items ahead of the one asked for."""
    if threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        running: deque = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 4 * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def windows_of(rows: Iterable[PreparedRow], seconds: float) -> Iterator[list[PreparedRow]]:
    """Rows in lists that hold about `seconds` of audio; a row counts as a second at least."""
    window, held = [], 0.0
    for row in rows:
        window.append(row)
        held += max(sum(row.seconds.values()), 1.0)
        if held >= seconds:
            yield window
            window, held = [], 0.0
    if window:
        yield window


def batches_by_length(rows: list[PreparedRow], positions: float) -> Iterator[list[PreparedRow]]:
    """Whole rows, the longest first, in batches whose audios take at most so many feature positions, padding included;
    a row that takes more is a batch of its own."""
    batch, audios = [], 0
    for row in sorted(rows, key=lambda row: -row.longest):
        if batch and batch[0].longest * (audios + len(row.features)) > positions:
            yield batch
            batch, audios = [], 0
        batch.append(row)
        audios += len(row.features)
    if batch:
        yield batch


def pad_features(features: list[np.ndarray]) -> torch.Tensor:
    """Features `(..., positions)` of several audios -> `(audios, ..., positions)`, zero at the end, as the processor
    pads them."""
    longest = max(feature.shape[-1] for feature in features)
    padded = np.zeros((len(features), *features[0].shape[:-1], longest), dtype=features[0].dtype)
    for row, feature in enumerate(features):
        padded[row, ..., : feature.shape[-1]] = feature
    return torch.from_numpy(padded)


__all__ = [
    "PreparedRow",
    "batches_by_length",
    "in_threads",
    "numbered_rows",
    "pad_features",
    "prepare_row",
    "reserve",
    "windows_of",
]
