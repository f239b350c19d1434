"""The card that every checkpoint of a training carries, in place of TRL's and PEFT's."""

import json

import pytest
import soundfile
from factories_processing import RATE
from factories_publishing import tiny_checkpoint
from factories_training import TEXTS, tiny_parts, tone, tone_rows
from huggingface_hub import ModelCard
from test_trainers import build

from hub_cards.facts import read_facts
from hub_cards.model_card import render_model_card
from speechllm_cli.main import main
from trainers import SpeechImitationTrainer
from trainers.checkpoints import card
from trainers.checkpoints.folders import is_whole
from trainers.checkpoints.lora import lora_config
from trainers.commands.inputs import load_checkpoint
from trainers.imitation_config import SpeechImitationConfig

QUICK = {"max_steps": 2, "save_steps": 1, "use_cpu": True, "disable_tqdm": True, "activation_checkpointing": False}

SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps with evaluation rows, two of which are training rows."""
    folder = tmp_path_factory.mktemp("card")
    model, processor = tiny_parts()
    rows = tone_rows(4, answered=True, target=["BI"] * 4, task=["repeat"] * 4)
    args = SpeechImitationConfig(str(folder), per_device_train_batch_size=2, seed=7, logging_steps=1, **QUICK)
    trainer = SpeechImitationTrainer(
        model, args, train_dataset=rows, eval_dataset=tone_rows(6, answered=True), processing_class=processor
    )
    trainer.train()
    return folder, trainer


def test_every_checkpoint_has_the_card_of_its_facts(run):
    folder, _ = run
    for step in (1, 2):
        place = folder / f"checkpoint-{step}"
        facts = read_facts(place)
        assert (place / "README.md").read_text(encoding="utf-8") == render_model_card(facts)
        assert facts["training"][-1]["steps"] == step
        assert facts["training"][-1]["finished"] is (step == 2)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "TRL" not in card and ModelCard(card).data.pipeline_tag == "audio-text-to-text"


def test_a_stage_tells_what_was_trained_and_how(run):
    folder, trainer = run
    (stage,) = read_facts(folder / "checkpoint-2")["training"]
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    assert stage["trained_parameters"] == trained > 0 and stage["train_groups"] == ["connector"]
    assert stage["recipe"]["learning_rate"] == 1e-4 and stage["recipe"]["per_device_train_batch_size"] == 2
    assert stage["recipe"]["cross_entropy_weight"] == 1.0  # told also at its default
    assert stage["seeds"] == {"seed": 7, "data_seed": 7} and stage["hours"] > 0
    assert "loss" in stage["losses"] and "torch" in stage["packages"] and "CPU" in stage["hardware"]
    assert stage["method"] == ["mtbi"]  # of the target set
    assert str(folder) not in json.dumps(stage)


def test_rows_instructions_and_overlap_are_counted(run):
    facts = read_facts(run[0] / "checkpoint-2")
    (data,) = facts["data"]
    assert data["rows"] == 4 and data["targets"]["tasks"] == {"repeat": 4}
    assert data["hours"] == pytest.approx((0.5 + 0.6 + 0.7 + 0.8) / 3600)
    assert facts["prompt"]["instructions"] == ["what is said here"]
    (overlap,) = facts["contamination"]
    assert (overlap["training_rows"], overlap["evaluation_rows"], overlap["sentences"]) == (4, 6, 4)


def test_a_card_may_be_rewritten_without_making_the_checkpoint_less_whole(run):
    place = run[0] / "checkpoint-1"
    (place / "README.md").write_text("More of my own.")
    assert is_whole(place)


@pytest.mark.slow
def test_a_resumed_run_counts_the_hours_before_it(tmp_path):
    build("imitation", tmp_path, max_steps=2, **SAVING).train()
    facts = read_facts(tmp_path / "checkpoint-1")
    facts["training"][-1]["hours"] = 5.0
    (tmp_path / "checkpoint-1" / "facts.json").write_text(json.dumps(facts))
    build("imitation", tmp_path, max_steps=2, **SAVING).train(str(tmp_path / "checkpoint-1"))
    assert 5.0 < read_facts(tmp_path / "checkpoint-2")["training"][-1]["hours"] < 5.1


def test_adapters_carry_our_card_in_place_of_peft_s(tmp_path):
    model, processor = tiny_parts()
    args = SpeechImitationConfig(str(tmp_path), train_groups=[], **QUICK | {"max_steps": 1})
    trainer = SpeechImitationTrainer(
        model,
        args,
        train_dataset=tone_rows(2, answered=True),
        processing_class=processor,
        peft_config=lora_config(model, ["llm"], rank=2),
    )
    trainer.train()
    place = tmp_path / "checkpoint-1"
    assert (place / "adapter_model.safetensors").is_file()
    assert (place / "README.md").read_text(encoding="utf-8") == render_model_card(read_facts(place))


def test_a_model_trained_on_is_not_taken_for_the_one_before(tmp_path):
    trainer = build("imitation", tmp_path, max_steps=1)
    own = {"name": "Parent", "summary": "Parent's.", "repository": "owner/parent", "package_name": "nano"}
    prose = {"intended_use": "Parent's use.", "limits": ["Parent's limit."], "notes": ["Parent's note."]}
    trainer.card.before = {
        "model": own | {"license": "llama3.1", "languages": ["vi"], "weight_bytes": 5, "contents": "trained parts"},
        "training": [{"objective": "an earlier one"}],
        "data": [{"name": "earlier rows"}],
        "files": {"parent.txt": "Parent's."},
        **prose,
    }
    facts = trainer.facts()
    card = render_model_card(facts)
    assert "arent" not in card.replace("transparent", "") and "NANO" not in card and "# SpeechLLM\n" in card
    assert 'model="owner/name"' in card and "earlier rows" in card and "an earlier one" in card
    assert facts["model"]["license"] == "llama3.1" and facts["model"]["languages"][0] == "vi"
    assert "weight_bytes" not in facts["model"] and "contents" not in facts["model"]


@pytest.mark.parametrize(
    ("file", "contents"), [("trained.safetensors", "trained parts"), ("model.safetensors", "whole")]
)
def test_a_checkpoint_s_card_tells_whether_it_is_a_whole_model(tmp_path, file, contents):
    (tmp_path / file).touch()
    build("imitation", tmp_path, max_steps=1).write_card(tmp_path)
    assert read_facts(tmp_path)["model"]["contents"] == contents
    assert ("vllm serve" in (tmp_path / "README.md").read_text(encoding="utf-8")) is (contents == "whole")


def test_a_card_that_cannot_be_made_does_not_cost_the_checkpoint(tmp_path, monkeypatch):
    warned = []
    trainer = build("imitation", tmp_path, max_steps=1, **SAVING)
    monkeypatch.setattr(trainer, "facts", lambda model=None: 1 / 0)
    monkeypatch.setattr(card.logger, "warning", warned.append)
    trainer.train()
    assert is_whole(tmp_path / "checkpoint-1")
    assert (
        warned and "could not be written (ZeroDivisionError" in warned[0] and "weights are not affected" in warned[0]
    )


def test_a_command_s_card_names_model_and_data_and_keeps_the_stages_before(tmp_path, capsys):
    base = tiny_checkpoint(tmp_path / "base", training=[{"objective": "an earlier one"}])
    speech = tmp_path / "speech"
    speech.mkdir()
    lines = []
    for number in range(4):
        soundfile.write(speech / f"{number}.wav", tone(number, 0.5), RATE)
        lines.append(json.dumps({"audio": f"{number}.wav", "text": TEXTS[number], "language": "en"}))
    (speech / "manifest.jsonl").write_text("\n".join(lines))
    options = ["--model", str(base), "--dataset", str(speech), "--output_dir", str(tmp_path / "out")]
    options += ["--max_steps", "1", "--use_cpu", "true", "--activation_checkpointing", "false", "--lora_groups", "llm"]
    assert main(["distill", *options, "--max_seconds", "20"]) == 0, capsys.readouterr().err
    facts = read_facts(tmp_path / "out")
    first, second = facts["training"]
    assert first["objective"] == "an earlier one"
    assert second["base"] == "base" and second["finished"] and second["method"] == ["diva"]
    assert second["lora"] == {"groups": ["llm"], "rank": 16, "alpha": 32}
    connector = load_checkpoint(tmp_path / "out", "float32")[0].model.multi_modal_projector
    assert second["trained_parameters"] > sum(parameter.numel() for parameter in connector.parameters())  # and LoRA's
    assert second["recipe"]["max_seconds"] == 20.0
    assert [(entry["name"], entry["rows"]) for entry in facts["data"]] == [("speech", 4)]
    assert facts["model"]["license"] == "apache-2.0"  # of the model it began with
    assert str(tmp_path) not in (tmp_path / "out" / "facts.json").read_text()
