"""Interrupted runs: what is resumed is what would have been, and what is half-written is never resumed from."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import name_parents
from datasets import Dataset
from factories_training import tiny_parts, tone, tone_rows
from safetensors.torch import load_file, save_file
from test_trainers import build, logged

import trainers.checkpoints.whole_checkpoints as whole_checkpoints
from modeling_speechllm import SpeechLLMForConditionalGeneration
from trainers.checkpoints.averaging import average_checkpoints, best_checkpoints
from trainers.checkpoints.folders import CARD_FILES, MARKER, checkpoint_folders, is_whole, last_checkpoint

pytestmark = pytest.mark.slow

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "per_device_train_batch_size": 2}
RUNS = {
    "alignment": {},
    "alignment-language": {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"},
    "imitation": {"train_sampling_strategy": "group_by_length"},
    "imitation-divergence": {"augmentation": {"speed_factors": [0.9, 1.0, 1.1], "noise_probability": 0.5}},
    "distillation": {"teacher_forcing": True},
    "distillation-response": {"batch_seconds": 2.0},
}


def test_a_resumed_run_that_has_had_all_of_its_updates_has_no_other(tmp_path):
    finished = build("imitation", tmp_path, **SAVING)
    finished.train()
    again = build("imitation", tmp_path, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6 and logged(again, "loss") == logged(finished, "loss")
    for left, right in zip(again.model.parameters(), finished.model.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_has_the_losses_of_the_unbroken_one(kind, step, tmp_path):
    settings = SAVING | RUNS[kind]
    unbroken = build(kind, tmp_path, **settings)
    unbroken.train()
    for folder in checkpoint_folders(tmp_path):
        if int(folder.name.split("-")[-1]) > step:
            shutil.rmtree(folder)
    resumed = build(kind, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    for name in ("loss", "grad_norm", "learning_rate"):
        assert logged(resumed, name) == pytest.approx(logged(unbroken, name), rel=1e-6), name
    for left, right in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_resumed_stream_has_the_losses_of_the_unbroken_one(tmp_path):
    rows = tone_rows(answered=True).to_iterable_dataset()
    settings = SAVING | {"buffer_size": 4, "gradient_accumulation_steps": 2}
    unbroken = build("imitation", tmp_path, rows, **settings)
    unbroken.train()
    resumed = build("imitation", tmp_path, rows, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(resumed) == pytest.approx(logged(unbroken), rel=1e-6)


def test_trained_parts_alone_resume_too(tmp_path):
    def parts():
        model, processor = tiny_parts()
        name_parents(model)
        return model, processor

    unbroken = build("imitation", tmp_path, None, *parts(), **SAVING)
    unbroken.train()
    resumed = build("imitation", tmp_path, None, *parts(), **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert logged(resumed) == pytest.approx(logged(unbroken), rel=1e-6)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_trainers import build
import trainers.speech_trainer as speech_trainer

def die(self, folder):
    if self.state.global_step == 4:
        with open(os.path.join(folder, "optimizer.pt"), "wb") as file:
            file.write(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    save(self, folder)

save = speech_trainer.SpeechTrainer._save_optimizer_and_scheduler
speech_trainer.SpeechTrainer._save_optimizer_and_scheduler = die
settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "per_device_train_batch_size": 2}
build("imitation", sys.argv[1], **settings).train()
"""


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_one_before(tmp_path):
    unbroken = build("imitation", tmp_path / "unbroken", **SAVING)
    unbroken.train()
    folder = tmp_path / "killed"
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(tests)], env=environment, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert (folder / "checkpoint-4" / "optimizer.pt").exists() and not is_whole(folder / "checkpoint-4")
    assert last_checkpoint(folder) == folder / "checkpoint-2"
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        build("imitation", folder, **SAVING).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    resumed = build("imitation", folder, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed) == pytest.approx(logged(unbroken), rel=1e-6)
    assert is_whole(folder / "checkpoint-4")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, to be copied before it is spoilt."""
    folder = tmp_path_factory.mktemp("run")
    build("imitation", folder, **SAVING).train()
    return folder


def test_a_checkpoint_cut_short_in_any_file_is_not_whole(run, tmp_path):
    names = [path.relative_to(run / "checkpoint-6") for path in (run / "checkpoint-6").rglob("*") if path.is_file()]
    names = [name for name in names if name.name not in CARD_FILES]  # nothing is resumed from them
    assert len(names) > 5
    for number, name in enumerate(names):
        folder = shutil.copytree(run, tmp_path / str(number))
        path = folder / "checkpoint-6" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert last_checkpoint(folder) == folder / "checkpoint-4", name


def test_no_whole_checkpoint_is_an_error(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="no whole checkpoint to resume from"):
        last_checkpoint(tmp_path)


def test_checkpoints_of_other_programs_are_left_alone(run, tmp_path):
    foreign = tmp_path / "checkpoint-9"
    foreign.mkdir()
    (foreign / "model.safetensors").write_bytes(b"somebody else's")
    build("imitation", tmp_path, max_steps=1).train()
    assert foreign.exists()


@pytest.mark.parametrize("limit", [1, 2])
def test_old_checkpoints_go_only_once_the_new_one_is_whole(limit, tmp_path, monkeypatch):
    trainer = build("imitation", tmp_path, **SAVING, save_total_limit=limit)
    whole = []
    mark = whole_checkpoints.mark_whole
    monkeypatch.setattr(
        whole_checkpoints,
        "mark_whole",
        lambda folder: (whole.append([f.name for f in checkpoint_folders(tmp_path) if is_whole(f)]), mark(folder)),
    )
    trainer.train()
    assert whole[1] and whole[2]
    assert len(checkpoint_folders(tmp_path)) == limit


def test_a_full_disk_says_so_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = build("imitation", tmp_path, **SAVING)
    save = torch.save

    def full(thing, path, *args, **kwargs):
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(thing, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RuntimeError, match="checkpoint-4 could not be written.*No space left.*Free some disk"):
        trainer.train()
    monkeypatch.undo()
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    resumed = build("imitation", tmp_path, **SAVING)
    assert resumed.train(resume_from_checkpoint=True).global_step == 6


def test_other_data_or_batches_under_a_resumed_run_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    rows = tone_rows(answered=True)
    fewer = build("imitation", tmp_path / "run", rows.select(range(7)), **SAVING)
    with pytest.raises(ValueError, match="dataset was .* is "):
        fewer.train(resume_from_checkpoint=True)
    other = build("imitation", tmp_path / "run", rows, **SAVING | {"per_device_train_batch_size": 4})
    with pytest.raises(ValueError, match="per_device_train_batch_size was 2, is 4"):
        other.train(resume_from_checkpoint=True)


def test_audio_that_goes_missing_in_a_run_is_set_aside(tmp_path):
    rows = [dict(row) for row in tone_rows(8, answered=True)]
    for number, row in enumerate(rows):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, tone(number, row["duration"]), 16000)
        row["audio"] = {"path": str(path), "bytes": None}
    trainer = build("imitation", tmp_path / "run", Dataset.from_list(rows), max_steps=2, per_device_train_batch_size=8)
    (tmp_path / "3.wav").unlink()
    trainer.train()
    [bad] = trainer.bad_rows.read()
    assert bad["id"] == "row-3" and "3.wav" in bad["source"]
    assert logged(trainer, "bad_rows") == [1, 1]


def test_the_best_checkpoints_are_averaged(tmp_path):
    trainer = build(
        "imitation",
        tmp_path,
        eval_rows=tone_rows(answered=True),
        **SAVING | {"eval_strategy": "steps", "eval_steps": 2, "average_best": 2},
    )
    trainer.train()
    history = trainer.state.log_history
    best = best_checkpoints(tmp_path, history, "eval_loss", False, 2)
    values = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert [folder.name for folder in best] == [f"checkpoint-{step}" for step in sorted(values, key=values.get)[:2]]
    models = [SpeechLLMForConditionalGeneration.from_pretrained(folder) for folder in best]
    averaged = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "averaged")
    for name, parameter in averaged.named_parameters():
        mean = sum(dict(model.named_parameters())[name].double() for model in models) / 2
        torch.testing.assert_close(parameter.double(), mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(dict(trainer.model.named_parameters())[name], parameter)


def test_averaging_needs_checkpoints_of_one_run(run, tmp_path):
    with pytest.raises(ValueError, match="3 checkpoints|are to be averaged"):
        best_checkpoints(run, [], "eval_loss", False, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds none of"):
        average_checkpoints([tmp_path / "empty"], tmp_path / "out")


def test_integers_are_copied_and_not_averaged(tmp_path):
    for number in range(6):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        weights = {"bits": torch.arange(-128, 128).to(torch.int8), "weight": torch.full((2,), float(number))}
        save_file(weights, folder / "model.safetensors")
    folders = sorted(tmp_path.glob("checkpoint-*"))
    found = load_file(average_checkpoints(folders, tmp_path / "averaged") / "model.safetensors")
    assert torch.equal(found["bits"], torch.arange(-128, 128).to(torch.int8)) and found["weight"].tolist() == [
        2.5,
        2.5,
    ]
    save_file(weights | {"bits": weights["bits"] + 1}, folders[-1] / "model.safetensors")
    with pytest.raises(ValueError, match="bits is of integers and not the same"):
        average_checkpoints(folders, tmp_path / "other")


def test_training_stops_early_without_progress(tmp_path):
    trainer = build(
        "distillation",
        tmp_path,
        eval_rows=tone_rows(),
        eval_strategy="steps",
        eval_steps=1,
        early_stopping_patience=2,
        learning_rate=0.0,
        max_steps=10,
    )
    trainer.train()
    assert trainer.state.global_step == 3


def test_the_marker_is_written_last(run):
    folder = run / "checkpoint-6"
    newest = max(path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    assert (folder / MARKER).stat().st_mtime_ns >= newest
