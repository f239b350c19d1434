"""Which rows make a batch: batches by length, the same for every process count and after every resume.

What is unusual here:
- Everything is a function of (seed, epoch): no state is saved, a resumed run makes the same batches and drops those
  it has had. Samplers yield (epoch, index) keys, from which a row's own random choices are drawn.
- Each row comes exactly once per epoch, whatever the number of processes: nothing is repeated or dropped to make the
  batches even. Batches of the last round are split instead.
- A sampler serves one process (`rank`) and must not be sharded again: prepare its `DataLoader` with
  `accelerate.data_loader.prepare_data_loader(..., num_processes=1, process_index=0)`.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets import IterableDataset as Stream

POOL_BATCHES = 50  # batches at most whose rows are sorted by cost together: more pads less and mixes less
BUCKET_BATCHES = 10  # batches a bucket of a budget has at least: more mixes better and fills worse


class LengthBatchSampler(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """
    Batches of (epoch, row index) keys for one process; use it as a `DataLoader`'s `batch_sampler`.

    With `batch_size`, rows are permuted and dealt in turn to the processes, so that one process with batch 8, with
    batch 1 and 8 accumulation steps, or two processes with batch 4 see the same rows in every optimizer step. With
    `group_by_length`, rows of like cost share an optimizer step, which is `step_batches` batches; the incomplete step
    comes last.

    With `budget`, a batch has as many rows as fit: rows x cost of the costliest <= budget. Rows are bucketed by cost;
    a bucket's batch size is the budget over its costliest row, so the number of batches is the same in every epoch
    while the rows in them change. Rows are always grouped by length then.

    The number of batches is the same on every process: batches of the last round are split until each process has
    one. Where even single rows do not divide among the processes, the cheapest rows go in twos.

    Args:
        costs (`Sequence[float]`): cost per row, such as seconds of audio or tokens; finite, not negative.
        batch_size (`int`, *optional*): rows per batch and process.
        budget (`float`, *optional*): largest padded cost of a batch, in the unit of `costs`. Exactly one of
            `batch_size` and `budget` must be given.
        group_by_length (`bool`): sort pools of 50 optimizer steps (a quarter of all, if that is fewer) by cost.
        seed (`int`): seed of the order.
        rank (`int`): number of this process.
        world_size (`int`): number of processes.
        step_batches (`int`, *optional*, defaults to 1): batches of an optimizer step, of all processes together; read
            with `batch_size` and `group_by_length`.
        shuffle (`bool`, *optional*, defaults to `True`): in random order; otherwise in that of the rows. Rows that are
            grouped by length come in random order all the same.

    Raises:
        ValueError: a cost is no cost or over the budget, or the rows cannot be dealt to the processes.
    """

    def __init__(
        self,
        costs: Sequence[float],
        *,
        batch_size: int | None = None,
        budget: float | None = None,
        group_by_length: bool,
        seed: int,
        rank: int,
        world_size: int,
        step_batches: int = 1,
        shuffle: bool = True,
    ):
        self.costs = np.asarray(costs, dtype=np.float64)
        self.batch_size, self.budget, self.group_by_length = batch_size, budget, group_by_length
        self.seed, self.rank, self.world_size, self.shuffle = seed, rank, world_size, shuffle
        self.step_batches = None if budget else step_batches
        self.epoch = 0
        _check_limits(batch_size, budget)
        _check_place(rank, world_size)
        _check_costs(self.costs, budget)
        rows = len(self.costs)
        if rows < world_size:
            raise ValueError(
                f"{rows} rows cannot be dealt to {world_size} processes: each needs at least one. Use at most {rows} "
                "processes, or give more rows."
            )
        self._buckets = _buckets(self.costs, batch_size, budget)
        planned = sum(-(-len(bucket) // size) for bucket, size in self._buckets)
        rounds_up = -(-planned // world_size) * world_size
        self._batches = rounds_up if rounds_up <= rows else rows // world_size * world_size
        if budget is not None and rounds_up > rows:
            _check_pairs(self.costs, budget, world_size)

    def __len__(self) -> int:
        """Batches of this process per epoch."""
        return self._batches // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for batch in self._plan(epoch)[self.rank :: self.world_size]:
            yield [(epoch, index) for index in batch.tolist()]

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """The epoch's batches of all processes, in the order in which they are dealt."""
        generator = _generator(self.seed, epoch)
        grouped = self.group_by_length or self.budget is not None
        if self.shuffle or grouped:
            batches = _cut(self._buckets, self.costs, grouped, generator, self.step_batches)
            return _even_out(batches, self.costs, self.world_size)
        rows = np.arange(len(self.costs))
        batches = [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]
        return sorted(_even_out(batches, self.costs, self.world_size), key=lambda batch: batch[0])


class TrainingRows(torch.utils.data.Dataset):
    """
    A `datasets.Dataset` addressed by the keys of `LengthBatchSampler`.

    `rows[(epoch, index)]` is the row `index` as a dict, with `"draw": (epoch, index)` added: what is random about the
    row (augmentation, prompt) is drawn from that and the seed.
    """

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.rows[key[1]] | {"draw": key}


class StreamBatches(torch.utils.data.IterableDataset):
    """
    Batches by length from a stream: endless lists of rows; use it with `DataLoader(batch_size=None)`.

    Every process reads the whole stream, batches it alike, and yields every `world_size`-th batch. A buffer is filled
    with `buffer_rows` rows and cut into batches as by `LengthBatchSampler` with its `budget` or `group_by_length`;
    half of them come, in random order, before the buffer is filled again. At its end the stream is read again, its
    shards in another order. Rows get `"draw": (epoch, position in the stream)`.

    Resume: the first `start` batches of this process come as empty lists, without their rows being decoded. They keep
    their places because transformers' `Trainer` counts and drops the batches that a resumed run has had; a collator
    gives `{}` for them. The cost is that of reading the stream up to there again, undecoded.

    Works in the main process or in one `DataLoader` worker; more would read different parts of the stream. Prepare the
    `DataLoader` as that of a `LengthBatchSampler`, and with `dispatch_batches=False`.

    Args:
        rows (`datasets.IterableDataset`): the stream, with undecoded audio.
        cost (`Callable[[dict], float]`): a row's cost, such as its seconds of audio.
        batch_size (`int`, *optional*): rows per batch.
        budget (`float`, *optional*): largest padded cost of a batch; exactly one of the two must be given.
        buffer_rows (`int`): rows batched together; more pads less and costs memory.
        seed, rank, world_size (`int`): as for `LengthBatchSampler`.
        start (`int`, *optional*, defaults to 0): batches of this process that a resumed run has had.

    Raises:
        ValueError: as `LengthBatchSampler`, when the row comes; or the stream has no rows.
    """

    def __init__(
        self,
        rows: Stream,
        cost: Callable[[dict], float],
        *,
        batch_size: int | None = None,
        budget: float | None = None,
        buffer_rows: int,
        seed: int,
        rank: int,
        world_size: int,
        start: int = 0,
    ):
        _check_limits(batch_size, budget)
        _check_place(rank, world_size)
        if buffer_rows < (batch_size or 1):
            raise ValueError(
                f"buffer_rows={buffer_rows} does not fill one batch. Give at least {batch_size or 1}; fifty times "
                "that mixes well."
            )
        # Shards only: the shuffle buffer of `datasets` gives a worker another order than the main process.
        self.rows = rows.shuffle(seed=seed, buffer_size=1)
        self.cost, self.batch_size, self.budget, self.buffer_rows = cost, batch_size, budget, buffer_rows
        self.seed, self.rank, self.world_size, self.start = seed, rank, world_size, start

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"A stream is batched in one place, not by {worker.num_workers} workers. Set dataloader_num_workers "
                "to 0 or 1, or load the dataset without streaming."
            )
        mine = itertools.islice(self._all_batches(), self.rank, None, self.world_size)
        for number, batch in enumerate(mine):
            yield batch if number >= self.start else []

    def _all_batches(self) -> Iterator[list[dict[str, Any]]]:
        """The batches of all processes, epoch after epoch."""
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            generator = _generator(self.seed, epoch)
            unread = (row | {"draw": (epoch, index)} for index, row in enumerate(self.rows))
            buffer, ended, empty = [], False, True
            while not ended:
                buffer += itertools.islice(unread, self.buffer_rows - len(buffer))
                ended = len(buffer) < self.buffer_rows
                batches = self._cut_buffer(buffer, generator) if buffer else []
                empty = empty and not batches
                now = len(batches) if ended else -(-len(batches) // 2)
                yield from batches[:now]
                buffer = [row for batch in batches[now:] for row in batch]
            if empty:
                raise ValueError("The stream has no rows. Check the split and the filters.")

    def _cut_buffer(self, buffer: list[dict[str, Any]], generator: np.random.Generator) -> list[list[dict[str, Any]]]:
        costs = np.asarray([self.cost(row) for row in buffer], dtype=np.float64)
        names = [f"{row.get('id', '')!r} (row {row['draw'][1]} of the stream)" for row in buffer]
        _check_costs(costs, self.budget, names)
        batches = _cut(_buckets(costs, self.batch_size, self.budget), costs, True, generator)
        return [[buffer[index] for index in batch] for batch in batches]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng(random.Random(f"{seed}|{epoch}").getrandbits(64))


def _check_limits(batch_size: int | None, budget: float | None) -> None:
    if (batch_size is None) == (budget is None):
        raise ValueError(f"Give exactly one of batch_size ({batch_size}) and budget ({budget}).")
    limit = budget if batch_size is None else batch_size
    if not limit > 0:
        raise ValueError(f"batch_size ({batch_size}) or budget ({budget}) must be positive.")


def _check_place(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, not {rank} of {world_size}.")


def _check_costs(costs: np.ndarray, budget: float | None, names: Sequence[str] | None = None) -> None:
    """Refuse costs that are no costs (not finite, negative) or over the budget; `names` are the rows'."""
    wrong = np.flatnonzero(~np.isfinite(costs) | (costs < 0))
    if len(wrong):
        name = names[wrong[0]] if names else wrong[0]
        raise ValueError(
            f"{len(wrong)} rows have no usable cost, the first is row {name} with {costs[wrong[0]]}. Costs are finite "
            "and not negative; set aside rows whose length is unknown (`with_durations` does)."
        )
    over = np.flatnonzero(costs > budget) if budget is not None else []
    if len(over):
        name, highest = names[over[0]] if names else over[0], costs[over].max()
        raise ValueError(
            f"{len(over)} rows cost more than the budget of {budget:g} per batch, the first is row {name} with "
            f"{costs[over[0]]:g}. Raise the budget to {highest:g} at least, or filter such rows out (`max_seconds`)."
        )


def _check_pairs(costs: np.ndarray, budget: float, world_size: int) -> None:
    """Refuse a budget under which the cheapest rows, too many by `surplus`, cannot go in twos."""
    surplus = len(costs) % world_size
    highest = 2 * np.sort(costs)[2 * surplus - 1]
    if highest > budget:
        raise ValueError(
            f"{len(costs)} rows, each its own batch under the budget of {budget:g}, do not divide among {world_size} "
            f"processes. Raise the budget to {highest:g}, or leave out {surplus} rows."
        )


def _buckets(costs: np.ndarray, batch_size: int | None, budget: float | None) -> list[tuple[np.ndarray, int]]:
    """(rows, batch size) per bucket. With a budget: from the costliest row on, a bucket ends where more rows fit."""
    if budget is None:
        return [(np.arange(len(costs)), batch_size)]
    order = np.argsort(-costs, kind="stable")
    descending, buckets, first = costs[order], [], 0
    while first < len(order):
        size = _rows_that_fit(budget, descending[first], len(order))
        last = first + size * BUCKET_BATCHES
        while last < len(order) and _rows_that_fit(budget, descending[last], len(order)) == size:
            last += size
        buckets.append((order[first:last], size))
        first = last
    return buckets


def _rows_that_fit(budget: float, cost: float, rows: int) -> int:
    return min(rows, math.floor(budget / cost)) if cost * rows > budget else rows


def _cut(
    buckets: list[tuple[np.ndarray, int]],
    costs: np.ndarray,
    grouped: bool,
    generator: np.random.Generator,
    step_batches: int | None = None,
) -> list[np.ndarray]:
    """Batches of row numbers. Grouped: sorted by cost in pools, and steps of `step_batches` in random order, with one
    that is not full at the end; without `step_batches` single batches in random order."""
    if not grouped:
        batches = []
        for rows, size in buckets:
            rows = generator.permutation(rows)
            batches += [rows[first : first + size] for first in range(0, len(rows), size)]
        return batches
    steps, last = [], []
    for rows, size in buckets:
        rows, whole = generator.permutation(rows), size * (step_batches or 1)
        pool = whole * max(1, min(POOL_BATCHES, len(rows) // whole // 4))
        pools = [rows[first : first + pool] for first in range(0, len(rows), pool)]
        rows = np.concatenate([part[np.argsort(costs[part], kind="stable")] for part in pools])
        if step_batches and (over := len(rows) % whole):
            first = whole * int(generator.integers(len(rows) // whole + 1))  # rows of any one length
            last.append((rows[first : first + over], size))
            rows = np.delete(rows, slice(first, first + over))
        steps += [(rows[first : first + whole], size) for first in range(0, len(rows), whole)]
    ordered = [steps[number] for number in generator.permutation(len(steps))] + last
    return [step[first : first + size] for step, size in ordered for first in range(0, len(step), size)]


def _even_out(batches: list[np.ndarray], costs: np.ndarray, world_size: int) -> list[np.ndarray]:
    """As many batches as processes divide, by splitting those of the last round, largest first."""
    surplus = len(batches) % world_size
    if surplus == 0:
        return batches
    if len(costs) < len(batches) - surplus + world_size:
        return _pair_up(batches, costs, world_size)
    head, tail = batches[:-surplus], batches[-surplus:]
    donor = len(head) - 1
    while len(tail) < world_size:
        largest = max(range(len(tail)), key=lambda number: len(tail[number]))
        if len(tail[largest]) > 1:
            tail[largest : largest + 1] = np.array_split(tail[largest], 2)
            continue
        while len(head[donor]) == 1:
            donor -= 1
        head[donor], spare = np.array_split(head[donor], 2)
        tail.append(spare)
    return head + tail


def _pair_up(batches: list[np.ndarray], costs: np.ndarray, world_size: int) -> list[np.ndarray]:
    """Single rows, of which the cheapest go in twos until the processes divide the batches."""
    rows = np.concatenate(batches)
    surplus = len(rows) % world_size
    cheapest = np.argsort(costs, kind="stable")[: 2 * surplus]
    partner = dict(zip(cheapest[::2].tolist(), cheapest[1::2].tolist(), strict=True))
    taken = set(partner.values())
    return [np.array([row, partner[row]] if row in partner else [row]) for row in rows.tolist() if row not in taken]
