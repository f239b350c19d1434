"""Every packaged recipe runs: parents, data and sizes are tiny ones, everything else is the recipe's own. Trainings go
three steps, the last of them once more from the checkpoint before, and what they leave answers."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from conftest import WAVEFORM, text_config, whisper_config
from datasets import Dataset
from factories_processing import CHATML_MARKED, RATE, make_tokenizer
from factories_training import tone, tone_rows
from transformers import (
    LlamaForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from modeling_speechllm.configuration_connectors import connector_config
from speechllm_cli.main import main
from trainers.commands.launch import LAUNCHED
from trainers.commands.parsing import RECIPES
from trainers.targets.prompts import load_tasks, save_tasks

pytestmark = pytest.mark.slow

SMALL = {  # sizes of connectors; what is not named stays as the recipe has it
    "whisper_qformer": {"queries": 6},
    "conformer_ctc": {
        **{"reduced_size": 8, "channels": 2, "hidden_size": 16, "blocks": 3, "heads": 2, "ffn_size": 16},
        **{"gating_size": 16, "kernel": 3},
    },
    "conv": {"bottleneck_size": 8},
    "stack_mlp": {"hidden_size": 16},
}
SHORT = {
    **{"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "gradient_accumulation_steps": 2},
    **{"eval_steps": 1, "save_steps": 1, "logging_steps": 1, "dataloader_num_workers": 0},
}
TRAININGS = ("align", "imitate", "distill")
TARGETS = {"max_new_tokens": 4, "batch_size": 4}


def command_of(path: Path) -> str:
    """The command that a recipe is for, by its head."""
    words = next(
        line for line in reversed(path.read_text(encoding="utf-8").splitlines()) if f"--config {path.stem}" in line
    ).split()
    return words[words.index("--config") - 1]


COMMANDS = {path.stem: command_of(path) for path in sorted(RECIPES.glob("*.yaml"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Tiny parents of the recipes' families, and rows with all that they ask for."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    tokenizer = make_tokenizer(CHATML_MARKED, unk_token="<unk>")
    tokenizer.pad_token = "<|im_start|>"
    plain = make_tokenizer(None)
    plain.pad_token = plain.eos_token
    for name, words in (("text", tokenizer), ("plain", plain)):
        config = text_config(vocab_size=len(words), pad_token_id=words.pad_token_id, max_position_embeddings=512)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    whisper = whisper_config(num_mel_bins=80, max_source_positions=100, max_target_positions=448)
    WhisperForConditionalGeneration(whisper).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "whisper")
    mms = Wav2Vec2Config(**WAVEFORM, do_stable_layer_norm=True, feat_extract_norm="layer", adapter_attn_dim=4)
    Wav2Vec2Model(mms).save_pretrained(folder / "mms")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / "mms")
    soundfile.write(folder / "question.wav", tone(3, 0.7), RATE)
    numbers = {"language": [0, 138] * 4, "wer": [0.1] * 7 + [0.2]}
    words = [
        [{"word": word, "start": 0.1 * n, "end": 0.1 * n + 0.1} for n, word in enumerate(row["text"].split())]
        for row in tone_rows()
    ]
    tone_rows(**numbers).to_parquet(folder / "numbered.parquet")
    tone_rows(wer=numbers["wer"]).to_parquet(folder / "named.parquet")
    answered = tone_rows(answered=True, words=words, target=["T", "MI", "MI", "T"] * 2)
    answered.to_parquet(folder / "answered-named.parquet")
    answered.remove_columns("language").add_column("language", numbers["language"]).to_parquet(
        folder / "answered-numbered.parquet"
    )
    (folder / "pool").mkdir()
    save_tasks([task for task in load_tasks() if task.name in ("repeat", "topic")], folder / "pool" / "pool.yaml")
    return folder


def swapped(name: str, place: Path, output: Path) -> Path:
    """The recipe with tiny parents, data and sizes."""
    settings = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    command = COMMANDS[name]
    settings["output_dir"] = str(output)
    bloom = "bloomz" in name
    if settings.get("model") not in (None, "nano"):
        trained = place / settings["model"]
        settings["model"] = str(trained if command != "targets" else place / ("plain" if bloom else "text"))
    if "audio" in settings:
        settings["audio"] = str(place / ("mms" if "mms" in settings["audio"] else "whisper"))
        settings["text"] = str(place / ("plain" if bloom else "text"))
    if "connector" in settings:
        connector = settings["connector"]
        connector = {"type": connector} if isinstance(connector, str) else dict(connector)
        connector |= SMALL[connector_config(connector["type"]).type] if settings.get("model") != "nano" else {}
        if "decoder" in connector:
            connector["decoder"] = str(place / "whisper")
        settings["connector"] = connector
    rows = "numbered" if bloom else "named"
    settings["dataset"] = [str(place / f"{f'answered-{rows}' if command == 'imitate' else rows}.parquet")]
    if "eval_dataset" in settings:
        settings["eval_dataset"] = [str(place / f"{rows}.parquet")]
    if "task_folder" in settings:
        settings["task_folder"] = str(place / "pool")
    if command in TRAININGS:
        settings |= {key: value for key, value in SHORT.items() if key in settings or "steps" not in key}
        settings |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    elif command == "targets":
        settings |= {key: value for key, value in TARGETS.items() if key in settings}
    recipe = output.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return recipe


def run(capsys, *arguments: str) -> str:
    """What a command printed; it must end well."""
    status = main(list(arguments))
    output, errors = capsys.readouterr()
    assert status == 0, errors[-2000:]
    return output


def train(capsys, name: str, place: Path) -> Path:
    """The folder that a training's recipe leaves, trained once for all tests."""
    output = place / name
    if not output.exists():
        recipe = swapped(name, place, output)
        command = [COMMANDS[name], "--config", str(recipe), "--max_steps", "3"]
        run(capsys, *command)
        for left in [output / "checkpoint-3", *output.glob("*.safetensors"), output / "config.json"]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # as if it had been killed in its third step
        assert f"Going on from {output / 'checkpoint-2'}" in run(capsys, *command)
    return output


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command in TRAININGS])
def test_a_training_recipe_trains_saves_resumes_and_answers(name, place, capsys, monkeypatch):
    monkeypatch.setenv(LAUNCHED, "1")
    if name == "bloomzmms-2":
        train(capsys, "bloomzmms-1", place)
    output = train(capsys, name, place)
    history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    question = [str(place / "question.wav"), "What is said?", "--json", "--max-new-tokens", "4"]
    answer = json.loads(run(capsys, "ask", *question, "--model", str(output)))
    assert isinstance(answer["answer"], str)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command == "targets"])
def test_a_recipe_of_targets_gives_rows_and_goes_on(name, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(LAUNCHED, "1")
    recipe = swapped(name, place, tmp_path / "targets")
    report = run(capsys, "targets", "--config", str(recipe))
    assert " rows of 8 utterances" in report and run(capsys, "targets", "--config", str(recipe)).splitlines()[-1]
    rows = Dataset.from_parquet([str(path) for path in (tmp_path / "targets" / "data").glob("*.parquet")])
    assert len(rows) > 0 and all(row["messages"][-1]["role"] == "assistant" for row in rows)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command == "encode"])
def test_a_recipe_of_a_cache_writes_it(name, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(LAUNCHED, "1")
    recipe = swapped(name, place, tmp_path / "cache")
    assert "Train from it" in run(capsys, "encode", "--config", str(recipe))


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command == "evaluate"])
def test_a_recipe_of_an_evaluation_scores(name, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(LAUNCHED, "1")
    recipe = swapped(name, place, tmp_path / "scores")
    run(capsys, "evaluate", "--config", str(recipe), "--limit", "2")
    assert any((tmp_path / "scores").iterdir())


def test_every_recipe_is_run():
    assert set(COMMANDS.values()) <= {*TRAININGS, "targets", "encode", "evaluate"}
