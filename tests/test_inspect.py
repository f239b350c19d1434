"""`speechllm inspect` and the estimate of a training: counts that are known, figures of a real model."""

import json

import numpy as np
import pytest
import soundfile
from conftest import text_config
from datasets import Dataset
from factories_processing import RATE, encoded
from factories_training import TEXTS, tiny_parts, tone

import speechllm
from speechllm_cli.main import main
from trainers.commands.estimate import TRAINED, count_row_tokens, estimate_memory, in_bytes, in_time
from trainers.data.statistics import describe_rows


def rows(*texts, seconds=1.0, **columns) -> Dataset:
    made = [
        {
            "id": str(number),
            "audio": {"bytes": encoded(tone(number, 0.5)), "path": None},
            "text": text,
            "duration": seconds,
        }
        for number, text in enumerate(texts)
    ]
    data = Dataset.from_list(made)
    for name, values in columns.items():
        data = data.add_column(name, values)
    return data


def test_lengths_languages_and_licences_add_up():
    found = describe_rows(rows("one", "two", "three", language=["en", "de", "en"], license=["cc0"] * 3, seconds=2.0))
    assert (found.rows, found.seconds) == (3, 6.0)
    assert found.languages == {"en": 4.0, "de": 2.0} and found.licences == {"cc0": 6.0} and found.speakers == {}
    assert sum(count for _, _, count in found.histogram) == 3
    assert found.characters_per_second["mean"] == pytest.approx((3 + 3 + 5) / 6)
    assert found.rates == {"16000 Hz, 1 channel, WAV": 3}
    assert found.findings == {}


def test_what_a_person_should_look_at_is_found_by_row():
    data = rows("", "fine words", "...", "a <laugh> b", "x" * 40, "Fine  words")
    audio = data["audio"][:]
    audio[5] = audio[1]
    data = data.remove_columns("audio").add_column("audio", audio)
    found = {name: (one.count, one.first[0].split()[0]) for name, one in describe_rows(data).findings.items()}
    assert found == {
        "without transcript": (1, "0"),
        "without a letter": (1, "2"),
        "with markup": (1, "3"),
        "faster than 30 characters per second": (1, "4"),
        "with a transcript that came before": (1, "5"),
        "with a recording that came before": (1, "5"),
    }


def test_rows_that_ctc_cannot_place_and_that_the_llm_cannot_hold_are_counted():
    _, processor = tiny_parts()
    data = rows("hello world", "h" * 60, seconds=0.5)
    tokens = count_row_tokens(data, processor)
    assert tokens.audio.tolist() == [processor.audio_token_count(RATE // 2)] * 2
    assert tokens.for_ctc[1] == 60 + 59  # the same token again needs a blank between
    assert tokens.infeasible() == 1
    assert tokens.beyond(60) == 1 and tokens.beyond(None) == 0


def test_memory_counts_what_is_trained_and_what_activations_are_kept():
    model, _ = tiny_parts()
    model.freeze("encoder", "llm")
    plain = estimate_memory(model, positions=10, labels=3, is_checkpointed=False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plain.trained == TRAINED * trained
    assert plain.frozen == 4 * sum(p.numel() for p in model.parameters() if not p.requires_grad)
    width, layers = text_config().hidden_size, text_config().num_hidden_layers
    assert plain.activations == 10 * width * 34 * layers * 2 + 3 * model.config.text_config.vocab_size * 8
    model.unfreeze("llm")
    assert estimate_memory(model, 10, 3, False).trained > plain.trained


def test_sizes_and_times_are_said_as_people_say_them():
    assert [in_bytes(size) for size in (3 << 20, 2 << 30, 40 << 30)] == ["3 MiB", "2 GiB", "40 GiB"]
    assert [in_time(seconds) for seconds in (0.4, 40, 700, 9000)] == ["0.4 s", "40 s", "12 min", "2.5 h"]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    lines = []
    for number in range(6):
        soundfile.write(path / f"{number}.wav", tone(number, 0.5), RATE)
        lines.append(json.dumps({"audio": f"{number}.wav", "text": TEXTS[number], "language": "en"}))
    (path / "5.wav").write_bytes(b"no audio")
    (path / "manifest.jsonl").write_text("\n".join(lines))
    return path


def test_the_command_looks_at_data_alone(folder, tmp_path, capsys):
    assert main(["inspect", "--dataset", str(folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "5 rows, 2.5 s of audio" in said and "1 rows cannot be read" in said
    assert "settle it before you publish" in said and "Model:" not in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["data"]["rows"] == 5 and "model" not in report
    assert (tmp_path / "out" / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_with_a_model_the_command_measures_an_update_and_chooses_settings(folder, tmp_path, capsys):
    arguments = ["--model", "nano", "--probe_updates", "1", "--batch_size", "2", "--out", str(tmp_path / "out")]
    assert main(["inspect", "--dataset", str(folder), *arguments]) == 0
    assert "per epoch" in capsys.readouterr().out
    model = json.loads((tmp_path / "out" / "report.json").read_text())["model"]
    assert model["probe"]["seconds_per_update"] > 0 and model["probe"]["updates"] == 1
    assert model["cache"]["bytes"] > 0 and model["settings"]["batch_seconds"] > 0
    assert np.isclose(model["epoch_seconds"], model["probe"]["seconds_per_update"] * 5 / 2)


def test_a_row_that_turns_out_to_be_cut_is_told_and_ends_nothing(folder, capsys):
    for number in (0, 1):  # the first, and one that the probe alone meets
        path = folder / f"{number}.wav"
        path.write_bytes(path.read_bytes()[:-1000])
    assert main(["inspect", "--dataset", str(folder), "--model", "nano", "--probe_updates", "1"]) == 0
    said = capsys.readouterr().out
    assert "cannot be decoded" in said and "0.wav: truncated WAV" in said and "on disk" in said


def test_without_transcripts_nothing_is_timed_and_that_is_said(tmp_path, capsys):
    soundfile.write(tmp_path / "0.wav", tone(0, 0.5), RATE)
    assert main(["inspect", "--dataset", str(tmp_path), "--model", "nano"]) == 0
    said = capsys.readouterr().out
    assert "1 rows without transcript" in said and "not measured: no row has a transcript" in said


@pytest.mark.slow
def test_a_training_begins_with_its_estimate(tmp_path, capsys, folder):
    arguments = ["--model", "nano", "--dataset", str(folder), "--output_dir", str(tmp_path / "out")]
    options = "--max_steps 6 --per_device_train_batch_size 2 --disable_tqdm true --save_strategy no --max_bad_share 1"
    assert main(["align", *arguments, *options.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    (estimate,) = [line for line in lines if line.startswith("Estimate:")]
    assert "2.5 s of audio" in estimate and "updates per epoch" in estimate and "of memory per device" in estimate
    assert any("s per update:" in line and "6 updates" in line for line in lines)


@pytest.mark.parametrize("given", [["--audio", speechllm.NANO], ["--pad_to_window"], ["--gguf_file", "x.gguf"]])
def test_a_part_of_a_model_is_refused_with_what_is_missing(folder, capsys, given):
    assert main(["inspect", "--dataset", str(folder), *given]) == 2
    assert "both `audio` (speech encoder) and `text` (LLM)" in capsys.readouterr().err
