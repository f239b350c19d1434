"""The whole training on one GPU in under ten minutes, also on a machine without network.

    python -m benchmarks.small pack --out PIECES/ears --file wheels=WHEELS data/...=... parents/whisper-base=FOLDER ...
    python -m benchmarks.small pack --out PIECES/llm --file parents/smollm2-135m-instruct=FOLDER
    python -m benchmarks.small whole --pieces PIECES --work WORK --results RESULTS --minutes 8

`pack` puts files and folders into one archive, cut into pieces of at most 45 MB, which may be carried one at a time.
`whole` joins those of `ears` and installs the wheels (under WORK), speaks, hears, and reads, in as many runs as there
are `--run`s, all at once. Meanwhile `llm` may still be on its way: it is waited for. Then the LLM answers, learns to
hear through the best run (with LoRA), and is measured. Logs, tables and trained parts (float16) come into RESULTS, an
archive in pieces of at most 15 MB (`cat RESULTS/0* | tar xz`). A stage that fails stops the run; what is there by then
is in RESULTS all the same.
"""

import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

PIECE, RESULT_PIECE = 45_000_000, 15_000_000
LEAST = 30  # seconds that a training stage gets at least
KEPT = (
    "log.txt", "settings.json", "imitation.json", "vocabulary.json", "measured.json", "connector.safetensors",
    "encoder/config.json", "encoder/model.safetensors", "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)  # fmt: skip
SMALL = ("log.txt", "settings.json")  # of runs that were not the best
NATURAL = ("cv_en", "cv_other", "cv_unlabelled")


def pack(out: Path, files: list[str], piece: int = PIECE, compress: bool = False) -> int:
    """Writes `out/000`, `out/001`, ...: an archive of `name=path` pairs in pieces of at most `piece` bytes; returns
    their number."""
    out.mkdir(parents=True, exist_ok=True)
    archive = out / "archive.partial"
    with tarfile.open(archive, "w:gz" if compress else "w") as tar:
        for pair in files:
            name, path = pair.split("=", 1)
            tar.add(path, arcname=name)
    number = 0
    with archive.open("rb") as stream:
        while part := stream.read(piece):
            (out / f"{number:03d}").write_bytes(part)
            number += 1
    archive.unlink()
    (out / "complete").write_text(str(number), encoding="utf-8")
    return number


def arrived(pieces: Path) -> bool:
    """Whether all pieces of an archive are there."""
    count = pieces / "complete"
    return count.exists() and len([path for path in pieces.iterdir() if path.name.isdigit()]) == int(count.read_text())


def unpack(pieces: Path, work: Path) -> None:
    """Joins the pieces and unpacks them into `work`."""
    work.mkdir(parents=True, exist_ok=True)
    archive = work / "archive.partial"
    with archive.open("wb") as stream:
        for part in sorted(path for path in pieces.iterdir() if path.name.isdigit()):
            stream.write(part.read_bytes())
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    archive.unlink()


def convert_gguf(folder: Path) -> None:
    """An LLM that was carried as a GGUF file, as a float16 folder in its place."""
    files = sorted(folder.glob("*.gguf"))
    if not files or list(folder.glob("*.safetensors")):
        return
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=files[0].name, dtype=torch.float16)
    model.hf_quantizer = None  # the weights are whole again
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)


class Stages:
    """Runs stages of `benchmarks.small` as processes, with their output in a file each."""

    def __init__(self, work: Path, minutes: float):
        self.work, self.output = work, work / "output"
        self.end = time.monotonic() + minutes * 60
        self.output.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {"PYTHONPATH": str(work / "site"), "HF_HUB_OFFLINE": "1"}

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def start(self, name: str, *arguments: object) -> tuple[str, subprocess.Popen]:
        command = [sys.executable, "-m", "benchmarks.small", *map(str, arguments)]
        print(f"{self.left():.0f} s left: {' '.join(command[3:])}", flush=True)
        stream = (self.output / f"{name}.txt").open("w")
        return name, subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=self.environment)

    def wait(self, *started: tuple[str, subprocess.Popen]) -> None:
        """Raises a RuntimeError with the end of the output of a stage that failed."""
        failed = [name for name, process in started if process.wait()]
        if failed:
            raise RuntimeError(f"{failed[0]}: {(self.output / f'{failed[0]}.txt').read_text()[-3000:]}")

    def wait_for(self, there: Callable[[], bool]) -> None:
        """Raises a RuntimeError where it does not come in time."""
        while not there():
            if self.left() < 0:
                raise RuntimeError("the time is over, and a part is still missing")
            time.sleep(1)

    def keep(self, results: Path, best: str) -> None:
        """Packs outputs, and of each run logs and tables, with its weights if it is one of the best."""
        runs = sorted((self.work / "out/runs").glob("*"))
        files = [f"output={self.output}"]
        for folder in runs:
            names = KEPT if folder.name in (best, "imitate") else SMALL
            if folder.name == "imitate":
                names = tuple(name for name in names if not name.startswith("encoder/"))  # it is the best run's
            files += [f"{folder.name}/{name}={folder / name}" for name in names if (folder / name).exists()]
        print(f"{pack(results, files, RESULT_PIECE, compress=True)} pieces of results")


def last_error_rate(folder: Path) -> float:
    """Mean over the test sources of the last word error rates in a run's log."""
    found = re.findall(r"unseen speakers, (\w+) .*wer=([\d.]+)", (folder / "log.txt").read_text(encoding="utf-8"))
    last = dict(found)
    return sum(map(float, last.values())) / len(last)


def whole(
    pieces: Path,
    work: Path,
    results: Path,
    minutes: float,
    run: list[str],
    device: str = "cuda",
    sentences: int = 20000,
    answered: int = 12000,
    steps: int = 20000,
    share: float = 0.6,
    workers: int = 14,
    batch: int = 128,
) -> None:
    """See the module.

    Args:
        run: settings of a run of stage 1 as one text, `"--hidden_size 384 --seed 1"`; one for each.
        sentences: spoken by text-to-speech; answered: recordings with an answer of the LLM.
        steps: updates of stage 1 at most; share: of the time that is left, what stage 1 gets.
    """
    stages = Stages(work, minutes)
    out, best = work / "out", "read_0"
    where = ("--parents", work / "parents", "--out", out, "--device", device)
    try:
        unpack(pieces / "ears", work)
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", work / "site"]
        if not (work / "site").exists():
            subprocess.run([*install, *sorted((work / "wheels").glob("*.whl"))], check=True)
        out.mkdir(parents=True, exist_ok=True)
        if (work / "readings.jsonl").exists():
            (work / "readings.jsonl").replace(out / "readings.jsonl")
        ears = (*where, "--data", work / "data", "--workers", workers)
        ears += ("--batch_seconds", 240 if device == "cpu" else 1500)
        hear = stages.start("hear", "hear", *ears, "--source", *NATURAL)
        if not (out / "speech/tts").exists():  # else somebody is at it
            speech = ("--data", work / "data", "--out", out, "--count", sentences, "--workers", workers)
            stages.wait(stages.start("speak", "speak", *speech))
        stages.wait_for(lambda: (out / "speech/tts/manifest.jsonl").exists())
        stages.wait(hear, stages.start("hear_tts", "hear", *ears, "--source", "tts"))
        sources = ("--sources", "cv_en", "cv_unlabelled", "tts")
        reading = (*where, *sources, "--steps", steps, "--batch", batch)
        reading += ("--minutes", max(stages.left() * share, LEAST) / 60)
        reads = [
            stages.start(f"read_{n}", "read", *reading, "--run", f"read_{n}", *extra.split())
            for n, extra in enumerate(run)
        ]
        stages.wait_for(lambda: arrived(pieces / "llm"))
        unpack(pieces / "llm", work)
        stages.wait(stages.start("convert", "convert", "--folder", work / "parents/smollm2-135m-instruct"))
        stages.wait(stages.start("answers", "answers", *where, *sources, "--count", answered), *reads)
        best = min((f"read_{n}" for n in range(len(run))), key=lambda name: last_error_rate(out / "runs" / name))
        imitating = (*where, *sources, "--minutes", max(stages.left() - 40, LEAST) / 60, "--start", best)
        stages.wait(stages.start("imitate", "imitate", *imitating, "--run", "imitate"))
        stages.wait(stages.start("measure", "measure", *where, "--run", "imitate"))
        print(f"done, {stages.left():.0f} s left")
    finally:
        stages.keep(results, best)
