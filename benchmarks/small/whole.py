"""The whole training on one GPU in under ten minutes, also on a machine without network.

    python -m benchmarks.small pack --out PIECES --file wheels=WHEELS parents/whisper-base=FOLDER ...
    python -m benchmarks.small whole --pieces PIECES --work WORK --results RESULTS --minutes 9

`pack` puts files and folders into one archive, cut into pieces of at most 45 MB, which may be carried one at a time.
`whole` joins them and installs the wheels (under WORK), speaks, hears, reads (encoder frozen, and trained with three
seeds, all at once), imitates (with and without LoRA on the LLM) and measures. Logs, tables and trained parts (float16)
come into RESULTS, an archive in pieces of at most 15 MB (`cat RESULTS/0* | tar xz`). A stage that fails stops the run;
what is there by then is in RESULTS all the same.
"""

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

PIECE, RESULT_PIECE = 45_000_000, 15_000_000
LEAST = 60  # seconds that a training stage gets at least
KEPT = ("log.txt", "settings.json", "imitation.json", "vocabulary.json", "measured.json")
WEIGHTS = (
    "connector.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    "encoder_adapter/adapter_config.json", "encoder_adapter/adapter_model.safetensors",
)  # fmt: skip
WEIGHTS_OF = ("tuned_0", "imitate_16")  # runs whose weights are kept


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
    return number


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

    def keep(self, results: Path) -> None:
        """Packs outputs, logs and tables of all runs, and the weights of some, into the results."""
        runs = sorted((self.work / "out/runs").glob("*"))
        files = [f"output={self.output}"]
        for folder in runs:
            names = KEPT + (WEIGHTS if folder.name in WEIGHTS_OF else ())
            files += [f"{folder.name}/{name}={folder / name}" for name in names if (folder / name).exists()]
        print(f"{pack(results, files, RESULT_PIECE, compress=True)} pieces of results")


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
    rank: int = 64,
    extra: tuple[str, ...] = (),
) -> None:
    """See the module; `steps` of stage 1, `rank` of its encoder's LoRA, `extra` settings (`--hidden_size 512 ...`)."""
    stages = Stages(work, minutes)
    try:
        unpack(pieces, work)
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", work / "site"]
        subprocess.run([*install, *sorted((work / "wheels").glob("*.whl"))], check=True)
        run_stages(stages, work, device, sentences, seeds, steps, workers, rank, extra)
    finally:
        stages.keep(results)


def run_stages(
    stages: Stages,
    work: Path,
    device: str,
    sentences: int,
    seeds: int,
    steps: int,
    workers: int,
    rank: int,
    extra: tuple[str, ...],
) -> None:
    """The stages in order, side by side where one does not need the other."""
    where = ("--parents", work / "parents", "--out", work / "out", "--device", device)
    ears = (*where, "--data", work / "data", "--workers", workers, "--mel")
    ears += ("--batch_seconds", 240 if device == "cpu" else 1500)
    speech = ("--data", work / "data", "--out", work / "out", "--count", sentences, "--workers", workers)
    started = [
        stages.start("convert", "convert", "--folder", work / "parents/smollm2-135m-instruct"),
        stages.start("speak", "speak", *speech),
        stages.start("hear", "hear", *ears, "--source", "cv_en", "cv_other", "picovoice", "cv_unlabelled"),
    ]
    stages.wait(*started)
    stages.wait(stages.start("hear_tts", "hear", *ears, "--source", "tts"))
    sources = ("--sources", "cv_en", "cv_unlabelled", "tts")
    reading = (*where, *sources, "--minutes", max(stages.left() * 0.5, LEAST) / 60, "--steps", steps, *extra)
    runs = {f"tuned_{seed}": ("--seed", seed, "--encoder_rank", rank) for seed in range(seeds)}
    runs["frozen_0"] = ("--seed", 0)
    stages.wait(*[stages.start(name, "read", *reading, "--run", name, *more) for name, more in runs.items()])
    tests = ("--source", "cv_en", "cv_other")
    stages.wait(
        stages.start("again_0", "again", *where, "--run", "tuned_0", *tests, "cv_unlabelled", "tts"),
        *[stages.start(f"again_{n}", "again", *where, "--run", f"tuned_{n}", *tests) for n in range(1, seeds)],
    )
    imitating = (*where, *sources, "--minutes", max(stages.left() * 0.55, LEAST) / 60, "--start", "tuned_0")
    started = [stages.start(f"measure_{name}", "measure", *where, "--run", name) for name in runs]
    for rank in (0, 16):
        name = f"imitate_{rank}"
        started.append(stages.start(name, "imitate", *imitating, "--run", name, "--rank", rank))
    stages.wait(*started)
    stages.wait(*[stages.start(f"measure_imitate_{r}", "measure", *where, "--run", f"imitate_{r}") for r in (0, 16)])
    print(f"done, {stages.left():.0f} s left")
