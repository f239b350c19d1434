"""Batches by length: every row once, the same for every process count, and the same after a resume."""

import itertools
from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from trainers.data.sampling import LengthBatchSampler, StreamBatches, TrainingRows

COSTS = np.random.default_rng(0).integers(1, 31, 203).astype(float)
COSTS[17] = 30.0


def sampler(costs=COSTS, **changes) -> LengthBatchSampler:
    settings = {"batch_size": 8, "group_by_length": False, "seed": 1, "rank": 0, "world_size": 1}
    settings |= {"batch_size": None} if "budget" in changes else {}
    return LengthBatchSampler(costs, **settings | changes)


def all_ranks(world_size: int, epoch: int = 0, **settings) -> list[list[list[int]]]:
    """Row numbers per process and batch."""
    found = []
    for rank in range(world_size):
        one = sampler(rank=rank, world_size=world_size, **settings)
        one.set_epoch(epoch)
        batches = list(one)
        assert len(batches) == len(one)
        assert {key[0] for batch in batches for key in batch} == {epoch}
        found.append([[index for _, index in batch] for batch in batches])
    return found


def padded(batch: list[int], costs=COSTS) -> float:
    return max(costs[index] for index in batch) * len(batch)


KINDS = [{"batch_size": 8}, {"batch_size": 8, "group_by_length": True}, {"budget": 64.0}, {"batch_size": 1}]


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_row_comes_once_per_epoch_and_every_process_has_as_many_batches(settings, world_size):
    lengths = set()
    for epoch in range(3):
        ranks = all_ranks(world_size, epoch, **settings)
        assert Counter(itertools.chain(*itertools.chain(*ranks))) == Counter(range(len(COSTS)))
        lengths |= {len(batches) for batches in ranks}
    assert len(lengths) == 1


@pytest.mark.parametrize("rows", range(5, 40))
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_few_rows_divide_among_the_processes(rows, batch_size):
    ranks = all_ranks(5, costs=COSTS[:rows], batch_size=batch_size)
    assert Counter(itertools.chain(*itertools.chain(*ranks))) == Counter(range(rows))
    assert len({len(batches) for batches in ranks}) == 1
    assert max(len(batch) for batches in ranks for batch in batches) <= max(batch_size, 2)


def test_where_single_rows_do_not_divide_the_cheapest_go_in_twos():
    ranks = all_ranks(4, costs=[9.0, 1.0, 8.0, 2.0, 7.0], batch_size=1)
    assert sorted(sorted(batch) for batches in ranks for batch in batches) == [[0], [1, 3], [2], [4]]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_batches_are_a_function_of_seed_and_epoch(settings):
    first = all_ranks(2, 3, **settings)
    assert first == all_ranks(2, 3, **settings)
    assert first != all_ranks(2, 4, **settings)
    assert first != all_ranks(2, 3, seed=2, **settings)


@pytest.mark.parametrize("rows", [64, 68, 72, 202])
def test_one_optimizer_step_sees_the_same_rows_however_it_is_split(rows):
    costs = COSTS[:rows]

    def steps(world_size: int, batch_size: int, accumulation: int) -> list[set[int]]:
        ranks = all_ranks(world_size, costs=costs, batch_size=batch_size)
        micro = list(zip(*ranks, strict=True))
        groups = [micro[first : first + accumulation] for first in range(0, len(micro), accumulation)]
        return [{index for step in group for batch in step for index in batch} for group in groups]

    whole = steps(1, 8, 1)
    assert steps(1, 1, 8) == whole
    assert steps(2, 4, 1) == whole
    assert steps(2, 1, 4) == whole


def test_grouping_by_length_halves_the_padding_at_least():
    def padding(settings):
        batches = all_ranks(1, **settings)[0]
        return sum(padded(batch) for batch in batches) - COSTS.sum()

    assert padding({"group_by_length": True}) < padding({"group_by_length": False}) / 2


def test_no_batch_costs_more_than_the_budget_and_most_fill_it():
    for epoch in range(3):
        costs = [padded(batch) for batch in all_ranks(1, epoch, budget=64.0)[0]]
        assert max(costs) <= 64
        assert np.mean(costs) > 0.7 * 64


@pytest.mark.parametrize("settings", [{"group_by_length": True}, {"budget": 64.0}], ids=str)
def test_grouped_batches_do_not_come_in_order_of_length(settings):
    longest = [max(COSTS[index] for index in batch) for batch in all_ranks(1, **settings)[0]]
    ordered = sum(first <= second for first, second in itertools.pairwise(longest)) / (len(longest) - 1)
    assert 0.25 < ordered < 0.75


def test_rows_meet_other_rows_in_every_epoch_of_a_budget():
    batches = [{frozenset(batch) for batch in all_ranks(1, epoch, budget=64.0)[0]} for epoch in range(2)]
    assert len(batches[0] & batches[1]) < len(batches[0]) / 10


def test_rows_without_cost_fill_any_budget():
    ranks = all_ranks(1, costs=[0.0, 0.0, 3.0, 0.0], budget=3.0)
    assert sorted(itertools.chain(*ranks[0])) == [0, 1, 2, 3]


def test_a_row_over_the_budget_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"row 17 with 30\. Raise the budget to 30"):
        sampler(costs=np.where(np.arange(203) == 17, 30.0, 1.0), budget=20.0)


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0, None])
def test_a_row_without_usable_cost_is_named(cost):
    with pytest.raises(ValueError, match="first is row 2 with"):
        sampler(costs=[1.0, 2.0, cost, 1.0], budget=20.0)


def test_a_budget_under_which_the_processes_cannot_divide_the_rows_is_refused():
    with pytest.raises(ValueError, match="Raise the budget to 12, or leave out 1 rows"):
        sampler(costs=[6.0, 6.0, 6.0], budget=10.0, world_size=2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": None}, "exactly one"),
        ({"batch_size": 4, "budget": 3.0}, "exactly one"),
        ({"batch_size": 0}, "must be positive"),
        ({"rank": 2, "world_size": 2}, "rank must be from 0"),
        ({"costs": [1.0, 2.0], "world_size": 3}, "2 rows cannot be dealt to 3 processes"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sampler(**changes)


def test_rows_carry_their_draw():
    rows = TrainingRows(datasets.Dataset.from_dict({"text": ["a", "b", "c"]}))
    assert len(rows) == 3
    assert rows[(4, 1)] == {"text": "b", "draw": (4, 1)}


class Recorder(torch.nn.Module):
    """A model of one weight that keeps the rows it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, draws):
        self.seen.append(draws)
        return {"loss": self.weight * 0.0}


class SampledTrainer(Trainer):
    def get_train_dataloader(self):
        batches = LengthBatchSampler(
            self.train_dataset.rows["cost"], budget=64.0, group_by_length=True, seed=1, rank=0, world_size=1
        )
        loader = DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator)
        return prepare_data_loader(loader, num_processes=1, process_index=0)


def collate(rows: list[dict]) -> dict:
    return {"draws": [row["draw"] for row in rows]} if rows else {}


def trained(folder, resume: bool, **changes) -> list:
    rows = TrainingRows(datasets.Dataset.from_dict({"cost": COSTS[:60]}))
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **changes,
    )
    model = Recorder()
    trainer = SampledTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


@pytest.mark.slow
@pytest.mark.parametrize("save_steps", [5, 22], ids=["in the first epoch", "in the second epoch"])
def test_a_resumed_trainer_sees_the_batches_it_has_not_had(save_steps, tmp_path):
    settings = {"num_train_epochs": 3, "save_steps": save_steps}
    whole = trained(tmp_path / "whole", False, save_strategy="no", num_train_epochs=3)
    per_epoch = len(whole) // 3
    assert 5 < per_epoch < 22 < 2 * per_epoch
    trained(tmp_path / "broken", False, max_steps=save_steps, **settings)
    resumed = trained(tmp_path / "broken", True, **settings)
    assert resumed == whole[save_steps:]


def test_skipped_batches_are_those_of_the_epoch_set_afterwards():
    batches = sampler(budget=64.0, rank=1, world_size=2)
    loader = prepare_data_loader(DataLoader(range(203), batch_sampler=batches), num_processes=1, process_index=0)
    skipping = skip_first_batches(loader, 3)
    skipping.set_epoch(2)
    skipping.batch_sampler.batch_sampler.set_epoch(2)  # as transformers' Trainer does
    expected = sampler(budget=64.0, rank=1, world_size=2)
    expected.set_epoch(2)
    assert list(skipping.batch_sampler) == list(expected)[3:]


def stream(rows: int = 100, shards: int = 4) -> datasets.IterableDataset:
    table = datasets.Dataset.from_dict({"id": [f"row {i}" for i in range(rows)], "cost": COSTS[:rows]})
    return table.to_iterable_dataset(num_shards=shards)


def stream_batches(count: int, workers: int = 0, rows=None, **changes) -> list[list[dict]]:
    settings = {"budget": 64.0, "buffer_rows": 40, "seed": 1, "rank": 0, "world_size": 1} | changes
    batches = StreamBatches(rows or stream(), lambda row: row["cost"], **settings)
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    return list(itertools.islice(loader, count))


def stream_dataset(start: int) -> StreamBatches:
    return StreamBatches(
        stream(), lambda row: row["cost"], budget=64.0, buffer_rows=40, seed=1, rank=0, world_size=1, start=start
    )


def test_each_epoch_of_a_stream_gives_every_row_once_in_batches_within_the_budget():
    rows = list(itertools.chain(*stream_batches(150)))
    for epoch in range(2):
        of_epoch = [row for row in rows if row["draw"][0] == epoch]
        assert sorted(row["draw"][1] for row in of_epoch) == list(range(100))
        assert len({row["id"] for row in of_epoch}) == 100
    assert rows[-1]["draw"][0] >= 2
    assert max(max(row["cost"] for row in batch) * len(batch) for batch in stream_batches(150)) <= 64


def test_a_stream_is_read_in_another_order_in_every_epoch():
    rows = list(itertools.chain(*stream_batches(120, rows=stream(shards=8))))
    orders = [{row["draw"][1]: row["id"] for row in rows if row["draw"][0] == epoch} for epoch in range(2)]
    assert orders[0] != orders[1]
    batches = [{frozenset(row["id"] for row in batch) for batch in stream_batches(20, seed=seed)} for seed in (5, 6)]
    assert len(batches[0] & batches[1]) < 5


def test_the_processes_share_a_stream_in_turn():
    whole = stream_batches(20)
    halves = [stream_batches(10, rank=rank, world_size=2) for rank in range(2)]
    assert [batch for pair in zip(*halves, strict=True) for batch in pair] == whole


def test_a_stream_resumes_with_the_batches_it_has_not_had():
    whole = stream_batches(70, rank=1, world_size=2)
    resumed = stream_batches(70, rank=1, world_size=2, start=47)
    assert resumed[:47] == [[]] * 47
    assert resumed[47:] == whole[47:]


def test_the_batches_skipped_by_accelerate_are_the_empty_ones():
    def batches(start):
        rows = StreamBatches(
            stream(), lambda row: row["cost"], batch_size=4, buffer_rows=40, seed=1, rank=0, world_size=1, start=start
        )
        return prepare_data_loader(
            DataLoader(rows, batch_size=None, collate_fn=collate), num_processes=1, process_index=0
        )

    whole = list(itertools.islice(batches(0), 30))
    assert list(itertools.islice(skip_first_batches(batches(20), 20), 10)) == whole[20:]


class StreamedTrainer(Trainer):
    start = 0

    def get_train_dataloader(self):
        loader = DataLoader(stream_dataset(self.start), batch_size=None, collate_fn=self.data_collator)
        return prepare_data_loader(loader, num_processes=1, process_index=0, dispatch_batches=False)


@pytest.mark.slow
def test_a_resumed_trainer_reads_on_in_a_stream(tmp_path):
    def trained(name: str, resume: bool, start: int = 0, **changes) -> list:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / name),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            gradient_accumulation_steps=2,
            **changes,
        )
        model = Recorder()
        trainer = StreamedTrainer(model=model, args=arguments, train_dataset=stream_dataset(0), data_collator=collate)
        trainer.start = start
        trainer.train(resume_from_checkpoint=resume)
        return model.seen

    whole = trained("whole", False, max_steps=24, save_strategy="no")
    trained("broken", False, max_steps=20, save_steps=20)
    assert trained("broken", True, start=40, max_steps=24, save_strategy="no") == whole[40:]


def test_a_worker_gives_the_batches_of_the_main_process():
    assert stream_batches(30, workers=1) == stream_batches(30)


def test_a_stream_is_not_batched_by_several_workers(monkeypatch):
    monkeypatch.setattr("torch.utils.data.get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with pytest.raises(ValueError, match="batched in one place, not by 2 workers"):
        stream_batches(1)


def test_a_stream_names_what_is_wrong_with_its_rows():
    with pytest.raises(ValueError, match="no rows"):
        stream_batches(1, rows=stream().filter(lambda row: False))
    with pytest.raises(ValueError, match=r"row 'row \d+' .row \d+ of the stream. with .*Raise the budget to 30"):
        stream_batches(99, budget=10.0)
    with pytest.raises(ValueError, match="does not fill one batch"):
        stream_batches(1, budget=None, batch_size=41)
