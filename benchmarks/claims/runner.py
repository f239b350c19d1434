"""One variant under one seed: train by the package's command, ask by `speechllm evaluate`, keep the result.

    OUT/WORLD/runs/PAPER/VARIANT/seed-N/result.json     the last thing that is written: who has it is done
    ... /recipe.yaml                                    the training as `speechllm COMMAND --config recipe.yaml`
    ... /scores/SET/                                    what `speechllm evaluate` wrote

A killed run goes on: finished results are not made again, a training goes on from its last whole checkpoint or begins
anew, an evaluation asks what is still open. The text bound and the cascade of a frozen LLM are the same for all
variants; they are asked once for each set and lent to the others.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.claims.commands import run_command
from benchmarks.claims.variants import Variant, merge
from benchmarks.claims.worlds import World
from trainers.data.shards import open_run

LENT = ("text_bound", "cascade")
BATCH = 64


@dataclass(frozen=True)
class Job:
    """A variant under a seed, in a world whose results are in `out`."""

    out: Path
    world: World
    variant: Variant
    seed: int
    device: str = "cpu"
    overrides: Mapping[str, Any] | None = None
    limit: int | None = None

    @property
    def folder(self) -> Path:
        return job_folder(self.out, self.world.name, self.variant.paper, self.variant.name, self.seed)

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def begun(self) -> bool:
        return (self.folder / "manifest.json").exists()


def job_folder(out: Path, world: str, paper: str, variant: str, seed: int) -> Path:
    """Where a variant under a seed is kept."""
    return out / world / "runs" / paper / variant / f"seed-{seed}"


def run_job(job: Job) -> dict[str, Any]:
    """The result of a job, made now or found."""
    check_job(job)
    if job.result.exists():
        return json.loads(job.result.read_text(encoding="utf-8"))
    use_device(job.device)
    parts = list(parts_of(job))
    try:
        with FileLock(job.folder / "lock", blocking=False):
            found = [run_part(job, *part) for part in parts]
    except Timeout as error:
        raise RuntimeError(f"Another process is at work on {job.folder}. Wait for it, or stop it.") from error
    result = {
        "paper": job.variant.paper,
        "variant": job.variant.name,
        "world": job.world.name,
        "seed": job.seed,
        "device": job.device,
        "parts": len(found),
        **mean_of(found),
        "seconds": {name: round(sum(part["seconds"][name] for part in found), 1) for name in found[0]["seconds"]},
    }
    asked_for = {"steps": (job.overrides or {}).get("max_steps"), "limit": job.limit}
    if shortened := {name: value for name, value in asked_for.items() if value is not None}:
        result["shortened"] = shortened
    write_result(job.result, result)
    for name, *_ in parts:
        if not job.variant.keep:
            shutil.rmtree(job.folder / name / "model", ignore_errors=True)
    return result


def end_with_parent() -> None:
    """Ends this worker where the main process was killed; else it would go on with its jobs and then wait for ever."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def check_job(job: Job) -> None:
    """
    Begins a job in an empty folder, or refuses one that was begun with other settings.

    Raises:
        ValueError: by name of what changed.
    """
    open_run(job.folder, asked(job))


def asked(job: Job) -> dict[str, Any]:
    """What a job's results depend on; a folder with the results of other settings is refused."""
    variant = job.variant
    facts = {
        "command": variant.command,
        "settings": merge(variant.settings, job.overrides or {}),
        "data": variant.data,
    }
    facts |= {name: getattr(variant, name) for name in ("validation", "parts", "after", "starts", "changes_llm")}
    return facts | {"questions": list(variant.questions), "limit": job.limit, "seed": job.seed}


def missing_before(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that go on from a variant which is neither among the jobs nor there."""
    names = {(job.variant.paper, job.variant.name, job.seed) for job in jobs}
    return [
        job
        for job in jobs
        if job.variant.after
        and (job.variant.paper, job.variant.after, job.seed) not in names
        and not (model_before(job) / "config.json").exists()
    ]


def model_before(job: Job) -> Path:
    """The model of the variant that a job goes on from."""
    return job_folder(job.out, job.world.name, job.variant.paper, job.variant.after, job.seed) / "whole" / "model"


def use_device(device: str) -> None:
    """Where Accelerate and the commands run."""
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def parts_of(job: Job) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Name, settings and question sets (by the variant's names for them) of each training of a job: one, or one per
    language with its share of the updates."""
    variant, world = job.variant, job.world
    base = merge(variant.settings, job.overrides or {})
    languages: Sequence[str | None] = world.languages if variant.parts == "languages" else [None]
    for language in languages:
        name = language or "whole"
        settings, suffix = dict(base), f"-{language}" if language else ""
        if "max_steps" in settings:
            settings["max_steps"] = max(settings["max_steps"] // len(languages), 1)
        settings |= where_to(job, name) | data_of(job, suffix, settings.get("max_steps"))
        sets = {questions: f"{questions}{suffix}" for questions in variant.questions}
        yield name, settings, {key: full for key, full in sets.items() if full in world.questions}


def where_to(job: Job, name: str) -> dict[str, Any]:
    """Model to start from, and the place of the new one."""
    settings: dict[str, Any] = {"seed": job.seed, "output_dir": str(job.folder / name / "model")}
    settings["disable_tqdm"] = True
    # Variants share the cores: 13 and more at a time on 16 cores beside a GPU took some 220 s for 300 updates with the
    # loaders that come by default, 38 to 51 s for 250 without.
    settings["dataloader_num_workers"] = 0
    # Many processors have no matrix instructions for bf16 and take twice as long with it.
    settings |= {"use_cpu": True} if job.device == "cpu" else {"bf16": True}
    if job.variant.starts:
        return settings | {"model": job.world.models[job.variant.starts], "connector": None}
    if job.variant.after is None:
        return settings | dict(job.world.parents[job.variant.paper])
    return settings | {"model": str(model_before(job)), "connector": None}


def data_of(job: Job, suffix: str, steps: int | None) -> dict[str, Any]:
    """Rows of training and validation, and their frames."""
    name, validation = job.variant.data, job.variant.validation
    settings: dict[str, Any] = {"dataset": [job.world.data[f"{name}{suffix}"]]}
    if validation:
        settings |= {"eval_dataset": [job.world.data[f"{validation}{suffix}"]], "eval_steps": steps}
    cache = job.world.frames[job.variant.frames] if job.variant.frames else job.world.frames.get(name)
    return settings | ({"frames_cache": cache} if cache else {})


def run_part(job: Job, name: str, settings: dict[str, Any], questions: Mapping[str, str]) -> dict[str, Any]:
    """One training and its questions."""
    place, model = job.folder / name, Path(settings["output_dir"])
    done = place / "trained.json"
    settings = {key: value for key, value in settings.items() if value is not None}
    if not done.exists():
        if model.exists() and not any(model.glob("checkpoint-*")):
            shutil.rmtree(model)
        begin = time.monotonic()
        run_command(job.variant.command, settings, place / "recipe.yaml")
        write_result(done, training_facts(model) | {"seconds": round(time.monotonic() - begin, 1)})
    if job.world.helpers and model.exists():
        shutil.copytree(job.world.helpers, model / "helpers", dirs_exist_ok=True)
    trained = json.loads(done.read_text(encoding="utf-8"))
    scores = {key: ask(job, place, model, full) for key, full in questions.items()}
    seconds = sum(score.pop("seconds") for score in scores.values())
    return {
        "trained_parameters": trained["trained_parameters"],
        "losses": trained["losses"],
        "scores": scores,
        "seconds": {"training": trained["seconds"], "evaluation": round(seconds, 1)},
    }


def training_facts(model: Path) -> dict[str, Any]:
    """How many parameters a finished training had, and the terms of its last evaluation (none without)."""
    history = json.loads((model / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    measured = next((entry for entry in reversed(history) if "eval_loss" in entry), {})
    losses = {key.removeprefix("eval_"): value for key, value in measured.items() if key.startswith("eval_")}
    facts = json.loads((model / "facts.json").read_text(encoding="utf-8"))["training"][-1]
    return {"trained_parameters": facts.get("trained_parameters"), "losses": losses}


def ask(job: Job, place: Path, model: Path, questions: str) -> dict[str, Any]:
    """The figures of one question set and the seconds that it took, made now or found."""
    from speechllm.evaluation.config import EvaluationConfig
    from speechllm.evaluation.run import evaluate

    output, begin = place / "scores" / questions, time.monotonic()
    done = output / "figures.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    lenders = "bounds" if job.device == "cpu" else f"bounds-{job.device}"  # each in its own precision
    bound = job.out / job.world.name / lenders / questions
    if not job.variant.changes_llm:
        borrow(bound, output)
    settings: dict[str, Any] = {"batch_size": BATCH, "text_bound": True, "bootstrap_samples": 100, "limit": job.limit}
    given = job.world.questions[questions].items()
    # The cascade that is shown is that of the frozen LLM.
    settings |= {name: value for name, value in given if not (job.variant.changes_llm and name.startswith("cascade"))}
    found = evaluate(EvaluationConfig(model=str(model), output_dir=str(output), **settings))
    if not job.variant.changes_llm:
        lend(output, bound)
    figures = {"overall": values_of(found["overall"]), "groups": values_of(found["groups"])}
    figures |= {"rows": found["rows"]["scored"], "seconds": round(time.monotonic() - begin, 1)}
    write_result(done, figures)
    return figures


def borrow(bound: Path, output: Path) -> None:
    """Puts the answers of text bound and cascade, if there are any yet, where an evaluation finds them."""
    lent = bound / "answers.jsonl"
    if lent.exists() and not (output / "answers.jsonl").exists():
        output.mkdir(parents=True, exist_ok=True)
        partial = output / "answers.partial"
        shutil.copyfile(lent, partial)
        partial.replace(output / "answers.part-90000.jsonl")


def lend(output: Path, bound: Path) -> None:
    """Keeps the answers of text bound and cascade for other variants."""
    if (bound / "answers.jsonl").exists():
        return
    bound.mkdir(parents=True, exist_ok=True)
    lines = (output / "answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    partial = bound / f"answers.{os.getpid()}.partial"
    partial.write_text("".join(line for line in lines if json.loads(line)["system"] in LENT), encoding="utf-8")
    partial.replace(bound / "answers.jsonl")


def values_of(found: Any) -> Any:
    """Estimates as their values alone, in nested mappings."""
    if isinstance(found, Mapping):
        return found["value"] if "value" in found else {key: values_of(part) for key, part in found.items()}
    return found


def mean_of(parts: Sequence[Any]) -> Any:
    """Nested mappings of numbers -> their means, over those that have a number."""
    if any(isinstance(part, Mapping) for part in parts):
        keys = dict.fromkeys(key for part in parts if part for key in part)
        return {key: mean_of([part.get(key) for part in parts if part]) for key in keys}
    numbers = [part for part in parts if isinstance(part, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


__all__ = ["Job", "check_job", "end_with_parent", "job_folder", "mean_of", "missing_before", "run_job", "write_result"]
