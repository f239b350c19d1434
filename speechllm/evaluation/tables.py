"""Tables of figures with intervals: one form for Markdown, terminal and pictures."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from .bootstrap import Difference, Estimate

TERMINAL_WIDTH = 80  # columns
Cell = Estimate | Difference | None


@dataclass(frozen=True)
class Row:
    """A line of a table: its name, its unit (`"%"` or none), a cell per column, and whether it is a summary."""

    name: str
    unit: str
    cells: tuple[Cell, ...]
    is_summary: bool = False


@dataclass(frozen=True)
class Table:
    """
    A table.

    Args:
        key: name of its picture's file.
        title: a sentence without an end.
        columns: names of the cells.
        rows: the lines.
        explanation: what the reader must know.
        rows_of_run: how many were scored; cells from fewer say so in Markdown. None where cells are of other rows.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    explanation: str = ""
    rows_of_run: int | None = None


def number(value: float, unit: str) -> str:
    """A figure as people read it: 12.3 in per cent, three digits after the point for small ones of no unit."""
    if math.isnan(value):
        return "-"
    return f"{value:.1f}" if unit == "%" or abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def cell_in_full(cell: Cell, unit: str) -> str:
    """A cell as `12.3 [11.0, 13.6]`, of a difference with its p-value."""
    if cell is None or math.isnan(cell.value):
        return "-"
    text = number(cell.value, unit)
    if not math.isnan(cell.low):
        text += f" [{number(cell.low, unit)}, {number(cell.high, unit)}]"
    return f"{text}, p = {cell.p:.3f}" if isinstance(cell, Difference) and not math.isnan(cell.p) else text


def cell_in_short(cell: Cell, unit: str) -> str:
    """A cell as `12.3 ±1.3`, with half the width of its interval, or `0.0 +3.0` where it reaches to one side only."""
    if cell is None or math.isnan(cell.value):
        return "-"
    below, above = cell.value - cell.low, cell.high - cell.value
    if math.isnan(below):
        return number(cell.value, unit)
    if (below == 0) != (above == 0):
        return f"{number(cell.value, unit)} {f'+{number(above, unit)}' if above else f'-{number(below, unit)}'}"
    return f"{number(cell.value, unit)} ±{number((below + above) / 2, unit)}"


def markdown(table: Table) -> str:
    """The table in Markdown, intervals in brackets."""
    head = ["| |" + "|".join(f" {name} " for name in table.columns) + "|", "|---|" + "---:|" * len(table.columns)]
    lines = []
    for row in table.rows:
        cells = "".join(f" {cell_in_full(cell, row.unit)}{_fewer(cell, table)} |" for cell in row.cells)
        lines.append(f"| {_bold(_named(row, table), row)} |{cells}")
    return "\n".join(head + lines)


def _fewer(cell: Cell, table: Table) -> str:
    """How many rows a cell is from, where these are not all."""
    known = isinstance(cell, Estimate) and table.rows_of_run is not None and cell.rows
    return f" of {cell.rows}" if known and cell.rows < table.rows_of_run else ""


def _bold(text: str, row: Row) -> str:
    return f"*{text}*" if row.is_summary else text


def full_title(table: Table) -> str:
    """The title with the unit, where all rows have the same."""
    return f"{table.title}, %" if {row.unit for row in table.rows} == {"%"} else table.title


def _named(row: Row, table: Table) -> str:
    """The row's name with its unit, where the title does not say it."""
    return f"{row.name}, %" if row.unit == "%" and full_title(table) == table.title else row.name


def width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def terminal(table: Table) -> str:
    """The table in lines of at most 80 columns; systems that do not fit beside the others go below them."""
    names = [_named(row, table) for row in table.rows]
    first = min(max(map(width, [*names, ""])), 28)
    cells = [[cell_in_short(cell, row.unit) for cell in row.cells] for row in table.rows]
    widths = [
        max(width(column), *(width(row[place]) for row in cells), 1) if cells else width(column)
        for place, column in enumerate(table.columns)
    ]
    blocks, places = [], list(range(len(table.columns)))
    while places:
        taken, total = [], first
        while places and (not taken or total + 2 + widths[places[0]] <= TERMINAL_WIDTH):
            total += 2 + widths[places[0]]
            taken.append(places.pop(0))
        head = " " * first + "".join("  " + table.columns[place].rjust(widths[place]) for place in taken)
        lines = [
            _fitted(name, first) + "".join("  " + row[place].rjust(widths[place]) for place in taken)
            for name, row in zip(names, cells, strict=True)
        ]
        blocks.append("\n".join(line.rstrip() for line in [head, *lines]))
    return "\n".join([full_title(table), *blocks])


def _fitted(text: str, size: int) -> str:
    """The text padded to a size, its end marked by … where it is longer."""
    if width(text) > size:
        while width(text) > size - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (size - width(text))


def has_figures(rows: Sequence[Row]) -> bool:
    """Whether any cell has a value."""
    return any(cell is not None and not math.isnan(cell.value) for row in rows for cell in row.cells)


__all__ = [
    "Row",
    "Table",
    "cell_in_full",
    "cell_in_short",
    "full_title",
    "has_figures",
    "markdown",
    "number",
    "terminal",
    "width",
]
