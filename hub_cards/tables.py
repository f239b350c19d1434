"""Tables and figures of cards, as Markdown."""

import json
from typing import Any

MISSING = "*not measured*"
OVERLAP_TITLE = "## Overlap of training and evaluation"
SYSTEMS = {"text_bound": "text bound", "cascade": "cascade", "speech": "speech"}  # columns of a table of results


def cell(value: Any) -> str:
    """Text as it stands in a cell of a table."""
    text = "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ⏎ ") or "(nothing)"


def millions(count: int | None) -> str:
    """How many parameters, in words."""
    if count is None:
        return MISSING
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"


def duration(hours: float | None) -> str:
    """Hours, or seconds where they are few."""
    if hours is None:
        return MISSING
    return f"{hours:.2f} h" if hours >= 0.1 else f"{hours * 3600:.0f} s"


def pairs(values: dict[str, Any] | None) -> str | None:
    if not values:
        return None
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def interval(score: dict[str, Any]) -> str:
    if score.get("low") is None or score.get("high") is None:
        return ""
    return f"[{_number(score['low'])}, {_number(score['high'])}]"


def _number(value: float) -> str:
    """Per cent and counts with one digit, grades and rates with more."""
    size = abs(value)
    return f"{value:.{1 if size >= 10 or size == 0 else 2 if size >= 1 else 3}f}"


def score_text(score: dict[str, Any] | None) -> str:
    if not score or score.get("value") is None:
        return MISSING
    return f"{_number(score['value'])} {interval(score)}".strip()


def results_section(facts: dict[str, Any]) -> str:
    entries = facts.get("evaluation") or []
    if not entries:
        return f"## Results\n\n{MISSING.capitalize()}: no evaluation was run."
    groups: dict[str, list[dict]] = {}
    for entry in entries:
        groups.setdefault(json.dumps(entry["dataset"], sort_keys=True), []).append(entry)
    found = {name for entry in entries for name in entry["systems"]}
    columns = {name: title for name, title in SYSTEMS.items()}
    columns |= {name: name.replace("_", " ") for name in sorted(found - set(SYSTEMS))}
    text = (
        "## Results\n\nText bound: the LLM reads the true transcript. Cascade: it reads a recogniser's transcript. "
        "Speech: it hears the recording."
    )
    for group in groups.values():
        text += f"\n\n### {_dataset_title(group[0]['dataset'])}\n\n{_result_table(group, columns)}"
        text += "".join(f"\n\n{line}" for line in _result_notes(group))
    return text


def _dataset_title(dataset: dict[str, Any]) -> str:
    details = [dataset.get("config"), dataset.get("split"), (dataset.get("revision") or "")[:12]]
    return ", ".join(filter(None, (dataset["name"], *details)))


def _result_table(entries: list[dict], columns: dict[str, str]) -> str:
    lines = [f"| task | language | metric | n | {' | '.join(columns.values())} | speech / bound |"]
    lines.append("|---|---|---|---:|" + "---:|" * (len(columns) + 1))
    for entry in entries:
        scores = [score_text(entry["systems"].get(name)) for name in columns]
        direction = {True: " ↑", False: " ↓"}.get(entry.get("higher_is_better"), "")
        metric = entry["metric"] + (f" ({entry['unit']})" if entry.get("unit") else "") + direction
        cells = [entry.get("task"), entry.get("language"), metric, entry.get("n")]
        cells = ["" if cell is None else str(cell).replace("_", " ") for cell in cells]
        lines.append(f"| {' | '.join([*cells, *scores, _share(entry)])} |")
    return "\n".join(lines)


def _share(entry: dict) -> str:
    """Speech as per cent of the text bound, where more is better and both are known."""
    values = [(entry["systems"].get(name) or {}).get("value") for name in ("speech", "text_bound")]
    if entry.get("higher_is_better") is False or None in values or not values[1]:
        return ""
    return f"{100 * values[0] / values[1]:.1f} %"


def _result_notes(entries: list[dict]) -> list[str]:
    """What intervals and commands the entries of a table have."""
    intervals = dict.fromkeys(entry["interval"] for entry in entries if entry.get("interval"))
    commands = dict.fromkeys(entry["command"] for entry in entries if entry.get("command"))
    notes = dict.fromkeys(entry["note"] for entry in entries if entry.get("note"))
    lines = [f"In brackets: {interval}." for interval in intervals]
    return [*lines, *notes, *(f"Command: `{command}`" for command in commands)]


def overlap_section(rows: list[dict] | None) -> str:
    """The section on what training and evaluation data share, for cards of models and of data sets."""
    if not rows:
        return f"{OVERLAP_TITLE}\n\n{MISSING.capitalize()}."
    lines = [
        "| training | evaluation | rows compared | sentences in both | recordings in both |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        compared = f"{row['training_rows']} and {row['evaluation_rows']}"
        audio = MISSING if row.get("audio") is None else _part(row["audio"], row["evaluation_rows"])
        sentences = MISSING if row.get("sentences") is None else _part(row["sentences"], row["evaluation_rows"])
        lines.append(f"| {row['training']} | {row['evaluation']} | {compared} | {sentences} | {audio} |")
    text = (
        f"{OVERLAP_TITLE}\n\nEvaluation rows whose sentence (without case and punctuation) or "
        "whose samples are also in training:\n\n" + "\n".join(lines)
    )
    examples = [example for row in rows for example in row.get("examples") or []][:5]
    return text + ("\n\nFor example: " + "; ".join(f"“{example}”" for example in examples) + "." if examples else "")


def _part(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.1f} %)" if total else str(count)


__all__ = [
    "MISSING",
    "OVERLAP_TITLE",
    "cell",
    "duration",
    "interval",
    "millions",
    "overlap_section",
    "pairs",
    "results_section",
    "score_text",
]
