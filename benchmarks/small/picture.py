"""The acceptance's table as a picture: a dot with its interval for each system, a line per figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SYSTEMS = {"text_bound": ("#E69F00", "s"), "cascade": ("#009E73", "^"), "speech": ("#0072B2", "o")}  # as evaluate's
SHOWN = (
    *("WER", "accuracy", "same likeliest token as", "same likeliest token, un"),
    *("instruction-following", "says that"),
)


def shown(line: dict[str, Any]) -> bool:
    """Whether a line of the table is drawn: a figure of some system in per cent, but for shares of another's."""
    return line["what"].startswith(SHOWN) and "% of" not in line["what"] and "WER of Whisper" not in line["what"]


def reach(found: Sequence[float | None], end: int) -> float:
    """How far an interval's low (1) or high (2) end lies from its value; 0 where there is none, or beside it."""
    ends = found[end] is not None and found[end] == found[end]
    return max((found[end] - found[0]) * (-1 if end == 1 else 1), 0) if ends else 0


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a PNG of the table's lines."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    chosen = [line for line in lines if shown(line)]
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 8}
    with pyplot.rc_context(style):
        size = (8, 0.24 * len(chosen) + 1)
        figure, axis = pyplot.subplots(figsize=size, layout="constrained")
        for system, (colour, marker) in SYSTEMS.items():
            known = [(place, line[system]) for place, line in enumerate(chosen) if line.get(system)]
            places, values = [place for place, _ in known], [found[0] for _, found in known]
            around = [[reach(found, end) for _, found in known] for end in (1, 2)]
            label = system.replace("_", " ")
            axis.errorbar(values, places, xerr=around, fmt=marker, color=colour, label=label, capsize=2, markersize=4)
        axis.set_yticks(range(len(chosen)), [f"{line['part']}: {line['what']}" for line in chosen])
        axis.set(
            xlim=(-2, 102), xlabel="%, with 95 % intervals; of WER less is better", ylim=(len(chosen) - 0.5, -0.5)
        )
        axis.grid(axis="x", alpha=0.3)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncol=3, frameon=False)
        figure.savefig(path, dpi=130)
        pyplot.close(figure)
