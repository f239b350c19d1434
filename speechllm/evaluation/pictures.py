"""A table as a picture, PNG and SVG: bars with 95 % intervals, a colour per system, readable alone."""

from pathlib import Path
from typing import Any

import numpy as np

from .packages import need
from .systems import TITLES
from .tables import Row, Table, number

# Okabe and Ito's colours, which colour-blind readers tell apart; a system has the same one everywhere.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
SYSTEM_COLOURS = dict(zip(TITLES.values(), COLOURS, strict=True))
GREY = "#555555"
INK = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "svg.hashsalt": "speechllm"}


def draw(table: Table, folder: Path) -> list[Path]:
    """
    Writes `{key}.png` and `{key}.svg`.

    Rows of per cent share an axis, others have one each.

    Args:
        table: with at least one figure.
        folder: that exists.
    """
    need("matplotlib", "A picture")
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    panels = split_panels(table)
    with pyplot.rc_context(INK):
        widths = [max(len(rows), 1) * (len(table.columns) * 0.34 + 0.5) for rows in panels]
        size = (min(max(sum(widths) + 1.2 * len(panels), 5.5), 16.0), 4.2)
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=size, squeeze=False, width_ratios=widths, layout="constrained"
        )
        for axis, rows in zip(axes[0], panels, strict=True):
            _draw_panel(axis, rows, table.columns)
        figure.suptitle(f"{table.title} (lines: 95 % intervals)", fontsize=10)
        handles, labels = axes[0][0].get_legend_handles_labels()
        if len(table.columns) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        paths = [folder / f"{table.key}.png", folder / f"{table.key}.svg"]
        figure.savefig(paths[0], dpi=130)
        figure.savefig(paths[1], metadata={"Date": None})
        pyplot.close(figure)
    return paths


def split_panels(table: Table) -> list[list[Row]]:
    """Rows that can share an axis: all in per cent together, every other one alone unless all are of its kind."""
    units = {row.unit for row in table.rows}
    if len(units) == 1 and (units == {"%"} or len({row.name for row in table.rows}) > 3):
        return [list(table.rows)]
    together = [row for row in table.rows if row.unit == "%"]
    return ([together] if together else []) + [[row] for row in table.rows if row.unit != "%"]


def _draw_panel(axis: Any, rows: list[Row], columns: tuple[str, ...]) -> None:
    step = 0.8 / len(columns)
    for place, column in enumerate(columns):
        cells = [row.cells[place] for row in rows]
        values = np.array([np.nan if cell is None else cell.value for cell in cells])
        low, high = (
            np.array([np.nan if cell is None else getattr(cell, end) for cell in cells]) for end in ("low", "high")
        )
        x = np.arange(len(rows)) + (place - (len(columns) - 1) / 2) * step
        colour = SYSTEM_COLOURS.get(column, COLOURS[place % len(COLOURS)])
        spread = np.nan_to_num(np.stack([values - low, high - values])).clip(min=0)
        axis.bar(x, np.nan_to_num(values), 0.92 * step, color=colour, label=column)
        known = ~np.isnan(low)
        axis.errorbar(x[known], values[known], yerr=spread[:, known], fmt="none", ecolor=GREY, elinewidth=1, capsize=2)
        for position, value, top, row in zip(x, values, values + spread[1], rows, strict=True):
            if not np.isnan(value) and len(rows) * len(columns) <= 30:
                axis.annotate(
                    number(value, row.unit), (position, max(top, 0)), xytext=(0, 2), textcoords="offset points",
                    ha="center", va="bottom", fontsize=7, rotation=90 if len(rows) * len(columns) > 9 else 0,
                )  # fmt: skip
    names = [row.name for row in rows]
    tilted = max(map(len, names)) > 8 and max(map(len, names)) * len(rows) > 60
    axis.set_xticks(np.arange(len(rows)), names, rotation=25 if tilted else 0, ha="right" if tilted else "center")
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.margins(y=0.14)
    if np.ptp(axis.get_ylim()) < 1e-6:  # all are 0
        axis.set_ylim(0, 1)
    axis.set_ylabel("per cent" if rows[0].unit == "%" else "")


__all__ = ["draw", "split_panels"]
