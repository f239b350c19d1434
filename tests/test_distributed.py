"""Several processes: two of them (gloo) give the curve of one, whole or sharded; the launch configs name what they
should. The two-process runs are in distributed_worker.py; torchrun starts them once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from distributed_worker import BUDGET, MIXED, RATES, curves, mixed_rows, predicted, rows_of, tied_parts
from factories_training import tiny_parts, tone_rows
from safetensors.torch import load_file
from test_trainers import BANK, CONFORMER, TRAINERS, build
from transformers.integrations import deepspeed

from modeling_speechllm import SpeechLLMForConditionalGeneration

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
CONFIGS = TESTS.parent / "trainers" / "commands" / "accelerate"


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """Folder and results of distributed_worker.py."""
    folder = tmp_path_factory.mktemp("two_processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    settings = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    worker = str(TESTS / "distributed_worker.py")
    done = subprocess.run(
        [*command, worker, str(folder)], env=os.environ | settings, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder, json.loads((folder / "results.json").read_text())


def assert_equal_curves(found, expected):
    """Equal up to the order of float32 sums, which an optimizer's step of a tiny gradient magnifies."""
    assert len(found["loss"]) == len(expected["loss"]) > 0
    for name in ("loss", "grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("kind", TRAINERS)
def test_two_processes_give_the_curve_of_one(kind, two_processes, tmp_path):
    trainer = build(kind, tmp_path, rows_of(kind), max_steps=3, per_device_train_batch_size=8)
    trainer.train()
    assert_equal_curves(two_processes[1][f"{kind} ddp"], curves(trainer))


@pytest.fixture(scope="module")
def mixed_curves(tmp_path_factory):
    """Curves of one process over rows with and without audio."""
    found = {}
    for kind in TRAINERS:
        settings = MIXED | {"per_device_train_batch_size": 2}
        trainer = build(kind, tmp_path_factory.mktemp("mixed"), mixed_rows(kind), **settings)
        trainer.train()
        found[kind] = curves(trainer)
    return found


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("sharding", ["ddp", "loaded", "fsdp"])
def test_text_alone_on_one_process_changes_nothing(kind, sharding, two_processes, mixed_curves):
    """Whole on both processes, sharded by transformers as it loads, and by Accelerate's FSDP2."""
    result = two_processes[1][f"{kind} {sharding} mixed"]
    first, second = result["heard"]
    assert any(left != right for left, right in zip(first, second, strict=True))
    assert_equal_curves(result, mixed_curves[kind])
    if sharding != "ddp":
        assert result["whole"] == [] and result["parameters"] > 50  # frozen ones too


def test_batches_by_seconds_of_two_processes_are_those_of_one(two_processes, tmp_path):
    rows = tone_rows(16, answered=True)
    trainer = build("imitation", tmp_path, rows, **BUDGET, gradient_accumulation_steps=2)
    trainer.train()
    assert_equal_curves(two_processes[1]["budget"], curves(trainer))


def test_sharded_runs_accumulate_checkpoint_activations_and_evaluate_as_whole_ones(two_processes, tmp_path):
    kind = "imitation-divergence"
    rows = rows_of(kind)
    trainer = build(kind, tmp_path, rows, eval_rows=rows, max_steps=3, per_device_train_batch_size=8)
    trainer.train()
    assert_equal_curves(two_processes[1]["fsdp accumulated"], curves(trainer))
    once = build(kind, tmp_path, rows, eval_rows=rows, max_steps=1, per_device_train_batch_size=8)
    once.train()
    expected, found = once.evaluate(), two_processes[1]["fsdp evaluated"]
    for name in ("eval_loss", "eval_divergence", "eval_token_accuracy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_parts_have_their_own_learning_rates_on_two_processes_too(sharding, two_processes, tmp_path):
    settings = {"max_steps": 3, "per_device_train_batch_size": 8}
    rows = rows_of("distillation")
    trainer, plain = (build("distillation", tmp_path, rows, **settings | more) for more in (RATES, {}))
    for run in (trainer, plain):
        run.train()
    assert_equal_curves(two_processes[1][f"{sharding} rates"], curves(trainer))
    assert curves(plain)["loss"] != pytest.approx(curves(trainer)["loss"], rel=1e-3)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_predictions_of_two_processes_are_those_of_one(sharding, two_processes, tmp_path):
    expected = predicted(tmp_path, per_device_train_batch_size=8)
    found = two_processes[1][f"predicted {sharding}"]
    assert found["labels"] == expected["labels"] and len(found["labels"]) == 5
    assert found["right"] == expected["right"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_heads_that_are_the_embedding_table_are_sharded_too(two_processes, tmp_path):
    kind, settings = "imitation-divergence", MIXED | {"per_device_train_batch_size": 2}
    trainer = build(kind, tmp_path, mixed_rows(kind), *tied_parts(), **settings)
    trainer.train()
    assert two_processes[1]["fsdp tied"]["whole"] == []
    assert_equal_curves(two_processes[1]["fsdp tied"], curves(trainer))


def test_a_sharded_llm_can_be_trained_in_full(two_processes, tmp_path):
    settings = {"max_steps": 3, "per_device_train_batch_size": 8, "train_groups": ["connector", "llm"]}
    trainer = build("imitation", tmp_path, rows_of("imitation"), **settings)
    trainer.train()
    assert_equal_curves(two_processes[1]["fsdp llm"], curves(trainer))


def test_sharded_runs_in_bf16_stay_near_those_in_float32(two_processes):
    halves, floats = (two_processes[1][f"fsdp {name}"]["loss"] for name in ("bf16", "accumulated"))
    assert halves == pytest.approx(floats, rel=0.02) and halves != floats


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_resumed_run_of_two_processes_goes_on_as_the_unbroken_one(sharding, two_processes):
    results = two_processes[1]
    assert_equal_curves(results[f"{sharding} resumed"], results[f"{sharding} unbroken"])


@pytest.mark.parametrize("sharding", ["loaded", "fsdp"])
def test_a_sharded_run_saves_whole_checkpoints_that_load_anywhere(sharding, two_processes):
    """Also where the parents are known, of which other runs save no copy."""
    folder = two_processes[0] / "saved"
    whole, sharded = (folder / name / "checkpoint-4" for name in ("ddp", sharding))
    expected, found = load_file(whole / "model.safetensors"), load_file(sharded / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    model = SpeechLLMForConditionalGeneration.from_pretrained(sharded)
    assert torch.equal(model.get_input_embeddings().weight, expected["model.language_model.embed_tokens.weight"])


def test_checkpoints_of_a_sharded_run_are_averaged(two_processes):
    folder = two_processes[0] / "averaged"
    steps = [load_file(folder / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4)]
    for name, value in load_file(folder / "averaged" / "model.safetensors").items():
        torch.testing.assert_close(value, sum(state[name] for state in steps) / 2)


@pytest.mark.parametrize("connector", [None, CONFORMER, BANK])
def test_encoder_and_connector_are_units_of_fsdp(connector):
    model, _ = tiny_parts(connector)
    assert model._no_split_modules == {
        "WhisperTower",
        type(model.model.multi_modal_projector).__name__,
        "LlamaDecoderLayer",
    }
    names = {name.replace(".0", ".*") for name, _ in model.named_modules()}
    assert set(model.fsdp_plan) <= names
    assert {"lm_head", "model.audio_tower", "model.multi_modal_projector"} <= set(model.fsdp_plan)


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("single_gpu", "NO", {"num_processes": 1}),
        ("ddp", "MULTI_GPU", {"num_processes": 4}),
        ("fsdp2", "FSDP", {"num_processes": 4}),
        ("zero2", "DEEPSPEED", {"num_processes": 4}),
        ("zero3", "DEEPSPEED", {"num_processes": 4}),
    ],
)
def test_launch_configs_are_read_by_accelerate(name, kind, settings):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == kind and config.mixed_precision == "bf16" and config.use_cpu is False
    for key, value in settings.items():
        assert getattr(config, key) == value, key
    if kind == "FSDP":
        chosen = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        }
        assert chosen.items() <= config.fsdp_config.items()
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
        assert config.deepspeed_config["zero3_init_flag"] is False  # a SpeechLLM is loaded whole


def test_every_launch_config_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"single_gpu", "ddp", "fsdp2", "zero2", "zero3"}


class ZeRO3:
    """What transformers asks of its DeepSpeed config."""

    def is_zero3(self) -> bool:
        return True


def test_models_are_loaded_whole_under_zero_3(tmp_path):
    """Modules made on the meta device cannot be partitioned as they are made."""
    model, _ = tiny_parts()
    model.save_pretrained(tmp_path)
    config = ZeRO3()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        loaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path)
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
