"""Tables, goals and the picture from the measurements."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import first_token, training

Measured = dict[str, list[dict[str, Any]]]


def values_of(kind: str, rounds: list[dict[str, Any]]) -> list[float]:
    """The figure of each round: samples per second, or the median of a round's seconds."""
    if kind == "training":
        return [entry["samples_per_second"] for entry in rounds]
    return [statistics.median(entry["seconds"]) for entry in rounds]


def grouped(measured: Measured) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    """(kind, work, dtype) -> system -> figures of the rounds."""
    groups: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for key, rounds in measured.items():
        kind, work, dtype, system = key.split(" | ")
        groups.setdefault((kind, work, dtype), {})[system] = values_of(kind, rounds)
    return groups


def ratio(kind: str, ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of ours over theirs, round by round: they ran one after the other."""
    pairs = [mine / other for mine, other in zip(ours, theirs, strict=False)]
    return statistics.median(pairs)


def table(group: tuple[str, str, str], systems: dict[str, list[float]]) -> list[str]:
    """One Markdown table."""
    kind, work, dtype = group
    unit = "samples per second" if kind == "training" else "seconds"
    lines = [
        f"### {kind}: {work}, {dtype}",
        "",
        f"| system | {unit} | least to most | ours / it | rounds |",
        "|---|---:|---:|---:|---:|",
    ]
    ours = systems.get(training.OURS)
    for system, values in systems.items():
        compared = f"{ratio(kind, ours, values):.2f}" if ours and system != training.OURS else ""
        low, high = min(values), max(values)
        figures = f"{statistics.median(values):.3g} | {low:.3g} to {high:.3g} | {compared} | {len(values)}"
        lines.append(f"| {system} | {figures} |")
    return [*lines, ""]


def goals(groups: dict[tuple[str, str, str], dict[str, list[float]]]) -> list[tuple[str, float | None, bool]]:
    """What was aimed at: the goal in words, the ratio measured (None: a side was not), whether it is met."""
    found = []

    def check(group: tuple, mine: str, other: str, bar: float) -> None:
        systems, faster = groups[group], group[0] == "training"
        name = f"{', '.join(group)}: {mine} / {other} {'>=' if faster else '<='} {bar}"
        if mine in systems and other in systems:
            value = ratio(group[0], systems[mine], systems[other])
            found.append((name, value, value >= bar if faster else value <= bar))
        else:
            found.append((name, None, False))

    for group in groups:
        kind, work, _ = group
        if kind == "training":
            check(group, training.OURS, training.ULTRAVOX, 1.3)
            check(group, training.CACHED, training.ULTRAVOX, 2.0 if work == "cross-entropy" else 3.0)
            if training.PLAIN in training.LOSSES[work]:
                check(group, training.OURS, training.PLAIN, 1.5)
        else:
            check(group, first_token.OURS, first_token.ULTRAVOX, 1.05)
            for peer in first_token.PADDING:
                check(group, first_token.OURS, peer, 0.5)
    return found


def left_out(asked: Sequence[str], rounds: int, measured: Measured, failed: dict[str, str]) -> list[str]:
    """The cases that have not had all their rounds, with how many they had."""
    lines = []
    for key in asked:
        count = len(measured.get(key, []))
        if count < rounds and key not in failed:
            lines.append(f"- {key}" + f" ({count} of {rounds} rounds measured)" * bool(count))
    return lines


def picture(file: Path, groups: dict[tuple[str, str, str], dict[str, list[float]]]) -> None:
    """Bars of every group, ours in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 3
    rows = -(-len(groups) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.5 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, ((kind, work, dtype), systems) in zip(axes.flat, groups.items(), strict=False):
        names = list(systems)[::-1]
        medians = [statistics.median(systems[name]) for name in names]
        low = [statistics.median(systems[name]) - min(systems[name]) for name in names]
        high = [max(systems[name]) - statistics.median(systems[name]) for name in names]
        colours = ["#c0504d" if name.startswith("speechllm") else "#8aa0b8" for name in names]
        axis.barh(names, medians, xerr=[low, high], color=colours, ecolor="#444444", capsize=2)
        axis.set_title(f"{work}, {dtype}", fontsize=10)
        axis.set_xlabel(
            "training samples per second" if kind == "training" else "seconds to the first token", fontsize=8
        )
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def write_report(
    folder: Path, facts: dict[str, Any], measured: Measured, failed: dict[str, str], asked: Sequence[str] = ()
) -> str:
    """
    Writes `report.md` and, where matplotlib is installed and anything was measured, `report.png`.

    Args:
        asked: keys of all cases that this run was to measure; those that it had no time for are listed.

    Returns:
        the Markdown.
    """
    groups = grouped(measured)
    loads = [entry["load"] for rounds in measured.values() for entry in rounds if entry["load"] is not None]
    lines = [
        f"{facts['processor']}, {facts['cores']} cores, device {facts['device']}, "
        f"torch {facts['versions']['torch']}, transformers {facts['versions']['transformers']}, {facts['begun']}.",
        "Settings: " + ", ".join(f"{name} {value}" for name, value in facts["settings"].items()) + ".",
    ]
    if loads:
        lines.append(
            f"Load of the machine, one-minute mean: median {statistics.median(loads):.1f}, "
            f"{min(loads):.1f} to {max(loads):.1f}."
        )
    lines.append("Medians of the rounds; ratios are medians of the rounds' own ratios.\n")
    for group, systems in groups.items():
        lines += table(group, systems)
    wanted = {(kind, work, dtype): {} for kind, work, dtype, _ in (key.split(" | ") for key in asked)}
    reached = goals(wanted | groups)
    if reached:
        lines += ["### Goals", "", "| goal | measured | met |", "|---|---:|---|"]
        for name, value, met in reached:
            figure = "not measured | " if value is None else f"{value:.2f} | {'yes' if met else '**no**'}"
            lines.append(f"| {name} | {figure} |")
    if missing := left_out(asked, facts["settings"].get("rounds", 0), measured, failed):
        lines += ["", "Left out for time:", "", *missing]
    lines += [f"\nNot measured: {key}: {reason}" for key, reason in failed.items()]
    text = "\n".join(lines) + "\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    if not groups:
        return text
    try:
        picture(folder / "report.png", groups)
    except ImportError:
        print("No picture: pip install matplotlib")
    return text


__all__ = ["write_report"]
