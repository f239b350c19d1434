"""Speed on equal parts, side by side: training and time to the first token. See README.md.

python -m benchmarks.peers --parents FOLDER --out OUT                # FOLDER: whisper-base, smollm2-135m-instruct
python -m benchmarks.peers --random --device cuda --quick --out OUT  # no weights needed, 80 seconds
"""

import argparse
import json
import os
import platform
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.options import above_zero, whole

from . import first_token, training
from .parts import DTYPES, Parts, noise_rows, parts_from, random_parts
from .report import write_report

QUICK_MINUTES = 0.9  # on a GPU, imports and the report aside


@dataclass(frozen=True)
class Case:
    """One thing to measure, `rounds` times in turns with the others."""

    kind: str  # "training" or "first token"
    system: str
    work: str  # loss, or "3 s, batch 1"
    dtype: str

    @property
    def key(self) -> str:
        return " | ".join((self.kind, self.work, self.dtype, self.system))


@dataclass(frozen=True)
class Sizes:
    """How much is run: rounds of turns, and work in each."""

    rounds: int
    batch: int
    steps: int
    repeats: int
    row_seconds: tuple[float, float] = (3.0, 7.0)


def all_cases(args: argparse.Namespace) -> list[Case]:
    """Cases in the order in which they take turns: a system beside its peers on the same work."""
    cases = []
    for dtype in args.dtypes:
        for loss, loops in training.LOSSES.items():
            chosen = [loop for loop in loops if not (args.quick and loop.startswith("Trainer, ") and loop not in KEPT)]
            cases += [Case("training", loop, loss, dtype) for loop in chosen]
        for seconds in (3, 10):
            for batch in (1, 8):
                work = f"{seconds} s, batch {batch}"
                cases += [Case("first token", system, work, dtype) for system in first_token.SYSTEMS]
    return [case for case in cases if args.only in case.key]


KEPT = (training.PLAIN,)


class Results:
    """Measurements on disk; what is there is not measured again."""

    def __init__(self, file: Path, facts: dict[str, Any]):
        self.file = file
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if found and (changes := differences(found["facts"], facts)):
            raise SystemExit(
                f"{file} was measured with other settings, versions or on another machine: {'; '.join(changes)}. "
                "Go on with those, or give another --out."
            )
        self.measured: dict[str, list[dict]] = found.get("measured", {})
        self.failed: dict[str, str] = {}
        self.facts = facts

    def add(self, case: Case, values: dict[str, Any]) -> None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self.measured.setdefault(case.key, []).append(values | {"load": load})
        self.save()

    def save(self) -> None:
        content = {"facts": self.facts, "measured": self.measured, "failed": self.failed}
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(self.file)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What figures depend on and differs between the facts of two runs, as `rounds was 3 and is 2`."""

    def flat(facts: dict[str, Any]) -> dict[str, Any]:
        named = {"processor": facts.get("processor"), "name of the device": facts.get("device")}
        return facts["settings"] | named | facts.get("versions", {})

    before, now = flat(old), flat(new)
    return [
        f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def turns(cases: list[Case], rounds: int, results: Results) -> Iterator[tuple[int, Case]]:
    """Every case once, then every case again."""
    for number in range(rounds):
        for case in cases:
            if case.key not in results.failed and len(results.measured.get(case.key, [])) <= number:
                yield number, case


class Bench:
    """Runs cases; what they share (parts, rows, caches, answering systems) is made once."""

    def __init__(self, args: argparse.Namespace, parts: Parts, sizes: Sizes):
        self.args, self.parts, self.sizes = args, parts, sizes
        rows = sizes.batch * (sizes.steps + 1)
        self.rows = noise_rows(rows, sizes.row_seconds, seed=0)
        self.systems: dict[tuple[str, str], Any] = {}
        self.caches: dict[str, str] = {}

    def run(self, case: Case, number: int) -> dict[str, Any]:
        dtype, device = DTYPES[case.dtype], self.args.device
        if case.kind == "first token":
            key = (case.system, case.dtype)
            if key not in self.systems:
                self.systems[key] = first_token.make_system(case.system, self.parts, dtype, device)
            seconds, batch = (int(word) for word in case.work.replace(" s, batch", "").split())
            repeats = self.sizes.repeats * (3 if batch == 1 else 1)  # short ones vary more
            return {"seconds": first_token.measure(self.systems[key], seconds, batch, repeats, device)}
        work = training.Work(self.parts, self.rows, self.sizes.batch, self.sizes.steps, dtype, device)
        if case.system == training.CACHED and case.dtype not in self.caches:
            folder = Path(self.args.out) / f"cache-{case.dtype}"
            self.caches[case.dtype] = training.make_cache(work, folder)
        return training.measure(case.system, case.work, work, self.caches.get(case.dtype), seed=number)


def machine(args: argparse.Namespace, parts: Parts, sizes: Sizes) -> dict[str, Any]:
    """What the figures depend on."""
    settings = vars(sizes) | {"device": args.device, "parts": parts.source, "threads": torch.get_num_threads()}
    return {
        "settings": json.loads(json.dumps(settings)),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "begun": time.strftime("%Y-%m-%d %H:%M"),
    }


def processor_name() -> str:
    """Model of the CPU and which matrix instructions for bf16 it has."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    text = info.read_text()
    model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in text]
    return f"{model} ({', '.join(flags) or 'no bf16'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parents", type=Path, help="folder with whisper-base and smollm2-135m-instruct")
    parser.add_argument("--random", action="store_true", help="the same sizes with random weights")
    parser.add_argument("--out", type=Path, required=True, help="results.json, report.md, report.png; resumes there")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=None)
    parser.add_argument("--quick", action="store_true", help="bf16 alone, fewer rounds, no training of other families")
    parser.add_argument("--rounds", type=whole(1), help="turns of every case")
    stop = "stop measuring after so long; the report says what is missing"
    parser.add_argument("--minutes", type=above_zero, help=stop)
    parser.add_argument("--threads", type=whole(1), default=1, help="on a CPU; with one, processor time is taken")
    parser.add_argument("--only", default="", help='cases whose name has this in it, such as "divergence"')
    args = parser.parse_args()
    begin = time.monotonic()
    if args.random == (args.parents is not None):
        parser.error("give --parents FOLDER or --random, one of them")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    args.dtypes = args.dtypes or (["bf16"] if args.quick else ["bf16", "float32"])
    cases = all_cases(args)
    if not cases:
        parser.error(f"--only {args.only!r}: no case has this in its name, such as 'training | divergence | bf16'")
    on_gpu = args.device == "cuda"
    if not on_gpu:
        torch.set_num_threads(args.threads)
    args.minutes = args.minutes or (QUICK_MINUTES if args.quick and on_gpu else None)
    rounds = args.rounds or (2 if args.quick else 3)
    steps, repeats = ((16, 3) if args.quick else (48, 5)) if on_gpu else ((3, 1) if args.quick else (5, 2))
    sizes = Sizes(rounds=rounds, batch=8, steps=steps, repeats=repeats)
    args.out.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    parts = random_parts() if args.random else parts_from(args.parents)
    results = Results(args.out / "results.json", machine(args, parts, sizes))
    bench = Bench(args, parts, sizes)
    slowest: dict[str, float] = {}
    for number, case in turns(cases, sizes.rounds, results):
        expected = slowest.get(case.key, 0.0)
        if args.minutes and time.monotonic() - begin + expected > 60 * args.minutes:
            continue
        started = time.monotonic()
        try:
            values = bench.run(case, number)
        except Exception as error:  # one system that does not run here must not end the others' turns
            results.failed[case.key] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
            results.save()
            continue
        results.add(case, values)
        slowest[case.key] = time.monotonic() - started
        shown = values.get("samples_per_second") or min(values["seconds"])
        print(f"[{time.monotonic() - begin:5.0f} s] round {number + 1}, {case.key}: {shown:.3g}", flush=True)
    print(write_report(args.out, results.facts, results.measured, results.failed, [case.key for case in cases]))


if __name__ == "__main__":
    main()
