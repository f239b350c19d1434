"""The claims of the papers, measured.

    python -m benchmarks.claims --world nano --out build/claims
    python -m benchmarks.claims --world nano --out build/claims --papers lad --seeds 0 --workers 2
    python -m benchmarks.claims --world real --out build/claims --parents PARENTS --data DATA

See README.md here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.options import whole

if TYPE_CHECKING:  # what it imports must not be imported before the environment is set
    from benchmarks.claims.runner import Job
    from benchmarks.claims.variants import Paper, Variant
    from benchmarks.claims.worlds import World

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """The command line."""
    from benchmarks.claims.variants import load_paper, papers

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=("nano", "real"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of data, runs and reports; goes on in it")
    parser.add_argument("--papers", nargs="+", default=papers(), choices=papers(), help="by default all")
    parser.add_argument("--variants", nargs="+", help="only these; by default all but those that say by_name")
    parser.add_argument("--seeds", type=whole(0), nargs="+", help="by default 0 1 2; in the real world on a CPU 0")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=whole(1), default=1, help="variants at a time, each in a process of its own")
    parser.add_argument("--steps", type=whole(1), help="updates of every training, to try it")
    parser.add_argument("--limit", type=whole(1), help="questions of every set, to try it")
    parser.add_argument("--questions", nargs="+", help="only these sets; what is told of others stays empty")
    parser.add_argument("--parents", type=Path, help="real: folder of whisper-base, gemma3-270m, ...")
    parser.add_argument("--data", type=Path, help="real: folder of common_voice, xquad, text, ...")
    parser.add_argument("--report", action="store_true", help="only tables and pictures of what has been run")
    parser.add_argument("--docs", type=Path, help="Markdown page whose marked tables are renewed")
    arguments = parser.parse_args()
    if arguments.world == "real" and not arguments.report and not (arguments.parents and arguments.data):
        parser.error(
            "--world real needs --parents and --data: benchmarks/claims/README.md tells what is in these folders."
        )
    seeds = arguments.seeds
    if seeds is None:
        seeds = [0] if arguments.world == "real" and arguments.device == "cpu" else [0, 1, 2]
    given = {"parents": str((arguments.parents or Path("parents")).resolve())}
    chosen = [load_paper(name, arguments.world, given) for name in arguments.papers]
    check_arguments(parser, arguments, chosen)
    failure = None
    if not arguments.report:
        try:
            run_papers(arguments, chosen, seeds)
        except (OSError, ValueError) as error:  # what it found, and the remedy
            parser.exit(2, f"{error}\n")
        except RuntimeError as error:  # a job failed, or its process was ended
            failure = error
    from benchmarks.claims.report import write_reports

    written = write_reports(arguments.out, arguments.world, chosen, arguments.docs)
    if failure is not None:
        parser.exit(2, f"{failure}\nWhat is done stays, and the same command goes on from there.\n")
    if arguments.report and not written:
        parser.exit(1, f"There are no results in {arguments.out / arguments.world / 'runs'}: leave out --report.\n")


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace, chosen: list[Paper]) -> None:
    """Ends with a message if something that was asked for is not there: now, not after hours of work."""
    if arguments.device == "cuda" and not arguments.report:
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: there is none here that PyTorch can use. Leave it out, for a CPU.")
    if arguments.report and (arguments.variants or arguments.seeds or arguments.questions):
        parser.error("--report tells of all that has been run: leave out --variants, --seeds and --questions.")
    if arguments.report and not (arguments.out / arguments.world).is_dir():
        parser.error(f"{arguments.out / arguments.world} is not there, so there is nothing to report on.")
    if arguments.docs and (arguments.steps or arguments.limit or arguments.questions):
        parser.error("--docs is for whole runs: leave out --steps, --limit and --questions, or --docs.")
    if arguments.docs:
        from benchmarks.claims.report import check_page

        try:
            check_page(arguments.docs, arguments.world, [paper.name for paper in chosen])
        except (OSError, ValueError) as error:
            parser.error(str(error))
    known = {name: variant for paper in chosen for name, variant in paper.variants.items()}
    sets = sorted({name for variant in known.values() for name in variant.questions})
    for name in arguments.questions or ():
        if name not in sets:
            parser.error(f"no questions {name} in {', '.join(arguments.papers)}; there are {', '.join(sets)}.")
    left_out = {name for paper in chosen for name in paper.left_out}
    for name in arguments.variants or ():
        if name in left_out and name not in known:
            parser.error(f"{name} is left out of the {arguments.world} world: papers/*.yaml in benchmarks/claims.")
        if name not in known:
            parser.error(f"no variant {name} in {', '.join(arguments.papers)}; there are {', '.join(known)}.")
        if known[name].same_as:
            paper, _, other = known[name].same_as.partition("/")
            parser.error(f"{name} is run as {known[name].same_as}: --papers {paper} --variants {other}")


def run_papers(arguments: argparse.Namespace, chosen: list[Paper], seeds: list[int]) -> None:
    """Builds the world, and runs the chosen variants under each seed in turn."""
    from benchmarks.claims.runner import Job, check_job, missing_before, run_job

    def asked_only(variant: Variant) -> Variant:
        """The variant with those of its question sets that are wanted."""
        wanted = arguments.questions or variant.questions
        return replace(variant, questions=tuple(name for name in variant.questions if name in wanted))

    world = build_world(arguments)
    overrides = {"max_steps": arguments.steps} if arguments.steps else None
    jobs: list[Job] = [
        Job(arguments.out, world, variant, seed, arguments.device, overrides, arguments.limit)
        for seed in seeds
        for paper in chosen
        for variant in map(asked_only, paper.variants.values())
        if not variant.same_as and (variant.name in arguments.variants if arguments.variants else not variant.by_name)
    ]
    for job in missing_before(jobs):  # before hours of work
        raise ValueError(
            f"{job.variant.name} goes on from {job.variant.after}, which has not been run with seed {job.seed}. Add "
            f"{job.variant.after} to --variants."
        )
    for job in jobs:
        if job.begun:
            check_job(job)
    for seed in seeds:
        for after in (False, True):
            wave = [job for job in jobs if job.seed == seed and (job.variant.after is not None) == after]
            run_all(wave, arguments.workers, run_job)


def build_world(arguments: argparse.Namespace) -> World:
    """The world's recordings, rows and questions, made or found."""
    if arguments.world == "nano":
        from benchmarks.claims import nano

        return nano.build(arguments.out, nano.Size(), workers=arguments.workers)
    from benchmarks.claims import real

    return real.build(arguments.out, arguments.parents, arguments.data, device=arguments.device)


def run_all(jobs: list[Job], workers: int, run: Callable[[Job], dict]) -> None:
    """Runs jobs that are not done, so many at a time; each says what it has cost."""
    open_jobs = [job for job in jobs if not job.result.exists()]
    if workers == 1 or len(open_jobs) < 2:
        for job in open_jobs:
            say(job, run(job))
        return
    from benchmarks.claims.runner import end_with_parent

    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        for job, result in zip(open_jobs, pool.map(run, open_jobs), strict=True):
            say(job, result)


def say(job: Job, result: dict) -> None:
    """One line about a finished job."""
    seconds = result["seconds"]
    spent = f"training {seconds['training']:.0f} s, evaluation {seconds['evaluation']:.0f} s"
    print(f"== {job.variant.paper} {job.variant.name}, seed {job.seed}: {spent}", flush=True)


if __name__ == "__main__":
    main()
