"""Parts of a model that learn at rates of their own."""

import re
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from datasets import Dataset
from factories_training import tiny_parts, tone_rows
from test_trainers import BANK, build, logged

from benchmarks.claims import gate
from trainers import SpeechAlignmentConfig, SpeechDistillationConfig, SpeechImitationConfig, SpeechImitationTrainer
from trainers.checkpoints.lora import lora_config
from trainers.data.statistics import unlabelled_rows

pytestmark = pytest.mark.slow


def first_step(trainer):
    """Greatest change of any parameter in an update by Adam, whose first one is as long as its rate; by part."""
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    moved: dict[str, float] = {}
    for name, value in trainer.model.named_parameters():
        if name in before:
            part = "gate" if ".bank.gate." in name else re.search("multi_modal_projector|language_model", name)[0]
            moved[part] = max(moved.get(part, 0.0), (value - before[name]).abs().max().item())
    return moved


def test_each_part_steps_at_its_own_rate(tmp_path):
    rates = {"gate": 5e-2, "llm": 2e-3}
    model, processor = tiny_parts(BANK)
    peft = lora_config(model, ["llm"], rank=2)
    settings = {"learning_rate": 1e-2, "max_steps": 1, "learning_rates": rates, "max_grad_norm": 0.0}
    trainer = build("distillation", tmp_path, None, model, processor, peft, **settings)
    moved = first_step(trainer)
    assert moved["multi_modal_projector"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["gate"] == pytest.approx(5e-2, rel=1e-3)
    assert moved["language_model"] == pytest.approx(2e-3, rel=1e-3)
    assert logged(trainer, "learning_rate") == [1e-2]


@pytest.mark.parametrize("gate", [{}, {"gate": 1e-2}])
def test_a_gate_goes_with_its_connector_unless_it_has_a_rate(gate, tmp_path):
    settings = {"learning_rate": 1.0, "max_steps": 1, "max_grad_norm": 0.0}
    moved = first_step(build("distillation", tmp_path, learning_rates={"connector": 3e-2} | gate, **settings))
    assert moved == pytest.approx({"multi_modal_projector": 3e-2, "gate": gate.get("gate", 3e-2)}, rel=1e-3)


def test_rates_that_are_the_common_one_change_nothing_and_decay_stays_where_it_was(tmp_path):
    settings = {"learning_rate": 1e-2, "weight_decay": 0.1}
    rates = {"connector": 1e-2, "gate": 1e-2}
    plain, own = (build("distillation", tmp_path, learning_rates=given, **settings) for given in (None, rates))
    for trainer in (plain, own):
        trainer.train()
    assert logged(own) == logged(plain)
    groups = (trainer.optimizer.param_groups for trainer in (plain, own))
    decays = [sorted(group["weight_decay"] for group in found for _ in group["params"]) for found in groups]
    assert decays[0] == decays[1]


def test_all_parts_follow_the_one_schedule_and_a_resumed_run_goes_on_as_the_unbroken_one(tmp_path):
    settings = {"learning_rates": {"gate": 5e-2}, "lr_scheduler_type": "linear", "warmup_steps": 2, "max_steps": 6}
    settings |= {"save_strategy": "steps", "save_steps": 3}
    whole = build("distillation", tmp_path, **settings)
    whole.train()
    again = build("distillation", tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(again)[-3:] == logged(whole)[-3:]
    rates = {group["initial_lr"]: group["lr"] for group in again.optimizer.param_groups if group["params"]}
    assert set(rates) == {1e-2, 5e-2}
    assert len({lr / peak for peak, lr in rates.items()}) == 1
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"learning_rates": {"gate": 1e-3}}, "learning_rates was .*0.05.*, is .*0.001"),
        ({"learning_rates": {"connector": 5e-2}}, "learning_rates was"),
        ({"learning_rates": None}, "learning_rates was .*, is None"),
        ({"learning_rate": 5e-2}, "learning_rate was 0.01, is 0.05"),
        ({"optim": "sgd"}, "optim was 'adamw_torch.*', is 'sgd'"),
        ({"weight_decay": 0.1}, "weight_decay was 0.0, is 0.1"),
    ],
)
def test_rates_that_the_checkpoint_s_optimizer_would_overrule_are_refused(changed, finding, tmp_path):
    settings = {"learning_rates": {"gate": 5e-2}, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    build("distillation", tmp_path, **settings).train()
    with pytest.raises(ValueError, match=f"cannot be resumed as it was: .*{finding}"):
        build("distillation", tmp_path, **settings | {"max_steps": 2} | changed).train(resume_from_checkpoint=True)


def test_what_is_logged_is_a_rate_that_is_in_use(tmp_path):
    trainer = build("imitation", tmp_path, learning_rates={"connector": 3e-3}, max_steps=1)
    trainer.train()
    assert logged(trainer, "learning_rate") == [3e-3]


@pytest.mark.parametrize(
    ("rates", "finding"),
    [
        ({"projector": 1e-3}, "no part projector. Parts: encoder, connector, llm, gate"),
        ({"llm": "fast"}, "llm has 'fast'. Give a positive number"),
        ({"llm": 0}, "llm has 0. Give"),
        ({"llm": None}, "llm has None"),
        ({"llm": True}, "llm has True"),
        ("{'llm': 1e-3}", "learning_rates is no JSON"),
        ('{"llm": 1, "llm": 2}', "a key stands twice"),
        ("llm=1e-3", "must be a mapping"),
        ({"llm": float("nan")}, "llm has nan"),
        ({}, "learning_rates is empty"),
        ([1e-3], "must be a mapping"),
    ],
)
def test_rates_that_are_none_are_refused(rates, finding, tmp_path):
    with pytest.raises(ValueError, match=finding):
        SpeechAlignmentConfig(str(tmp_path), use_cpu=True, learning_rates=rates)


def test_rates_come_as_yaml_and_command_line_give_them(tmp_path):
    args = SpeechDistillationConfig(str(tmp_path), use_cpu=True, learning_rates='{"gate": "5e-4", "llm": 2e-5}')
    assert args.learning_rates == {"gate": 5e-4, "llm": 2e-5}
    given = MappingProxyType({"gate": "5e-4"})
    assert SpeechDistillationConfig(str(tmp_path), use_cpu=True, learning_rates=given).learning_rates == {"gate": 5e-4}
    assert given["gate"] == "5e-4"


@pytest.mark.parametrize("optim", ["lomo", "galore_adamw_layerwise"])
def test_an_optimizer_that_has_one_rate_is_refused(optim, tmp_path):
    with pytest.raises(ValueError, match="has one rate for all"):
        SpeechAlignmentConfig(str(tmp_path), use_cpu=True, learning_rates={"connector": 1e-3}, optim=optim)


@pytest.mark.parametrize(("kind", "part"), [("imitation", "llm"), ("imitation", "gate"), ("distillation", "encoder")])
def test_a_part_that_is_not_trained_is_named(kind, part, tmp_path):
    remedy = "only a query bank has one" if part == "gate" else "by train_groups, or by LoRA"
    with pytest.raises(ValueError, match=f"nothing of {part} is trained. Leave it out, or have it trained .{remedy}"):
        build(kind, tmp_path, learning_rates={part: 1e-3})


def test_where_another_makes_the_optimizer_rates_are_refused(tmp_path):
    model, processor = tiny_parts()
    args = SpeechImitationConfig(str(tmp_path), use_cpu=True, learning_rates={"connector": 1e-3})
    given = torch.optim.SGD(model.parameters(), 1e-3)
    rows = tone_rows(2, answered=True)
    with pytest.raises(ValueError, match="optimizers holds one. Take it out of there"):
        SpeechImitationTrainer(model, args, rows, processing_class=processor, optimizers=(given, None))
    args.hf_deepspeed_config = SimpleNamespace(config={"optimizer": {"type": "AdamW"}})
    with pytest.raises(ValueError, match="DeepSpeed's config makes the optimizer"):
        SpeechImitationTrainer(model, args, rows, processing_class=processor)


def test_what_each_term_asks_of_a_gate_is_told(tmp_path):
    def norms(**weights):
        model, processor = tiny_parts(BANK)
        settings = {"use_cpu": True, "max_steps": 1, "save_strategy": "no", "disable_tqdm": True} | weights
        trainer = gate.Measured(
            model, SpeechDistillationConfig(str(tmp_path), **settings), tone_rows(), None, processor
        )
        trainer.train()
        return trainer.norms[0]

    plain, raised = norms(), norms(language_weight=100.0)
    assert raised["language"] == pytest.approx(100 * plain["language"], rel=1e-4)
    assert raised["output"] == pytest.approx(plain["output"], rel=1e-4) and plain["output"] > 0


@pytest.mark.parametrize("kind", ["attention", "conv"])
def test_a_gate_alone_learns_what_the_frames_tell(kind, tmp_path, monkeypatch):
    class Encoded:
        def __init__(self, place, name):
            languages = (gate.LANGUAGES * (8 if name == "six" else 2))[: 48 if name == "six" else 12]
            self.rows = [{"id": f"{n}", "language": language} for n, language in enumerate(languages)]
            self.cache = self

        def frames(self, name):
            return torch.eye(6)[int(name) % 6].expand(20 + int(name) % 3, 6)

    monkeypatch.setattr(gate, "Encoded", type("Encoded", (Encoded,), {"batch": gate.Encoded.batch}))
    assert gate.learn_alone(tmp_path, kind, 1e-2, 60, size=16) == 1.0
    assert gate.learn_alone(tmp_path, kind, 1e-9, 2, size=16) < 0.5


@pytest.mark.parametrize(
    ("labels", "finding"),
    [
        (["en", "de", "en", "de"], None),
        (
            ["en", "xx", None, "xx"],
            "3 of 4 training utterances have no language that the connector lists (2 xx, 1 without",
        ),
        (None, "4 of 4 training utterances"),
    ],
)
def test_rows_that_teach_the_gate_nothing_are_told(labels, finding):
    rows = Dataset.from_dict({"text": ["a"] * 4} | ({} if labels is None else {"language": labels}))
    told = unlabelled_rows(rows, ["en", "de"])
    assert told is None if finding is None else finding in told


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_trainer_tells_of_them_where_it_has_a_loss_on_languages(weight, tmp_path, caplog):
    rows = tone_rows(4).map(lambda row: {"language": "xx"})
    build("distillation", tmp_path, rows, language_weight=weight)
    assert ("4 of 4 training utterances have no language" in caplog.text) == bool(weight)
