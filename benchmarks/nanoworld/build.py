"""Builds the embedded model from nothing: speech, LLM and encoder side by side, connector, evaluation, package.

    python -m benchmarks.nanoworld.build --out build/nanoworld
    python -m benchmarks.nanoworld.build --out build/nanoworld --package speechllm/nano

Every stage leaves its result in OUT and is skipped when it is there; a killed training goes on from its last
checkpoint. So the same command starts the build, resumes it anywhere, and does nothing once it is done. `OUT/log.txt`
keeps losses, validation scores and wall times.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.nanoworld import speech
from benchmarks.nanoworld.logbook import log


def in_parallel(out: Path, modules: list[str], cores: int, device: str) -> None:
    """Runs stages as processes of their own, each with its share of the cores; fails if one fails."""
    threads = max(cores // len(modules), 1)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    options = ["--out", str(out), "--threads", str(threads), "--device", device]
    running = [subprocess.Popen([sys.executable, "-m", module, *options], env=environment) for module in modules]
    try:
        failed = [module for module, process in zip(modules, running, strict=True) if process.wait() != 0]
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed; see the output above. The same command resumes the build.")


def build(out: Path, package: Path | None, cores: int, device: str) -> None:
    """All stages in order; see the module's description."""
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    log(out, "build: start", cores=cores, device=device)
    speech.build(out, workers=cores)
    in_parallel(out, ["benchmarks.nanoworld.train_llm", "benchmarks.nanoworld.train_encoder"], cores, device)
    in_parallel(out, ["benchmarks.nanoworld.train_connector"], cores, device)
    scores, model = out / "evaluation.json", out / "nano" / "model.safetensors"
    if scores.exists() and scores.stat().st_mtime < model.stat().st_mtime:  # of a model that is no more
        shutil.rmtree(out / "evaluation", ignore_errors=True)
        scores.unlink()
    if not scores.exists():
        in_parallel(out, ["benchmarks.nanoworld.evaluate"], cores, device)
    if package is not None:
        from benchmarks.nanoworld.package import make_package

        make_package(out, package, cores)
    log(out, "build: finished", seconds=time.monotonic() - begin)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nanoworld"), help="folder of all intermediate results")
    parser.add_argument("--package", type=Path, help="folder for the finished model, card and examples")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; two cores need about two hours")
    build(**vars(parser.parse_args()))
