"""Commands over data as people have them: transcripts beside targets, one folder for both, paths that lead nowhere."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from test_commands import (
    data,  # noqa: F401  fixtures
    folder,  # noqa: F401
    recipe,  # noqa: F401
    run,
)

from modeling_speechllm.parents import reading_tokens
from trainers.commands.inputs import weigh_targets


@pytest.fixture
def targets(data, tmp_path, capsys) -> Path:  # noqa: F811
    """Targets of the recordings, to be trained on beside them."""
    place = tmp_path / "targets"
    status, _, errors = run(
        "targets", "--dataset", str(data), "--target_set", "T", "--output_dir", str(place), capsys=capsys
    )
    assert status == 0, errors
    return place


@pytest.mark.slow
def test_transcripts_beside_targets_have_a_card_and_a_weight(recipe, data, targets, tmp_path, capsys):  # noqa: F811
    path = recipe(dataset=[str(data), str(targets)], target_weights={"T": 1})
    status, output, errors = run("imitate", "--config", path, capsys=capsys)
    assert status == 0, errors
    assert "could not be written" not in errors and "Rows per epoch: 12 T" in output
    facts = json.loads((tmp_path / "out" / "facts.json").read_text(encoding="utf-8"))
    assert facts["prompt"]["instructions"] and facts["training"]


def test_rows_without_a_set_are_transcripts():
    rows = Dataset.from_dict({"id": ["a", "b", "c"], "target": [None, "BI", "BI"]})
    mixed, drawn = weigh_targets(rows, {"T": 1, "BI": 1}, seed=0)
    assert set(mixed["id"][:]) == {"a", "b", "c"} and set(drawn) == {"T", "BI"}


@pytest.mark.slow
def test_evaluation_data_are_scored_at_the_end_by_default(recipe, data, tmp_path, capsys):  # noqa: F811
    status, output, errors = run("imitate", "--config", recipe(eval_dataset=[str(data)]), capsys=capsys)
    assert status == 0, errors
    assert "Evaluation loss" in output
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert sum("eval_loss" in entry for entry in history) == 1
    facts = json.loads((tmp_path / "out" / "facts.json").read_text(encoding="utf-8"))
    assert facts["training"][-1]["losses"]["eval_loss"] > 0


@pytest.mark.slow
def test_an_evaluation_that_fails_costs_no_model(recipe, data, tmp_path, capsys):  # noqa: F811
    """CTC can place none of these transcripts."""
    place = tmp_path / "long"
    place.mkdir()
    row = {"audio": str(data / "0.wav"), "text": "what is said here " * 50, "id": "a"}
    (place / "manifest.jsonl").write_text(json.dumps(row), encoding="utf-8")
    status, output, errors = run("align", "--config", recipe(eval_dataset=[str(place)]), capsys=capsys)
    assert status == 0, errors
    assert "The evaluation failed, the model does not: None of the transcripts" in output
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.slow
def test_rows_that_are_trained_and_evaluated_on_are_told(recipe, data, capsys):  # noqa: F811
    _, output, _ = run("imitate", "--config", recipe(eval_dataset=[str(data)]), capsys=capsys)
    assert "split train, is trained and evaluated on" in output and "--eval_split 'train[90%:]'" in output


@pytest.mark.slow
def test_one_folder_can_be_divided(recipe, data, capsys):  # noqa: F811
    path = recipe(dataset_split="train[:67%]", eval_dataset=[str(data)], eval_split="train[67%:]")
    status, output, errors = run("imitate", "--config", path, capsys=capsys)
    assert status == 0, errors
    assert "Training data: 4 of 4 rows" in output and "Evaluation data: 2 of 2 rows" in output
    assert "trained and evaluated on" not in output


def test_paths_that_lead_nowhere_are_told_by_the_first(folder, tmp_path, capsys):  # noqa: F811
    (tmp_path / "list.csv").write_text("file,sentence\nnowhere/a.wav,hello\nnowhere/b.wav,world\n", encoding="utf-8")
    status, _, errors = run("inspect", "--dataset", str(tmp_path / "list.csv"), capsys=capsys)
    assert status == 2
    assert "None of the 2 rows has audio that can be read. The first: " in errors
    assert "nowhere/a.wav" in errors and "start at the folder of the data" in errors


def test_a_whisper_of_english_alone_takes_no_other_language():
    class English:
        no_timestamps_token_id, is_multilingual, suppress_tokens = 10, False, None
        eos_token_id, decoder_start_token_id, vocab_size = 8, 9, 20

    assert reading_tokens(English, English, "en")["prompt"] == reading_tokens(English, English, None)["prompt"]
    with pytest.raises(ValueError, match="language 'sw', but this Whisper knows English alone"):
        reading_tokens(English, English, "sw")


def test_adapters_alone_are_no_model_to_begin_with(recipe, tmp_path, capsys):  # noqa: F811
    (tmp_path / "checkpoint-2").mkdir()
    for name, told in (("adapter_config.json", "adapters of a training alone"), ("other.json", "Give a SpeechLLM's")):
        for path in (tmp_path / "checkpoint-2").iterdir():
            path.unlink()
        (tmp_path / "checkpoint-2" / name).write_text("{}", encoding="utf-8")
        status, _, errors = run("align", "--config", recipe(model=str(tmp_path / "checkpoint-2")), capsys=capsys)
        assert status == 2 and "has no config.json" in errors and told in errors
