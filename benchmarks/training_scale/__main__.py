"""Training speed and memory at a real size: the tables of docs/scaling.md.

    python -m benchmarks.training_scale --output_dir build/scale --processes 4          # every launch config, GPUs
    python -m benchmarks.training_scale --output_dir build/scale --tiny                 # CPU: does every config train?
    python -m benchmarks.training_scale --output_dir build/gpu --one_gpu --minutes 1.5  # forms of a step and an answer

Weights are random and audio is noise: an encoder of the size of Whisper large-v3 (0.64 B) and a Llama of 1 B, joined
by LAD's connector (`lad-soft`) for distillation and imitation and by BLOOMZMMS' for alignment; with --one_gpu,
imitation has Ultravox's. With --tiny the embedded model takes their place. Each run is a process group of its own,
through `accelerate launch` with the packaged config. The ZeRO configs need DeepSpeed (`pip install deepspeed`).

A run that fails, or whose loss is not finite or does not fall, is named in the table, and the exit status is 1. On a
CPU, Accelerate has no FSDP: tests/test_distributed.py shards there by other means. Speed there says nothing.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .launches import CONFIGS, TRAINERS, run_all, run_one
from .measuring import COMPARED
from .one_gpu import run_forms

MEASURED = (
    ("steps_per_second", "steps/s"),
    ("audio_seconds_per_second", "audio s/s"),
    ("peak_gib", "peak GiB per process"),
    ("tflops_per_process", "TFLOP/s"),
    ("share_of_peak", "share of peak"),
)
LAUNCH_COLUMNS = (
    *(("config", "config"), ("trainer", "trainer"), ("processes", "processes")),
    *MEASURED,
    *(("first_loss", "first loss"), ("last_loss", "last loss"), ("note", "note")),
)
FORM_COLUMNS = (("form", "form"), *MEASURED, ("details", "more"), ("note", "note"))


def table(results: list[dict[str, Any]], columns: tuple[tuple[str, str], ...]) -> str:
    """Markdown, a row per entry."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(title for _, title in columns)} |", "|" + "---|" * len(columns)]
    for entry in results:
        entry = entry | {"details": details(entry)}
        lines.append(f"| {' | '.join(cell(entry.get(key)) for key, _ in columns)} |")
    return "\n".join(lines)


def details(entry: dict[str, Any]) -> str:
    """What a form found beside training: times of answers, attention and graphs."""
    told = [
        f"{row['seconds']:.0f} s x {row['batch']}: {1000 * row['first_token']:.0f} ms to the first token, "
        f"{row['tokens_per_second']:.0f} tokens/s"
        for row in entry.get("answers", [])
    ]
    times = entry.get("milliseconds", {})
    told += [f"{name} {'not here' if value is None else f'{value:.2f} ms'}" for name, value in times.items()]
    return "; ".join(told)


def write(results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """results.json and results.md in the output folder, and the last entry on the screen."""
    columns = FORM_COLUMNS if args.one_gpu else LAUNCH_COLUMNS
    print(table(results, columns).splitlines()[-1], flush=True)
    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "deadline")}
    text = json.dumps({"settings": settings, "torch": torch.__version__, "results": results}, indent=1)
    for name, content in (("results.json", text), ("results.md", table(results, columns) + "\n")):
        partial = Path(args.output_dir) / f"{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(Path(args.output_dir) / name)


def main() -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder for results.json, results.md and the runs' logs")
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=CONFIGS)
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=TRAINERS)
    parser.add_argument("--processes", type=int, default=2, help="processes, one per GPU")
    parser.add_argument("--steps", type=int, default=20, help="measured optimizer steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--batch_size", type=int, help="rows per process: 8, with --one_gpu 32")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--tiny", action="store_true", help="the embedded model, for a CPU")
    parser.add_argument("--one_gpu", action="store_true", help="forms of a step and of an answer, in one process")
    parser.add_argument("--minutes", type=float, default=10.0, help="with --one_gpu: what does not fit is left out")
    cores = max(min((os.cpu_count() or 1) - 2, 14), 0)
    parser.add_argument("--workers", type=int, default=cores, help="with --one_gpu: processes that load batches")
    parser.add_argument("--trainer", choices=TRAINERS, help=argparse.SUPPRESS)  # set for the processes of a run
    parser.add_argument("--result", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch_size = args.batch_size or (32 if args.one_gpu and not args.tiny else 8)
    if args.warmup < 1 or args.steps < 1:
        parser.error("give --warmup and --steps 1 or more: the clock starts at the end of the last step that warms up")
    if args.warmup + args.steps < COMPARED + 1 and not args.one_gpu:
        parser.error(
            f"--warmup and --steps together are {args.warmup + args.steps}, and whether the loss falls is told by its "
            f"first {COMPARED} and last {COMPARED} steps: give {COMPARED + 1} or more"
        )
    if args.trainer:
        run_one(args)
        return 0
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    args.deadline = begin + 60 * args.minutes
    results = (run_forms if args.one_gpu else run_all)(args, lambda entries: write(entries, args))
    print(table(results, FORM_COLUMNS if args.one_gpu else LAUNCH_COLUMNS))
    return int(any(entry["failed"] for entry in results))


if __name__ == "__main__":
    sys.exit(main())
