"""`speechllm demo`: the packaged recordings, each asked several things, as a table."""

import argparse
import json
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .loading import CommandError, ask_pipeline, load_pipeline, report

EXAMPLE = """\
60 seconds with it:
  speechllm demo

A tick marks an answer that is the expected one, letter by letter, where one is expected. The exit status is 0 if all
are, else 1.
"""

WIDTHS = [6, 35, 24, 9]  # with two spaces between them 80 columns


def add_parser(commands: Any) -> None:
    """Adds `demo` to the subparsers."""
    parser = commands.add_parser(
        "demo",
        help="ask the packaged recordings several things",
        description="Asks an embedded model about its packaged recordings and prints a table.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", metavar="NAME", help="an embedded model, or a model's folder with examples/ (default: as for ask)"
    )
    parser.set_defaults(run=run)


def load_examples(folder: str | Path) -> list[dict]:
    """Rows of `examples.json` in `folder`, `{"file", "language", "text", "questions": [...]}`, files as full paths. A
    question is an `instruction`, with the answer that is `expected` or without.

    Raises:
        CommandError: the list or a recording is missing.
    """
    folder = Path(folder)
    listing = folder / "examples.json"
    if not listing.is_file():
        raise CommandError(
            f"{listing} is missing. Reinstall speechllm (pip install --force-reinstall .), or ask a model without it "
            "about recordings of your own: speechllm ask."
        )
    rows = json.loads(listing.read_text(encoding="utf-8"))
    for row in rows:
        row["file"] = str(folder / row["file"])
        if not Path(row["file"]).is_file():
            raise CommandError(f"{row['file']} is missing. Reinstall speechllm: pip install --force-reinstall .")
    return rows


def display_width(text: str) -> int:
    """Columns that `text` takes in a terminal: two for East Asian wide characters, none for combining marks."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def format_table(rows: list[list[str]], widths: list[int] | None = None) -> Iterable[str]:
    """
    Lines of left-aligned columns.

    Args:
        rows: cells.
        widths: most columns of a terminal that each may take; cells that are wider go on below.
    """
    widest = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    widths = widest if widths is None else [min(pair) for pair in zip(widest, widths, strict=True)]
    for row in rows:
        pieces = [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for line in range(max(map(len, pieces))):
            cells = [piece[line] if line < len(piece) else "" for piece in pieces]
            padded = [cell + " " * (width - display_width(cell)) for cell, width in zip(cells, widths, strict=True)]
            yield "  ".join(padded).rstrip()


def wrap(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, broken at spaces, and within words that are longer."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if display_width(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] * bool(lines[-1])
        for character in word:
            if display_width(lines[-1] + character) > width > 0:
                lines.append("")
            lines[-1] += character
    return lines


def run_examples(pipe: Any, examples: list[dict]) -> tuple[list[list[str]], int, int]:
    """Asks everything; returns the table's rows, how many answers were as expected, and of how many that is known."""
    rows, right, total = [], 0, 0
    for example in examples:
        rows.append([Path(example["file"]).name, f"“{example['text']}”", "", ""])
        for question in example["questions"]:
            answer = ask_pipeline(pipe, [example["file"]], question["instruction"])
            if "expected" not in question:
                rows.append(["", question["instruction"], answer, ""])
                continue
            as_expected = answer == question["expected"]
            remark = "" if as_expected else f" expected: {question['expected']}"
            rows.append(["", question["instruction"], answer, "✓" if as_expected else f"✗{remark}"])
            right, total = right + as_expected, total + 1
    return rows, right, total


def run(arguments: argparse.Namespace) -> int:
    """Prints the table; returns 0 if every answer is the expected one, else 1."""
    started = time.perf_counter()
    try:
        pipe = load_pipeline(arguments.model)
        import speechllm

        name = arguments.model or speechllm.DEFAULT
        examples = load_examples(Path(speechllm.MODELS.get(name, name)).expanduser() / "examples")
    except CommandError as error:
        report(error)
        return 2
    rows, right, total = run_examples(pipe, examples)
    for line in format_table(rows, WIDTHS):
        print(line)
    languages = len({example["language"] for example in examples})
    seconds = time.perf_counter() - started
    expected = f"{right} of {total} answers as expected, " if total else ""
    plural = "s" if languages > 1 else ""
    print(f"\n{expected}{languages} language{plural}, {seconds:.1f} s with loading.")
    return 0 if right == total else 1
