"""The whole training on one GPU in under ten minutes, also on a machine without network.

    python -m benchmarks.small pack --out PIECES --file wheels=WHEELS parents/whisper-base=FOLDER ...
    python -m benchmarks.small whole --pieces PIECES --work WORK --results RESULTS --minutes 9

`pack` puts files and folders into one archive, cut into pieces of at most 60 MB, which may be carried one at a time.
`whole` joins them and installs the wheels, then speaks, hears, reads (three seeds at once), imitates (with and without
LoRA) and measures; logs, tables and trained parts (float16) of each run come into RESULTS. A stage that fails stops
the run, and what is there by then is in RESULTS all the same.
"""

import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

PIECE = 60_000_000
LEAST = 60  # seconds that a training stage gets at least
KEPT = (
    "log.txt", "settings.json", "imitation.json", "vocabulary.json", "measured.json", "connector.safetensors",
    "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
)  # fmt: skip


def pack(out: Path, files: list[str], piece: int = PIECE) -> None:
    """Writes `out/000`, `out/001`, ...: an archive of `name=path` pairs in pieces of at most `piece` bytes."""
    out.mkdir(parents=True, exist_ok=True)
    archive = out / "archive.partial"
    with tarfile.open(archive, "w") as tar:
        for pair in files:
            name, path = pair.split("=", 1)
            tar.add(path, arcname=name)
    with archive.open("rb") as stream:
        number = 0
        while part := stream.read(piece):
            (out / f"{number:03d}").write_bytes(part)
            number += 1
    archive.unlink()
    print(f"{number} pieces in {out}")


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
    model.save_pretrained(folder)


class Stages:
    """Runs stages of `benchmarks.small` as processes, with their output in one file each."""

    def __init__(self, work: Path, results: Path, minutes: float, device: str):
        self.work, self.results, self.device = work, results, device
        self.end = time.monotonic() + minutes * 60
        results.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def start(self, name: str, *arguments: str) -> tuple[str, subprocess.Popen]:
        command = [sys.executable, "-m", "benchmarks.small", *map(str, arguments)]
        print(f"{self.left():.0f} s left: {' '.join(command[3:])}", flush=True)
        stream = (self.results / f"{name}.txt").open("w")
        return name, subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)

    def wait(self, *started: tuple[str, subprocess.Popen]) -> None:
        """Raises a RuntimeError with the end of the output of a stage that failed."""
        failed = [name for name, process in started if process.wait()]
        self.keep()
        if failed:
            raise RuntimeError(f"{failed[0]}: {(self.results / f'{failed[0]}.txt').read_text()[-2000:]}")

    def keep(self) -> None:
        """Copies the small files of all runs to the results."""
        for folder in sorted((self.work / "out/runs").glob("*")):
            for name in KEPT:
                if (folder / name).exists():
                    target = self.results / folder.name / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / name, target)


def whole(
    pieces: Path,
    work: Path,
    results: Path,
    minutes: float,
    device: str = "cuda",
    sentences: int = 20000,
    seeds: int = 3,
    steps: int = 6000,
    workers: int = 14,
    extra: tuple[str, ...] = (),
) -> None:
    """See the module; `steps` of stage 1, `extra` settings of its connector (`--hidden_size 512 ...`)."""
    stages = Stages(work, results, minutes, device)
    unpack(pieces, work)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--find-links", str(work / "wheels")]
    subprocess.run([*install, *sorted(map(str, (work / "wheels").glob("*.whl")))], check=True)
    convert_gguf(work / "parents/smollm2-135m-instruct")
    where = ("--parents", work / "parents", "--out", work / "out", "--device", device)
    ears = (*where, "--data", work / "data", "--workers", workers, "--batch_seconds", 240 if device == "cpu" else 1500)
    speaking = stages.start(
        "speak", "speak", "--data", work / "data", "--out", work / "out", "--count", sentences, "--workers", workers
    )
    stages.wait(stages.start("hear", "hear", *ears, "--source", "cv_en", "cv_other", "picovoice", "cv_unlabelled"))
    stages.wait(speaking)
    stages.wait(stages.start("hear_tts", "hear", *ears, "--source", "tts"))
    budget = max(stages.left() * 0.5, LEAST) / 60
    reading = (*where, "--minutes", budget, "--steps", steps, "--sources", "cv_en", "cv_unlabelled", "tts", *extra)
    stages.wait(
        *[stages.start(f"read_{n}", "read", *reading, "--run", f"read_{n}", "--seed", n) for n in range(seeds)]
    )
    budget = max(stages.left() * 0.55, LEAST) / 60
    imitating = (*where, "--minutes", budget, "--start", "read_0", "--sources", "cv_en", "cv_unlabelled", "tts")
    measuring = [stages.start(f"measure_read_{n}", "measure", *where, "--run", f"read_{n}") for n in range(seeds)]
    ranks = (0, 16)
    stages.wait(
        *[stages.start(f"imitate_{r}", "imitate", *imitating, "--run", f"imitate_{r}", "--rank", r) for r in ranks],
        *measuring,
    )
    stages.wait(*[stages.start(f"measure_imitate_{r}", "measure", *where, "--run", f"imitate_{r}") for r in ranks])
    print(f"done, {stages.left():.0f} s left")
