"""What training holds and computes in: states of the trained part alone, activations computed again, bf16."""

import pytest
import torch
from distributed_worker import curves, rows_of
from factories_training import tiny_parts
from test_trainers import BANK, CONFORMER, TRAINERS, build, logged

from trainers.checkpoints.lora import lora_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", TRAINERS)
def test_frozen_parameters_have_no_gradients_and_no_optimizer_states(kind, tmp_path):
    trainer = build(kind, tmp_path, rows_of(kind), max_steps=1)
    trainer.train()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    held = {names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {name for name in names.values() if name.startswith("model.multi_modal_projector.")}
    assert {names[id(parameter)] for parameter in trainer.optimizer.optimizer.state} <= held
    for name, parameter in trainer.model.named_parameters():
        assert name in held or parameter.grad is None, name


def test_of_lora_the_adapters_alone_are_in_the_optimizer(tmp_path):
    model, processor = tiny_parts()
    peft = lora_config(model, ["llm"], rank=2)
    trainer = build("imitation", tmp_path, None, model, processor, peft, max_steps=1, train_groups=[])
    trainer.train()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    held = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    assert held and all("lora_" in name for name in held)


@pytest.mark.parametrize("connector", [None, CONFORMER, BANK], ids=["stack", "conformer", "whisper"])
@pytest.mark.parametrize("kind", ["alignment", "imitation-divergence"])
def test_checkpointed_activations_change_no_gradient(kind, connector, tmp_path):
    found = []
    for checkpointing in (False, True):
        model, processor = tiny_parts(connector)
        settings = {"max_steps": 3, "per_device_train_batch_size": 8, "gradient_checkpointing": checkpointing}
        trainer = build(kind, tmp_path, rows_of(kind), model, processor, **settings)
        trainer.train()
        found.append(curves(trainer))
    for name in ("loss", "grad_norm"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4), name


def test_checkpointing_reaches_the_layers_of_llm_and_conformer(tmp_path):
    """Each layer runs twice: forward, and again in the backward pass. The teacher's pass is not kept, so once."""
    model, processor = tiny_parts(CONFORMER)
    kind = "imitation-divergence"
    settings = {"max_steps": 1, "per_device_train_batch_size": 8, "gradient_checkpointing": True}
    trainer = build(kind, tmp_path, rows_of(kind), model, processor, **settings)
    counts = {"llm": 0, "connector": 0}

    def counter(name):
        def count(*_):
            counts[name] += 1

        return count

    model.model.language_model.layers[0].self_attn.register_forward_hook(counter("llm"))
    model.model.multi_modal_projector.blocks[0].attention.register_forward_hook(counter("connector"))
    trainer.train()
    assert counts == {"llm": 3, "connector": 2}


@pytest.mark.parametrize("kind", TRAINERS)
def test_bf16_stays_near_float32(kind, tmp_path):
    losses = []
    for half in (False, True):
        trainer = build(kind, tmp_path, rows_of(kind), max_steps=2, per_device_train_batch_size=8, bf16=half)
        trainer.train()
        losses.append(logged(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]


@pytest.mark.parametrize("kind", TRAINERS)
def test_what_is_trained_is_held_in_float32_beside_weights_in_bf16(kind, tmp_path):
    """A step of 1e-5 would be lost in the rounding of bf16 weights."""
    model, processor = tiny_parts(TRAINERS[kind][2])
    model.to(torch.bfloat16)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    settings = {"max_steps": 2, "per_device_train_batch_size": 8, "bf16": True, "learning_rate": 1e-5}
    trainer = build(kind, tmp_path, rows_of(kind), model, processor, **settings)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        trained = name.startswith("model.multi_modal_projector.")
        assert parameter.dtype == (torch.float32 if trained else torch.bfloat16), name
    connector = "model.multi_modal_projector."
    last = connector + ("linear_2.weight" if TRAINERS[kind][2] is None else "linear.weight")
    weight = trainer.model.get_parameter(last)
    assert (weight != before[last].float()).float().mean() > 0.9
