"""What a run says: `results.json` with every figure, `report.md` with tables and a picture for each, the terminal."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.data.shards import write_text

from .bootstrap import Difference, Estimate
from .metrics import Metric
from .pictures import draw
from .scoring import GROUPINGS, Scores
from .systems import TITLES
from .tables import TERMINAL_WIDTH, Row, Table, full_title, has_figures, markdown, terminal

IN_TERMINAL = ("scores", "by_language", "by_target_language", "by_prompt_kind")
LEGEND = "± half the width of the 95 % interval (bootstrap over recordings)"
KIND_TITLES = {
    "behaviour": "How answers fail",
    "agreement": "Agreement with the text bound",
}


def build_tables(scores: Scores) -> list[Table]:
    """The tables of a run, those without a figure left out."""
    columns = tuple(TITLES[system] for system in scores.metrics)
    tables = [
        Table(
            "scores", "Scores", columns, _metric_rows(scores, ("task", "form", "recogniser")), rows_of_run=scores.rows
        ),
        *(_group_table(scores, grouping, columns) for grouping in scores.groups if scores.headline),
        Table(
            "behaviour",
            KIND_TITLES["behaviour"],
            columns,
            _metric_rows(scores, ("behaviour",)),
            "Share of the answers of which it can be told; short answers have no language that could be told.",
            scores.rows,
        ),
        _agreement_table(scores),
        *_difference_tables(scores),
    ]
    return [table for table in tables if has_figures(table.rows)]


def _metric_rows(scores: Scores, kinds: Sequence[str]) -> tuple[Row, ...]:
    rows = []
    for name, kind in scores.kinds.items():
        if kind in kinds:
            metric = next(found[name] for found in scores.metrics.values() if name in found)
            cells = tuple(scores.overall[system].get(name) for system in scores.metrics)
            rows.append(Row(metric.title, metric.unit, cells))
    return tuple(rows)


def _headline(scores: Scores) -> Metric:
    return next(found[scores.headline] for found in scores.metrics.values() if scores.headline in found)


def _group_table(scores: Scores, grouping: str, columns: tuple[str, ...]) -> Table:
    metric = _headline(scores)
    rows = [
        Row(value.replace("_", " "), metric.unit, tuple(by_system[s].get(metric.name) for s in scores.metrics))
        for value, by_system in scores.groups[grouping].items()
    ]
    means = scores.means[grouping]
    rows.append(Row("mean", metric.unit, tuple(means.get(system) for system in scores.metrics), is_summary=True))
    direction = {True: " (higher is better)", False: " (lower is better)", None: ""}[metric.higher_is_better]
    title = f"{metric.title[:1].upper()}{metric.title[1:]} by {GROUPINGS[grouping]}{direction}"
    explanation = "The mean counts every line alike, however many rows it has."
    return Table(f"by_{grouping}", title, columns, tuple(rows), explanation)


def _agreement_table(scores: Scores) -> Table:
    systems = [system for system in scores.metrics if "equal_to_bound" in scores.metrics[system]]
    rows = []
    for name, kind in scores.kinds.items():
        if kind == "agreement":
            metric = next(found[name] for found in scores.metrics.values() if name in found)
            rows.append(Row(metric.title, metric.unit, tuple(scores.overall[s].get(name) for s in systems)))
    explanation = (
        "Likeliest token and KL are those at each token of the text bound's answer: what the LLM would say next when "
        "it hears, against what it would say when it reads."
    )
    columns = tuple(TITLES[system] for system in systems)
    return Table("agreement", KIND_TITLES["agreement"], columns, tuple(rows), explanation)


def _difference_tables(scores: Scores) -> list[Table]:
    """One table per metric's unit would be many; one with a column per pair, whose rows are the metrics."""
    if not scores.differences:
        return []
    names = list(dict.fromkeys(name for found in scores.differences.values() for name in found))
    rows = []
    for name in names:
        metric = next(found[name] for found in scores.metrics.values() if name in found)
        cells = tuple(found.get(name) for found in scores.differences.values())
        rows.append(Row(metric.title, metric.unit, cells))
    columns = tuple(" less ".join(TITLES[system] for system in pair.split(" - ")) for pair in scores.differences)
    explanation = (
        "Paired bootstrap over the same recordings (Koehn 2004); p is that of no difference, two-sided, at least that "
        "of a sign test over the recordings that differ, not corrected for the number of comparisons."
    )
    return [Table("differences", "Differences", columns, tuple(rows), explanation)]


def as_json(scores: Scores) -> dict[str, Any]:
    """All figures for `results.json`; what is not there is null."""

    def figures(found: Mapping[str, Estimate | Difference]) -> dict[str, Any]:
        return {name: {key: _finite(value) for key, value in cell._asdict().items()} for name, cell in found.items()}

    metrics = {metric.name: metric for found in scores.metrics.values() for metric in found.values()}
    return {
        "headline": scores.headline,
        "metrics": {
            name: {
                "title": metric.title,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                "note": metric.note,
            }
            for name, metric in metrics.items()
        },
        "overall": {system: figures(found) for system, found in scores.overall.items()},
        "groups": {
            grouping: {value: {s: figures(found) for s, found in systems.items()} for value, systems in values.items()}
            for grouping, values in scores.groups.items()
        },
        "means": {grouping: figures(found) for grouping, found in scores.means.items()},
        "differences": {pair: figures(found) for pair, found in scores.differences.items()},
        "notes": [*scores.hints, *scores.notes],
    }


def _finite(value: float) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(folder: Path, facts: Mapping[str, Any], scores: Scores) -> list[Table]:
    """Writes `results.json`, `report.md` and its pictures; returns the tables."""
    tables = build_tables(scores)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [f"# Evaluation: {facts['settings']['task']}", "", *_introduction(facts)]
    for table in tables:
        draw(table, pictures)
        parts += [
            "",
            f"## {full_title(table)}",
            "",
            f"![{table.title}](pictures/{table.key}.png)",
            "",
            markdown(table),
        ]
        parts += ["", table.explanation] if table.explanation else []
    found = as_json(scores)
    notes = [*found["notes"], *(f"{m['title']}: {m['note']}." for m in found["metrics"].values() if m["note"])]
    parts += ["", "## Notes", "", *(f"- {note}" for note in notes), ""]
    write_text(folder / "report.md", "\n".join(parts))
    write_text(folder / "results.json", json.dumps({**facts, **found}, ensure_ascii=False, indent=1) + "\n")
    return tables


def _introduction(facts: Mapping[str, Any]) -> list[str]:
    rows, settings = facts["rows"], facts["settings"]
    lines = [
        f"- Model: {facts['models']['model'][0]}; data: {', '.join(settings['dataset'])}.",
        f"- {rows['scored']} of {rows['read']} rows scored, {rows['bad']} set aside"
        + (" (`bad_rows.jsonl`)." if rows["bad"] else "."),
        f"- Decoding: {facts['decoding']}. Figures are in brackets with their 95 % bootstrap intervals.",
    ]
    if facts.get("judge"):
        lines.append(f"- Judge: {facts['judge']['model']}, prompt {facts['judge']['prompt']}.")
    lines += [
        f"- {TITLES[system]}: {cost['seconds']:.1f} s for {cost['answers']} answers, real-time factor "
        f"{cost['real_time_factor']:.3f}."
        for system, cost in facts["speed"].items()
        if cost["real_time_factor"] is not None
    ]
    hardware = facts["hardware"]
    lines.append(f"- {hardware['device']}, {hardware['processes']} process(es), {hardware['dtype']}.")
    return lines


def in_terminal(tables: Sequence[Table], hints: Sequence[str] = ()) -> str:
    """The tables that a terminal shows, and hints below them."""
    shown = [terminal(table) for table in tables if table.key in IN_TERMINAL]
    shown += [LEGEND] if any("±" in text for text in shown) else []
    return "\n\n".join([*shown, *(textwrap.fill(hint, TERMINAL_WIDTH) for hint in hints)])


__all__ = ["as_json", "build_tables", "in_terminal", "write_report"]
