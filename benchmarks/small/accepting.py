"""Whether a shipped model is good enough: one table of `speechllm evaluate`'s figures beside text bound and cascade.

    python -m benchmarks.small accept --model FOLDER --parents PARENTS --data DATA --out OUT

Everything on speakers and sentences of no training. A part that is done is not done again; a killed one goes on where
it was. `OUT/acceptance.md` has the table, `acceptance.png` its picture, `OUT/PART` what each part came from, answer by
answer.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.small.acceptance_rows import (
    CONDITIONS,
    behaviour,
    commands,
    distorted,
    drinks,
    no_speech,
    words,
    write_rows,
)
from benchmarks.small.picture import draw
from benchmarks.small.shipping import ENCODER, located, write_json
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from processing_speechllm.pipeline_prompts import DEFAULT_INSTRUCTION
from speechllm.evaluation.bootstrap import Estimate, Resamples, estimate
from speechllm.evaluation.config import EvaluationConfig
from speechllm.evaluation.metrics import error_rates, ratio, share
from speechllm.evaluation.recognisers import ConnectorRecogniser
from speechllm.evaluation.run import evaluate

SYSTEMS = ("speech", "text_bound", "cascade")
Line = dict[str, Any]  # of the table: part, what, bar, met, and an Estimate as a list for each of SYSTEMS


@dataclass
class Acceptance:
    """
    What is accepted, with what.

    Args:
        model: folder of the model, whose parents are found.
        whisper: folder of the cascade's recogniser.
        data, out: folders.
        count: rows of each part at most; of behaviour recordings, with four requests each.
        dtype: precision in which models answer, see `speechllm evaluate`.
    """

    model: Path
    whisper: Path
    data: Path
    out: Path
    count: int
    dtype: str = "auto"

    def evaluate(self, part: str, rows: list[dict], task: str, **settings: Any) -> dict[str, Any]:
        """The results of `speechllm evaluate` on rows of a part."""
        manifest = write_rows(self.out / "rows" / f"{part}.jsonl", rows)
        config = EvaluationConfig(
            dataset=[str(manifest)],
            output_dir=str(self.out / part),
            task=task,
            model=str(self.model),
            tell_language=True,
            dtype=self.dtype,
            **settings,
        )
        return evaluate(config)

    def beside(self, part: str, rows: list[dict], task: str, bound: bool = True, **settings: Any) -> dict[str, Any]:
        """As `evaluate`, beside the cascade and, where there are transcripts, the text bound."""
        return self.evaluate(part, rows, task, text_bound=bound, cascade=str(self.whisper), **settings)


def value_of(found: dict[str, Any] | None) -> list[float] | None:
    """An estimate of `results.json` as (value, low, high, rows)."""
    return None if not found else [found[key] for key in ("value", "low", "high", "rows")]


def line(part: str, what: str, found: dict[str, Any], bar: str = "", met: bool | None = None) -> Line:
    return {"part": part, "what": what, "bar": bar, "met": met} | {system: found.get(system) for system in SYSTEMS}


def figures(results: dict[str, Any], metric: str, group: str | None = None) -> dict[str, list[float] | None]:
    """A metric of every system, overall or of a task."""
    found = results["overall"] if group is None else results["groups"].get("task", {}).get(group, {})
    return {system: value_of(found.get(system, {}).get(metric)) for system in SYSTEMS}


# Parts


def reading(acceptance: Acceptance) -> list[Line]:
    """What the connector reads under each condition; no LLM."""
    model = SpeechLLMForConditionalGeneration.from_pretrained(acceptance.model, dtype=torch.float32)
    recogniser = ConnectorRecogniser(model, SpeechLLMProcessor.from_pretrained(acceptance.model))
    lines, clean = [], None
    for source in ("cv_en", "cv_other"):
        rows = words(acceptance.data, source, acceptance.count)
        found = read_wer(recogniser, rows, acceptance.out / "reading" / f"{source}.jsonl")
        clean = clean or found
        lines.append(line("reading", f"WER of the connector, {source}", {"speech": found}))
    for condition in CONDITIONS:
        rows = list(
            distorted(words(acceptance.data, "cv_en", acceptance.count), condition, acceptance.out / "recordings")
        )
        found = read_wer(recogniser, rows, acceptance.out / "reading" / f"{condition.replace(' ', '_')}.jsonl")
        lost = found[0] - clean[0]
        what = f"WER of the connector, cv_en, {condition} ({lost:+.1f})"
        lines.append(line("reading", what, {"speech": found}, "at most 10 points lost", lost <= 10))
    return lines


def read_wer(recogniser: ConnectorRecogniser, rows: list[dict], path: Path) -> list[float]:
    """Word error rate over rows, whose texts are kept in `path`."""
    read = []
    for row in rows:
        samples, _ = soundfile.read(row["audio"], dtype="float32")
        read += recogniser.transcribe([samples], ["en"])
    write_rows(path, [row | {"read": text} for row, text in zip(rows, read, strict=True)])
    metric = error_rates([[row["text"]] for row in rows], read, ["en"] * len(rows))[0]
    return list(estimate(metric.statistics, metric.value, Resamples([row["id"] for row in rows])))


def transcribing(acceptance: Acceptance) -> list[Line]:
    """The transcript by the LLM, asked as the pipeline asks by default; Whisper's own is the cascade's ears."""
    lines = []
    for source in ("cv_en", "cv_other"):
        rows = [row | {"instruction": DEFAULT_INSTRUCTION} for row in words(acceptance.data, source, acceptance.count)]
        results = acceptance.beside(f"transcribing_{source}", rows, "transcribe", max_new_tokens=80)
        found = figures(results, "wer")
        whisper = value_of(results["overall"]["cascade"].get("heard_wer"))
        bar = min(25.0, 1.5 * whisper[0])
        lines.append(line("transcribing", f"WER, {source}", found, f"at most {bar:.1f}", found["speech"][0] <= bar))
        lines.append(line("transcribing", f"WER of Whisper base itself, {source}", {"cascade": whisper}))
    return lines


def of_bound(out: Path, part: str, other: str = "text_bound") -> list[float]:
    """Accuracy of speech as a share of another system's over the answers of a part, in per cent, with its interval."""
    answers = [json.loads(row) for row in (out / part / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    right = {
        (row["system"], row["id"]): row["answer"].strip().lower() == row["references"][0].strip().lower()
        for row in answers
        if "answer" in row
    }
    ids = sorted({row["id"] for row in answers if ("speech", row["id"]) in right and (other, row["id"]) in right})
    pairs = np.array([(right["speech", id], right[other, id]) for id in ids], dtype=float).reshape(-1, 2)
    return list(estimate(pairs, ratio(), Resamples(ids)))


def people_ordering(acceptance: Acceptance) -> list[Line]:
    """Commands of people to a coffee machine, with constrained labels; without transcripts, so beside the cascade."""
    rows = drinks(acceptance.data, acceptance.count)
    results = acceptance.beside("people_ordering", rows, "classify", bound=False)
    share_of = of_bound(acceptance.out, "people_ordering", "cascade")
    lines = [
        line("people ordering", f"accuracy, {slot}", figures(results, "accuracy", slot))
        for slot in results["groups"].get("task", {})
    ]
    bar = "at least 90 % of the cascade's"
    return lines + [
        line("people ordering", "accuracy, % of the cascade's", {"speech": share_of}, bar, share_of[0] >= 90)
    ]


def spoken_commands(acceptance: Acceptance) -> list[Line]:
    """Commands by text-to-speech, with constrained labels, and speech alone under each condition."""
    rows = commands(acceptance.data, acceptance.out / "recordings/commands", acceptance.count)
    results = acceptance.beside("spoken_commands", rows, "classify")
    share_of = of_bound(acceptance.out, "spoken_commands")
    lines = [
        line("spoken commands", f"accuracy, {task}", figures(results, "accuracy", task))
        for task in results["groups"].get("task", {})
    ]
    bar = "at least 90 % of the text bound's"
    lines.append(line("spoken commands", "accuracy, % of the bound's", {"speech": share_of}, bar, share_of[0] >= 90))
    clean = figures(results, "accuracy")["speech"][0]
    for condition in CONDITIONS:
        part = f"spoken_commands_{condition.replace(' ', '_')}"
        bent = list(distorted(rows, condition, acceptance.out / "recordings"))
        found = figures(acceptance.evaluate(part, bent, "classify"), "accuracy")
        lost = clean - found["speech"][0]
        what = f"accuracy, {condition} ({-lost:+.1f})"
        lines.append(line("spoken commands", what, found, "at most 10 points lost", lost <= 10))
    return lines


def following(acceptance: Acceptance) -> list[Line]:
    """Requests about read sentences: what the LLM says when it hears, against what it says when it reads."""
    rows = behaviour(acceptance.data, acceptance.count)
    results = acceptance.beside("following", rows, "instruct", max_new_tokens=40)
    agreed = figures(results, "top1_with_bound")
    met = agreed["speech"][0] >= 85
    lines = [line("following", "same likeliest token as the bound", agreed, "at least 85", met)]
    for kind, systems in results["groups"].get("prompt_kind", {}).items():
        found = {system: value_of(systems.get(system, {}).get("top1_with_bound")) for system in SYSTEMS}
        lines.append(line("following", f"same likeliest token, {kind.replace('_', ' ')}", found))
    for task in results["groups"].get("task", {}):
        lines.append(line("following", f"same likeliest token, {task}", figures(results, "top1_with_bound", task)))
    form = figures(results, "form")
    if form["speech"] and form["text_bound"]:
        met = form["speech"][0] >= form["text_bound"][0] - 5
        lines.append(line("following", "instruction-following rate, by code", form, "bound less 5 points", met))
    for metric in ("refusing", "repeating", "transcribing"):
        lines.append(line("following", f"answers {metric}", figures(results, metric)))
    return lines


def nothing_said(acceptance: Acceptance) -> list[Line]:
    """Silence, noise and music: how often the answer is that there was no speech."""
    rows = no_speech(acceptance.out / "recordings/no_speech", max(acceptance.count // 5, 2))
    acceptance.evaluate("nothing_said", rows, "instruct", max_new_tokens=40)
    said = SpeechLLMProcessor.from_pretrained(acceptance.model).no_speech_answer
    answers = [
        json.loads(row)
        for row in (acceptance.out / "nothing_said/answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    lines = []
    for kind in [None, *dict.fromkeys(row["task"] for row in answers)]:
        some = [row for row in answers if kind in (None, row["task"])]
        metric = share("no_speech", "", [row["answer"] == said for row in some], True)
        found = list(estimate(metric.statistics, metric.value, Resamples([row["id"] for row in some]), is_share=True))
        what = f"says that it heard no speech, {kind or 'all'}"
        lines.append(line("no speech", what, {"speech": found}, "at least 90", found[0] >= 90))
    return lines


PARTS: dict[str, Callable[[Acceptance], list[Line]]] = {
    "reading": reading,
    "transcribing": transcribing,
    "people_ordering": people_ordering,
    "spoken_commands": spoken_commands,
    "following": following,
    "nothing_said": nothing_said,
}


def accept(
    model: Path,
    parents: Path,
    data: Path,
    out: Path,
    count: int = 150,
    parts: tuple[str, ...] = tuple(PARTS),
    dtype: str = "auto",
) -> list[Line]:
    """Runs the parts that are not done and writes `acceptance.md` and `acceptance.json`; returns the table.

    Raises:
        ValueError: `out` has the acceptance of another model or of other counts.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {"model": str(model.resolve()), "count": count, "dtype": dtype}
    record = out / "settings.json"
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{out} has the acceptance of {record.read_text(encoding='utf-8')}. Give another folder.")
    write_json(record, settings)
    acceptance = Acceptance(with_parents(model, parents, out / "model"), parents / ENCODER, data, out, count, dtype)
    lines: list[Line] = []
    for name in PARTS:
        done = out / f"{name}.json"
        if not done.exists() and name in parts:
            found = PARTS[name](acceptance)
            write_json(done.with_suffix(".partial"), found)
            done.with_suffix(".partial").replace(done)
        if done.exists():
            lines += json.loads(done.read_text(encoding="utf-8"))
    write_json(out / "acceptance.json", lines)
    table = as_table(lines)
    (out / "acceptance.md").write_text(table, encoding="utf-8")
    draw(lines, out / "acceptance.png")
    print(table)
    return lines


def with_parents(model: Path, parents: Path, folder: Path) -> Path:
    """The model as it is where it has its parents with it, else a folder of links to it that names local ones."""
    if (model / "llm").exists():
        return model
    folder.mkdir(exist_ok=True)
    for path in model.iterdir():
        if path.name != "config.json" and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"parents": located(model, parents).parents})
    return folder


def as_table(lines: list[Line]) -> str:
    """The lines as a Markdown table."""

    def cell(found: list[float] | None) -> str:
        if not found or found[0] is None:
            return ""
        value, low, high, _ = Estimate(*found)
        return f"{value:.1f}" if low is None or low != low else f"{value:.1f} [{low:.1f}, {high:.1f}]"

    rows = ["| | | speech | text bound | cascade | n | bar | met |", "|---|---|---:|---:|---:|---:|---|---|"]
    for each in lines:
        count = max((each[system][3] for system in SYSTEMS if each[system]), default=0)
        met = {True: "yes", False: "no", None: ""}[each["met"]]
        cells = [each["part"], each["what"], *(cell(each[system]) for system in SYSTEMS), str(count), each["bar"], met]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"
