"""`speechllm evaluate`: rows in, answers of all systems, scores, report.

output_dir/manifest.json            the run: settings, data, models; a run with others is refused
output_dir/answers.jsonl            every answer of every system
output_dir/judgements.jsonl         every judgement, as it came
output_dir/bad_rows.jsonl           rows that could not be used, and why
output_dir/results.json             all figures
output_dir/report.md, pictures/     tables and pictures
"""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm.auto import tqdm

from trainers.data.loading import dataset_fingerprint
from trainers.data.shards import open_run, write_text
from trainers.targets.backends import identify

from .config import EvaluationConfig
from .judge import Judge, judge_answers, judge_fingerprint, judge_key, load_judge
from .packages import need
from .recognisers import CONNECTOR, CTC_HEAD
from .report import in_terminal, write_report
from .rows import Item, Rows, check_bad_share, load_evaluation_rows
from .scoring import Answers, score
from .store import Lines
from .systems import TITLES, Runner, all_bad, plan_batches, systems_of

PACKAGES = ("speechllm", "torch", "transformers", "datasets", "accelerate", "jiwer", "sacrebleu")
NEEDED = {
    "transcribe": ("jiwer",),
    "translate": ("sacrebleu", "jiwer"),
    "question": ("jiwer",),
    "classify": ("jiwer",),
    "instruct": ("jiwer",),
}


def evaluate(config: EvaluationConfig, judge: Judge | None = None) -> dict[str, Any] | None:
    """
    Ask, score, report; goes on where an earlier run with these settings stopped.

    Args:
        config: settings.
        judge: who judges, in place of the one that `config.judge` names.

    Returns:
        the content of `results.json` (None in all processes but the first).

    Raises:
        ImportError: a package of the `eval` extra is missing, with its pip line.
        ValueError, FileNotFoundError: settings, data or models that cannot be used; too many unusable rows; a folder
            with another run.
        BackendError: the judge's endpoint does not answer.
    """
    for name in (*NEEDED[config.task], "lingua", "matplotlib"):
        need(name, "speechllm evaluate")
    judge_key(config)  # said before hours of answering, not after
    models = identify_models(config)
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # The first process to finish waits for the last one: longer than the half hour that is the default.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
    folder = Path(config.output_dir)
    with state.main_process_first():
        rows = load_evaluation_rows(config, folder / "unreadable_rows")
    if not rows.items:
        raise ValueError(f"No row of {', '.join(config.dataset)} can be used.{_first_findings(rows.bad)}")
    fingerprint = {
        "settings": config.answer_settings(),
        "data": {"rows": len(rows.data), "content": dataset_fingerprint(rows.data)[:16]},
        "models": models,
    }
    open_run(folder, fingerprint)
    systems = systems_of(config)
    store = Lines(folder, "answers", state.process_index)
    batches = plan_batches(rows.items, config.batch_size)
    mine = batches[state.process_index :: state.num_processes]
    Runner(config, rows, store, mine, state.device, _bars(state)).run(systems)
    state.wait_for_everyone()
    store.read()
    judgements = None
    items = scored_items(rows.items, store, systems)
    if config.judge is not None or judge is not None:
        judgements = Lines(folder, "judgements", state.process_index)
        _judge(judge, config, items, systems, store, judgements, state)
        state.wait_for_everyone()
    if not state.is_main_process:
        return None
    ids = [item.id for item in rows.items]
    store.finish(systems, ids)
    if judgements is not None:
        judgements.finish(systems, ids)
    bad = [*rows.bad, *all_bad(store)]
    write_text(folder / "bad_rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in bad))
    check_bad_share(bad, len(rows.items) + len(rows.bad), config.max_bad_share)
    if not items:
        raise ValueError(f"No row of {', '.join(config.dataset)} can be used.{_first_findings(bad)}")
    answers = {
        system: Answers(
            [store.lines[system, item.id] for item in items],
            None if judgements is None else [judgements.lines[system, item.id] for item in items],
        )
        for system in systems
    }
    facts = {
        "settings": {"dataset": config.dataset, **config.answer_settings(), **_scoring_settings(config)},
        "models": models,
        "data": fingerprint["data"],
        "rows": {"read": len(rows.items) + len(rows.bad), "scored": len(items), "bad": len(bad)},
        "decoding": describe_decoding(config),
        "judge": None if config.judge is None else judge_fingerprint(config),
        "speed": measure_speed(items, answers),
        "hardware": describe_hardware(config, state),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    scores = score(items, answers, config)
    shown = in_terminal(write_report(folder, facts, scores), scores.hints)
    print(f"{len(items)} rows, {len(bad)} set aside" + (f": {folder / 'bad_rows.jsonl'}" if bad else ""))
    print(f"\n{shown}\n\nAll figures: {folder / 'results.json'}, with pictures: {folder / 'report.md'}")
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def scored_items(items: Sequence[Item], store: Lines, systems: Sequence[str]) -> list[Item]:
    """The items that every system has answered."""
    return [item for item in items if all("answer" in store.lines.get((system, item.id), ()) for system in systems)]


def identify_models(config: EvaluationConfig) -> dict[str, tuple[str, str | None]]:
    """
    Name and revision (or digest) of every model of the run.

    Raises:
        FileNotFoundError: a folder that is not there.
    """
    for name in ("model", "second", "text_before", "cascade", "judge"):
        value = getattr(config, name)
        is_endpoints = name == "judge" and config.judge_base_url is not None
        if value and not is_endpoints and value.startswith((".", "/", "~")) and not Path(value).is_dir():
            raise FileNotFoundError(f"{name} {value}: no such folder. Give a model's folder or a Hub id.")
    found = {"model": identify(config.model)}
    for name in ("second", "text_before", "cascade"):
        value = getattr(config, name)
        if value is not None:
            found[name] = (value, None) if value in (CTC_HEAD, CONNECTOR) else identify(value)
    return found


def _judge(
    judge: Judge | None,
    config: EvaluationConfig,
    items: Sequence[Item],
    systems: Sequence[str],
    store: Lines,
    judgements: Lines,
    state: PartialState,
) -> None:
    """This process's share of the judgements."""
    mine = items[state.process_index :: state.num_processes]
    wanted = [(item, system, store.lines[system, item.id]["answer"]) for system in systems for item in mine]
    fingerprint = judge_fingerprint(config) if config.judge is not None else {"model": "given"}
    open_run(judgements.folder / "judge", {"judge": fingerprint})
    if all((system, item.id) in judgements for item, system, _ in wanted):
        return
    judge_answers(judge or load_judge(config, state.device), wanted, judgements, _bars(state)("judge", len(wanted)))


def _bars(state: PartialState) -> Callable[[str, int], Callable[[int], Any]]:
    def start(name: str, total: int) -> Callable[[int], Any]:
        bar = tqdm(total=total, desc=name, unit=" answers", disable=not state.is_local_main_process)

        def update(count: int) -> None:
            bar.update(count)
            if bar.n >= bar.total:
                bar.close()

        return update

    return start


def describe_decoding(config: EvaluationConfig) -> str:
    """How answers were decoded, in words."""
    way = "greedy" if config.num_beams == 1 else f"{config.num_beams} beams"
    among = ", labels only" if config.task == "classify" and config.constrain else ""
    return f"{way}{among}, at most {config.max_new_tokens} new tokens"


def measure_speed(items: Sequence[Item], answers: Mapping[str, Answers]) -> dict[str, dict[str, float | None]]:
    """Seconds of answering by system (decoding audio, features and `generate`; without loading and comparing), and
    per second of audio; over all processes together."""
    audio = sum(item.seconds for item in items)
    speed = {}
    for system, given in answers.items():
        seconds = sum(line["seconds"] for line in given.lines)
        hears = system not in ("text_bound", "text_before")
        speed[system] = {
            "answers": len(given.lines),
            "seconds": round(seconds, 3),
            "audio_seconds": round(audio, 3) if hears else None,
            "real_time_factor": round(seconds / audio, 5) if hears and audio else None,
        }
    return speed


def describe_hardware(config: EvaluationConfig, state: PartialState) -> dict[str, Any]:
    """Where the run ran, as far as this process sees."""
    is_gpu = state.device.type == "cuda"
    device = torch.cuda.get_device_name(state.device) if is_gpu else f"{platform.machine()} {state.device.type}"
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processes": state.num_processes,
        "dtype": config.dtype,
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _scoring_settings(config: EvaluationConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("bootstrap_samples", "headline", "batch_size")}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _first_findings(bad: Sequence[Mapping[str, str]]) -> str:
    lines = "".join(f"\n- {row['id']} ({row['source']}): {row['finding']}" for row in bad[:3])
    return f" The first:{lines}" if lines else ""


def with_known_models(config: EvaluationConfig, known: Mapping[str, str]) -> EvaluationConfig:
    """The settings with names that stand for a folder, such as `nano`, replaced by it."""
    names = ("model", "second", "text_before", "judge")
    return replace(config, **{name: known.get(getattr(config, name), getattr(config, name)) for name in names})


__all__ = ["TITLES", "Rows", "evaluate", "with_known_models"]
