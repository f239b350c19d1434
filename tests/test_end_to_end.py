"""From recordings to an answer through the installed command: targets, encode, train, kill, resume, ask.

Every command is a process of its own, in a folder without the repository on its path; the recipes are the packaged
ones with fewer steps.
"""

import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = str(Path(sysconfig.get_path("scripts")) / "speechllm")
REPOSITORY = Path(__file__).parent.parent
RECORDINGS = 16
SHORT = ["--logging_steps", "1", "--disable_tqdm", "true"]
IMITATE = ["imitate", "--config", "nano-imitate", "--frames_cache", "nano-cache", "--max_steps", "12"]
IMITATE += ["--save_steps", "4", "--eval_steps", "12", *SHORT]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folder in which the commands run, with recordings in it."""
    folder = tmp_path_factory.mktemp("place")
    recordings = ["benchmarks.nanoworld.recordings", "--out", str(folder / "nano-data"), "--count", str(RECORDINGS)]
    finish(subprocess.Popen([sys.executable, "-m", *recordings], cwd=REPOSITORY, env=environment(folder), **PIPES))
    return folder


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([COMMAND, *arguments], cwd=folder, env=environment(folder), **PIPES)


def finish(process: subprocess.Popen) -> str:
    """What a process printed; it must end well."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return output


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def prepared(place) -> Path:
    """The folder with targets and cache too."""
    targets, cache = (
        start(place, "targets", "--config", "nano-targets"),
        start(place, "encode", "--config", "nano-encode"),
    )
    assert f"{RECORDINGS} rows of {RECORDINGS} utterances" in finish(targets)
    assert f"audios {RECORDINGS + RECORDINGS // 8}," in finish(cache)
    return place


def test_a_killed_training_goes_on_as_if_nothing_had_happened_and_answers(prepared):
    unbroken = start(prepared, *IMITATE, "--output_dir", "unbroken")
    killed = start(prepared, *IMITATE, "--output_dir", "killed")
    marker, deadline = prepared / "killed" / "checkpoint-4" / "checkpoint_complete.json", time.monotonic() + 240
    while not marker.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -9 and not (prepared / "killed" / "config.json").exists()
    finish(unbroken)

    output = finish(start(prepared, *IMITATE, "--output_dir", "killed"))
    assert f"Going on from {Path('killed') / 'checkpoint-'}" in output
    assert len(losses(prepared / "killed")) == 12
    assert losses(prepared / "killed") == pytest.approx(losses(prepared / "unbroken"), rel=1e-6)

    models = [prepared / name / "model.safetensors" for name in ("killed", "unbroken")]
    assert models[0].read_bytes() == models[1].read_bytes()

    question = ["nano-data/validation/00000.wav", "Transcribe the speech.", "--json"]
    answer = json.loads(finish(start(prepared, "ask", *question, "--model", "killed")))
    assert answer["answer"].strip() and answer["model"] == "killed"


def test_alignment_and_distillation_learn_with_their_recipes(place):
    align = start(place, "align", "--config", "nano-align", "--max_steps", "12", "--warmup_steps", "0", *SHORT)
    distill = start(place, "distill", "--config", "nano-distill", "--max_steps", "12", "--warmup_steps", "0", *SHORT)
    says = {"nano-align": "speechllm imitate --model nano-align", "nano-distill": "Ask it: speechllm ask RECORDING"}
    for name, process in (("nano-align", align), ("nano-distill", distill)):
        assert says[name] in finish(process)
        curve = losses(place / name)
        assert len(curve) == 12 and curve[-1] < 0.9 * curve[0], name
        assert (place / name / "processor_config.json").exists()
