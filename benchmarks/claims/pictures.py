"""A paper's variants as a picture: a panel per figure, a line per variant, a dot per seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import fill

from benchmarks.claims.variants import Column

COLOURS = {"text_bound": "#E69F00", "cascade": "#009E73"}  # Okabe and Ito, as in `speechllm evaluate`
TITLES = {"text_bound": "text bound", "cascade": "cascade"}
BLUE = "#0072B2"
PER_LINE = 3  # panels
WIDE = 44  # characters of a line of a variant's title


def draw(
    title: str,
    columns: Sequence[Column],
    lines: Mapping[str, Sequence[Sequence[float]]],
    beside: Mapping[str, Sequence[float | None]],
    path: Path,
) -> None:
    """
    Writes a PNG.

    Args:
        title: of the picture.
        columns: of the table, a panel each.
        lines: title of a variant -> by column its figures, one per seed.
        beside: system -> by column its figure, drawn as an upright line.
        path: of the file.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    labels = [fill(name, WIDE) for name in lines]
    down = -(-len(columns) // PER_LINE)
    across = min(len(columns), PER_LINE)
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 8}
    with pyplot.rc_context(style):
        row = 0.14 * max([1, *(label.count("\n") + 1 for label in labels)]) + 0.04  # inches
        size = (2.4 * across + 3.2, (max(row, 0.28) * len(labels) + 0.8) * down + 0.5)
        figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained", sharey=True)
        for place, axis in enumerate(axes.flat):
            if place >= len(columns):
                axis.set_axis_off()
                continue
            column = columns[place]
            for line, figures in enumerate(lines.values()):
                values = figures[place]
                if values:
                    axis.plot(values, [line] * len(values), "o", color=BLUE, markersize=3, alpha=0.5)
                    axis.plot([fmean(values)], [line], "|", color=BLUE, markersize=11, markeredgewidth=2)
            for system, values in beside.items():
                if values[place] is not None:
                    axis.axvline(values[place], color=COLOURS[system], linewidth=1.2, label=TITLES[system])
            axis.set_title(f"{column.title}\n({column.better} is better)", fontsize=8)
            axis.set_yticks(range(len(labels)), labels)
            axis.set_ylim(len(labels) - 0.5, -0.5)
            axis.grid(axis="x", linewidth=0.3)
            axis.margins(x=0.12)
            low, high = axis.get_xlim()
            if high - low < 1e-6:  # all figures are one
                axis.set_xlim(low - 1, high + 1)
        found = {
            label: handle
            for axis in axes.flat
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        if found:
            figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=len(found), frameon=False)
        figure.suptitle(f"{title}: dots are seeds, bars their mean", fontsize=9)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


__all__ = ["draw"]
