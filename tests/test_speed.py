"""What is fast by default changes no loss: attention's backward pass, kept activations, batches by length, workers."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from factories_training import tiny_parts, tone_rows
from test_trainers import build, logged
from torch.nn import functional as F

from trainers import SpeechAlignmentConfig, SpeechImitationConfig
from trainers.data.sampling import LengthBatchSampler
from trainers.objectives.chunks import sum_over_chunks
from trainers.speed import attention, memory
from trainers.speed.attention import BackwardByProducts, fast_backward

# Attention


def gradients(function, tensors, dtype):
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    output = function(*tensors)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output))
    return output, [tensor.grad for tensor in tensors]


@pytest.mark.parametrize("masked", ["causal", "padding", "added", "whole"])
def test_the_backward_pass_by_products_gives_the_gradients_of_pytorch(masked):
    torch.manual_seed(0)
    tensors = [torch.randn(3, 2, 7, 4) for _ in range(3)]
    mask = torch.ones(3, 1, 7, 7, dtype=torch.bool).tril()
    mask[0, :, :, 5:] = False
    mask[0, :, 0] = False  # a place that attends to nothing
    mask = {"padding": mask, "added": torch.randn(3, 1, 7, 7)}.get(masked)
    causal = masked == "causal"

    def products(query, key, value):
        return BackwardByProducts.apply(query, key, value, mask, causal, 0.5)

    def plain(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=0.5)

    expected_output, expected = gradients(plain, tensors, torch.float32)
    output, found = gradients(products, tensors, torch.float32)
    assert torch.equal(output, expected_output)
    torch.testing.assert_close(found, expected)


def test_attention_is_fast_in_training_alone_and_only_where_nobody_chose_it(tmp_path, monkeypatch):
    seen = []

    class Watched(BackwardByProducts):
        @staticmethod
        def backward(ctx, gradient):
            seen.append(gradient.dtype)
            return BackwardByProducts.backward(ctx, gradient)

    monkeypatch.setattr(attention, "BackwardByProducts", Watched)
    losses = {}
    for chosen in (False, True):
        model, processor = tiny_parts()
        model.to(torch.bfloat16)
        model.attention_was_chosen = chosen
        seen.clear()
        trainer = build("imitation", tmp_path / str(chosen), None, model, processor, max_steps=2)
        trainer.train()
        losses[chosen] = logged(trainer)
        layers = len(model.model.language_model.layers)
        assert seen == [] if chosen else seen == [torch.bfloat16] * 2 * layers
    assert losses[False][0] == losses[True][0]
    assert losses[False] == pytest.approx(losses[True], rel=1e-2)


def test_an_attention_that_was_asked_for_is_remembered():
    model, _ = tiny_parts()
    assert not model.attention_was_chosen
    model.set_attn_implementation("sdpa")
    assert model.attention_was_chosen


def test_the_attention_of_others_is_put_back():
    functions = attention.ALL_ATTENTION_FUNCTIONS
    with pytest.raises(KeyError), fast_backward():
        assert functions["sdpa"] is attention.attention_with_products
        raise KeyError
    assert functions["sdpa"] is not attention.attention_with_products
    with fast_backward(wanted=False):
        assert functions["sdpa"] is not attention.attention_with_products


# Losses


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_a_frozen_head_runs_once_for_each_position(trained):
    weight, runs = torch.randn(5, 3, requires_grad=trained), []

    def head(hidden):
        runs.append(len(hidden))
        return hidden @ weight.T

    def of_chunk(hidden):
        return head(hidden).logsumexp(-1).sum(), torch.tensor(len(hidden))

    hidden = torch.randn(7, 3, requires_grad=True)
    total, count = sum_over_chunks(of_chunk, hidden, [], head, 4)
    (3 * total).backward()
    expected = torch.autograd.grad(3 * (hidden @ weight.T).logsumexp(-1).sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected)
    assert count == 7 and sum(runs) == (14 if trained else 7)


def test_a_cross_entropy_without_a_weight_is_of_evaluations_alone(tmp_path):
    rows = tone_rows(answered=True)
    weights = {"cross_entropy_weight": 0.0, "divergence_weight": 1.0}
    trainer = build("imitation-divergence", tmp_path, rows, eval_rows=rows, max_steps=1, **weights)
    trainer.train()
    assert "divergence" in trainer.state.log_history[0] and "cross_entropy" not in trainer.state.log_history[0]
    assert {"eval_cross_entropy", "eval_token_accuracy", "eval_divergence"} <= trainer.evaluate().keys()


# Defaults


def test_what_is_set_stays_and_what_is_not_follows_what_is_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.speech_config.spare_cores", lambda: 3)
    args = SpeechImitationConfig(str(tmp_path))
    assert args.groups_by_default and args.train_sampling_strategy == "group_by_length"
    assert args.workers_by_default and args.dataloader_num_workers == 3
    assert args.checkpoints_by_default
    given = {"train_sampling_strategy": "random", "dataloader_num_workers": 0, "gradient_checkpointing": False}
    args = SpeechAlignmentConfig(str(tmp_path), **given)
    assert not (args.groups_by_default or args.workers_by_default or args.checkpoints_by_default)
    assert (args.train_sampling_strategy, args.dataloader_num_workers) == ("random", 0)


@pytest.mark.parametrize(("cores", "processes", "workers"), [(2, 1, 0), (4, 1, 3), (16, 1, 8), (16, 4, 3), (8, 4, 0)])
def test_workers_leave_a_core_to_the_training(cores, processes, workers, monkeypatch):
    from trainers.speech_config import spare_cores

    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert spare_cores() == workers


@pytest.mark.parametrize(
    ("given", "launched", "bf16"), [(False, "bf16", False), (None, "bf16", True), (True, "no", True)]
)
def test_what_is_said_of_bf16_comes_before_what_the_launch_config_says(given, launched, bf16, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    args = SpeechImitationConfig(str(tmp_path), bf16=given, use_cpu=True)
    assert args.bf16 == bf16 and args.mixed_precision == ("bf16" if bf16 else "no")


def test_rows_of_all_processes_are_counted_together(tmp_path):
    trainer = build("imitation", tmp_path, max_bad_share=0.01)

    class Two:  # the other process has had as many rows and none of them bad
        num_processes = 2

        def reduce(self, counts, reduction):
            return counts + torch.tensor([counts[0], 0])

    trainer.accelerator, trainer._rows_seen, trainer._rows_bad = Two(), 126, 2
    trainer._check_bad_rows()
    trainer._rows_bad, trainer.state.global_step = 3, 1
    trainer._check_bad_rows()  # every tenth update
    trainer.state.global_step = 10
    with pytest.raises(RuntimeError, match="3 of 252 rows"):
        trainer._check_bad_rows()
    trainer.eval_dataset = tone_rows(1)
    with pytest.raises(ValueError, match="eval_dataset: 1 rows to evaluate cannot be dealt to 2 processes"):
        trainer._check_evaluation()


def test_workers_that_nobody_asked_for_stay_for_all_epochs_of_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.speech_config.spare_cores", lambda: 2)
    rows = tone_rows(32)
    trainer = build("imitation", tmp_path, rows, per_device_train_batch_size=4, per_device_eval_batch_size=4)
    loader = trainer.get_train_dataloader()
    assert loader.num_workers == 2 and loader.persistent_workers
    assert not trainer.get_eval_dataloader(rows).persistent_workers
    asked = build("imitation", tmp_path, rows, dataloader_num_workers=2).get_train_dataloader()
    assert asked.num_workers == 2 and not asked.persistent_workers


def test_workers_that_stay_make_the_batches_of_workers_that_are_new(tmp_path):
    def batches(stays: bool) -> list:
        settings = {"dataloader_num_workers": 2, "dataloader_persistent_workers": stays}
        settings |= {"augmentation": {"noise_probability": 1.0}}
        loader = build("imitation", tmp_path, tone_rows(16), per_device_train_batch_size=4, **settings)
        loader, found = loader.get_train_dataloader(), []
        for epoch in range(2):
            loader.set_epoch(epoch)
            found += [batch["input_features"] for batch in loader]
        return found

    for one, other in zip(batches(True), batches(False), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_rows_without_durations_come_in_random_batches_as_before(tmp_path):
    rows = tone_rows().remove_columns("duration")
    trainer = build("imitation", tmp_path, rows)
    assert not trainer.get_train_dataloader().batch_sampler.group_by_length
    assert build("imitation", tmp_path).get_train_dataloader().batch_sampler.group_by_length
    asked = build("imitation", tmp_path, rows, train_sampling_strategy="group_by_length")
    with pytest.raises(ValueError, match="need the column 'duration'"):
        asked.get_train_dataloader()


@pytest.mark.parametrize("free", ["ample", "short", "unknown"])
def test_activations_are_computed_again_where_they_do_not_fit(free, tmp_path, monkeypatch):
    size = {"ample": 1 << 40, "short": 1 << 10, "unknown": None}[free]
    monkeypatch.setattr("trainers.speed.memory.free_memory", lambda device: size)
    trainer = build("imitation", tmp_path, gradient_checkpointing=None)
    assert trainer.args.gradient_checkpointing == trainer.args.activation_checkpointing == (free != "ample")


def test_the_largest_batch_follows_the_settings():
    _, processor = tiny_parts()
    rows = Dataset.from_list([{"duration": 2.0, "text": "a" * 100}, {"duration": 1.0, "text": "b"}])
    settings = {"per_device_train_batch_size": 4, "batch_tokens": None, "batch_seconds": None}
    batch = memory.largest_batch(rows, processor, SimpleNamespace(**settings))
    longest = processor.audio_token_count(32_000) + 50 + memory.TEMPLATE
    assert batch == (4, longest, 4 * 100) and batch.positions == 4 * longest
    by_seconds = memory.largest_batch(rows, processor, SimpleNamespace(**settings | {"batch_seconds": 6.0}))
    assert by_seconds.rows == 3


def test_the_estimate_of_activations_is_no_less_than_what_is_kept():
    model, _ = tiny_parts()
    llm, kept = model.model.language_model, {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in llm.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other gets its address
        return tensor

    embeddings = torch.randn(4, 32, llm.config.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        llm(inputs_embeds=embeddings, use_cache=False)
    counted = sum(size for size, _ in kept.values())
    estimate = memory.activations_of_llm(llm.config, memory.LargestBatch(4, 32, 0), 4)
    assert counted <= memory.ROOM * estimate and estimate <= 10 * counted


# Batches by length


@pytest.mark.parametrize("rows", [32, 37])
def test_batches_by_length_are_the_same_rows_in_every_step_however_it_is_split(rows):
    costs = [float(1 + 7 * number % 11) for number in range(rows)]

    def steps(batch_size, world_size, accumulation):
        samplers = [
            LengthBatchSampler(
                costs, batch_size=batch_size, group_by_length=True, seed=1, rank=rank, world_size=world_size,
                step_batches=world_size * accumulation,
            )
            for rank in range(world_size)
        ]  # fmt: skip
        found = [list(sampler) for sampler in samplers]
        count = -(-len(found[0]) // accumulation)
        return [
            sorted(key for part in found for batch in part[accumulation * n :][:accumulation] for key in batch)
            for n in range(count)
        ]

    whole = steps(8, 1, 1)
    assert steps(1, 1, 8) == steps(2, 1, 4) == whole
    assert sorted(key for step in whole for key in step) == [(0, number) for number in range(rows)]
    for split in (steps(4, 2, 1), steps(2, 2, 2)):
        assert split[: rows // 8] == whole[: rows // 8]
    assert [len(step) for step in whole] == [8] * (rows // 8) + [rows % 8] * (rows % 8 > 0)
