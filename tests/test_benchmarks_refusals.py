"""What the small benchmarks refuse by name, what they say they left out, and whose work is in the time they take."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from benchmarks import loading, long_audio, padding, training_cache
from benchmarks.language_gate import __main__ as language_gate
from benchmarks.peers import __main__ as peers
from benchmarks.peers import parts, report, training
from benchmarks.small import __main__ as small
from benchmarks.training_scale import __main__ as training_scale

FACTS = {
    **{"processor": "CPU", "cores": 2, "device": "cpu", "begun": "now", "settings": {"batch": 8, "rounds": 2}},
    "versions": {"torch": "2", "transformers": "5"},
}


def refusal(module, monkeypatch, capsys, *arguments) -> str:
    """What a command says that ends in an argument error."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


# --- Peers ---


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--minutes", "0"), "'0' is no number above 0"),
        (("--minutes", "nan"), "'nan' is no number above 0"),
        (("--rounds", "0"), "'0' is no whole number from 1 on"),
        (("--rounds", "1.5"), "'1.5' is no whole number from 1 on"),
        (("--only", "nothing"), "no case has this in its name"),
    ],
)
def test_peers_refuses_arguments_by_name(given, said, monkeypatch, capsys, tmp_path):
    error = refusal(peers, monkeypatch, capsys, "--random", "--out", tmp_path / "out", *given)
    assert given[0] in error and said in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("loop", [training.OURS, training.CACHED])
@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (2, 6)])
def test_nobody_has_workers_where_the_time_of_the_process_is_taken(loop, threads, workers, monkeypatch, tmp_path):
    class Kept:
        def __init__(self, model, args, **given):
            self.args = args

    monkeypatch.setattr("trainers.speech_config.spare_cores", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(training, "SpeechImitationTrainer", Kept)
    fake = SimpleNamespace(speechllm=lambda dtype, device: (None, None))
    work = training.Work(fake, [], 2, 1, torch.float32, "cpu")
    cache = str(tmp_path / "cache") if loop == training.CACHED else None
    trainer = training.make_trainer(loop, "cross-entropy", work, str(tmp_path), cache, training.Clock("cpu"), 0)
    assert trainer.args.dataloader_num_workers == workers
    assert parts.takes_processor_time("cpu") == (threads == 1) and not parts.takes_processor_time("cuda")


def test_the_report_says_what_there_was_no_time_for(tmp_path):
    group = "training | cross-entropy | bf16"
    measured = {
        f"{group} | speechllm": [{"samples_per_second": value, "load": 1.0} for value in (2.0, 4.0)],
        f"{group} | Ultravox's form": [{"samples_per_second": 1.0, "load": 1.0}],
    }
    token = "first token | 3 s, batch 1 | bf16 | speechllm"
    asked = [*measured, f"{group} | speechllm, cached", f"{group} | SFTTrainer, our model", token]
    failed = {f"{group} | SFTTrainer, our model": "ImportError: trl"}
    text = report.write_report(tmp_path, FACTS, measured, failed, asked)
    missing = text.partition("Left out for time:\n\n")[2].splitlines()
    assert missing[:3] == [
        f"- {group} | Ultravox's form (1 of 2 rounds measured)",
        f"- {group} | speechllm, cached",
        f"- {token}",
    ]
    assert "| speechllm | 3 | 2 to 4 |  | 2 |" in text and "| Ultravox's form | 1 | 1 to 1 | 2.00 | 1 |" in text
    assert "speechllm / Ultravox's form >= 1.3 | 2.00 | yes |" in text
    assert "speechllm, cached / Ultravox's form >= 2.0 | not measured |" in text
    assert "3 s, batch 1, bf16: speechllm / Voxtral <= 0.5 | not measured |" in text
    assert f"Not measured: {group} | SFTTrainer, our model: ImportError: trl" in text


def test_a_report_of_nothing_has_no_picture_and_names_all(tmp_path):
    text = report.write_report(tmp_path, FACTS, {}, {}, ["training | divergence | bf16 | speechllm"])
    assert "- training | divergence | bf16 | speechllm" in text and "Trainer, our model" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"processor": "other"}, "processor was CPU and is other"),
        ({"device": "H100"}, "name of the device was cpu and is H100"),
        ({"versions": FACTS["versions"] | {"torch": "3"}}, "torch was 2 and is 3"),
        ({"settings": {"batch": 4, "rounds": 2}}, "batch was 8 and is 4"),
    ],
)
def test_figures_of_another_machine_are_not_gone_on_with(changed, said, tmp_path):
    results = peers.Results(tmp_path / "results.json", FACTS)
    results.add(peers.Case("training", "speechllm", "divergence", "bf16"), {"samples_per_second": 2.0})
    assert peers.Results(tmp_path / "results.json", FACTS | {"begun": "later"}).measured
    with pytest.raises(SystemExit, match=f"{said}\\."):
        peers.Results(tmp_path / "results.json", FACTS | changed)


# --- Folders with results of other settings ---


def write_manifest(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_padding_refuses_a_folder_of_other_settings(tmp_path, monkeypatch):
    class BegunError(Exception):
        pass

    def begin(data):
        raise BegunError

    monkeypatch.setattr(padding, "split_rows", begin)
    data, out = write_manifest(tmp_path / "data", [{"audio": "a.wav"}]), tmp_path / "out"
    given = {"data": data, "audio": "whisper", "text": "llm", "out": out, "seeds": 2, "steps": 200}
    with pytest.raises(BegunError):  # without results, what was mistyped can be put right
        padding.main(**given | {"audio": "wisper"})
    for same in (given, given | {"seeds": 3}):
        with pytest.raises(BegunError):
            padding.main(**same)
        (out / "reader-own-0").mkdir(exist_ok=True)
    for name, value in (("steps", 100), ("audio", "other"), ("text", "other")):
        with pytest.raises(SystemExit, match=f"other settings: {name} was {given[name]} and is {value}\\."):
            padding.main(**given | {name: value})
    write_manifest(data, [{"audio": "b.wav"}])
    with pytest.raises(SystemExit, match="manifest was"):
        padding.main(**given)
    (out / "settings.json").unlink()
    with pytest.raises(SystemExit, match=r"no settings\.json"):
        padding.main(**given)


def test_the_language_gate_refuses_frames_of_another_encoder(tmp_path):
    data, cache = write_manifest(tmp_path / "data", []), tmp_path / "frames"
    assert language_gate.encode(data, "tiny", [], cache) == {}
    (cache / "en.st").touch()
    with pytest.raises(SystemExit, match="encoder was tiny and is base"):
        language_gate.encode(data, "base", [], cache)


def test_the_language_gate_refuses_fewer_clips_than_a_batch(tmp_path, monkeypatch, capsys):
    rows = [{"audio": f"{n}.wav", "language": "en", "speaker": str(n)} for n in range(24)]
    given = ("--data", write_manifest(tmp_path / "data", rows), "--encoder", "tiny", "--out", tmp_path / "out")
    error = refusal(language_gate, monkeypatch, capsys, *given)
    least = min(sum(language_gate.fold_of(row["speaker"]) != fold for row in rows) for fold in range(4))
    assert f"a fold has {least} clips in en, vi" in error and "a batch has 32" in error


# --- Others ---


def test_loading_has_batches_for_many_workers():
    def build_loader(rows, collate, settings, *rest, training):
        return range(len(rows) // loading.BATCH)

    rows = [{"text": "a"}] * loading.BATCH
    for workers in (1, 2, 6, 20):
        settings = SimpleNamespace(dataloader_num_workers=workers)
        assert loading.by_the_clock(build_loader, None, settings, rows, 10.0) > 0


def test_the_cache_benchmark_says_how_many_rows_are_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(training_cache, "load_rows", lambda data: Dataset.from_dict({"duration": [1.0] * 5}))
    monkeypatch.setattr(training_cache, "with_durations", lambda rows: rows)
    assert len(training_cache.load_data(tmp_path, 5)) == 5
    with pytest.raises(SystemExit, match="has 5 rows, and 6 are needed"):
        training_cache.load_data(tmp_path, 6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--warmup", "0"), "give --warmup and --steps 1 or more"),
        (("--steps", "0"), "give --warmup and --steps 1 or more"),
        (("--warmup", "1", "--steps", "2"), "together are 3"),
    ],
)
def test_too_few_steps_to_measure_are_refused(given, said, monkeypatch, capsys, tmp_path):
    assert said in refusal(training_scale, monkeypatch, capsys, "--tiny", "--output_dir", tmp_path / "out", *given)


def test_what_a_process_said_last_is_told():
    assert long_audio.child_output(["-c", "print(1)"], "one") == "1\n"
    with pytest.raises(SystemExit, match="conv, 1 min failed with status 1: OSError: no such encoder"):
        long_audio.child_output(["-c", "raise OSError('no such encoder')"], "conv, 1 min")
    with pytest.raises(SystemExit, match="status -9: it said nothing"):
        long_audio.child_output(["-c", "import os; os.kill(os.getpid(), 9)"], "conv, 60 min")


def test_unknown_parts_of_the_acceptance_are_refused(monkeypatch, capsys, tmp_path):
    given = [word for name in ("model", "parents", "data", "out") for word in (f"--{name}", tmp_path / name)]
    error = refusal(small, monkeypatch, capsys, "accept", *given, "--parts", "readin")
    assert "invalid choice: 'readin'" in error and "reading" in error
