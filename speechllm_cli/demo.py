"""`speechllm demo`: the packaged recordings, each asked several things, as a table; or a page to talk to."""

import argparse
import json
import os
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .ask import positive
from .loading import CommandError, ask_pipeline, load_pipeline, report
from .serve import port_number

EXAMPLE = """\
60 seconds with it:
  speechllm demo

A tick marks an answer that is the expected one, letter by letter, where one is expected. The exit status is 0 if all
are, else 1.

The tiny model of six languages, and of a closed world of requests:
  speechllm demo --model nano

With --web a page opens instead, to talk to the default model, another one, or one that is served already:
  speechllm demo --web
  speechllm demo --web --model my-model
  speechllm demo --web --base-url http://localhost:8000/v1
"""

WEB = ("base_url", "key_variable", "host", "port", "max_new_tokens")  # options of the page
WIDTHS = [16, 28, 22, 8]  # with two spaces between them 80 columns


def add_parser(commands: Any) -> None:
    """Adds `demo` to the subparsers."""
    parser = commands.add_parser(
        "demo",
        help="ask the packaged recordings several things, or open a page to talk to",
        description="Asks a model of the package about its recordings and prints a table; --web opens a page.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a model of the package, or a folder with examples/; with --web any model, or its name on the server "
        "(default: as for ask)",
    )
    parser.add_argument("--web", action="store_true", help="open a page: microphone, recordings, chat")
    page = parser.add_argument_group("with --web")
    page.add_argument("--base-url", metavar="URL", help="of a server that runs already: http://localhost:8000/v1")
    page.add_argument("--key-variable", metavar="NAME", help="environment variable that holds that server's key")
    page.add_argument("--host", metavar="ADDRESS", help="where the page listens (127.0.0.1: this machine alone)")
    page.add_argument("--port", type=port_number, metavar="N", help="port of the page (7860); 0 takes a free one")
    page.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest answer in tokens (256)")
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
            f"{listing} is missing. A model of your own is asked about recordings of your own: speechllm ask. If it "
            "is one of the package's, reinstall speechllm: pip install --force-reinstall ."
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
    """Prints the table; returns 0 if every answer is the expected one, else 1. Or shows the page."""
    started = time.perf_counter()
    given = [name for name in WEB if getattr(arguments, name, None) is not None]
    try:
        if arguments.web:
            return run_web(arguments)
        if given:
            raise CommandError(f"--{given[0].replace('_', '-')} is for the page. Add --web.")
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


def run_web(arguments: argparse.Namespace) -> int:
    """Shows the page until it is interrupted; returns 0.

    Raises:
        CommandError: a package is missing, no server answers, or the port is taken.
    """
    key = None
    if arguments.key_variable is not None:
        if arguments.base_url is None:
            raise CommandError("--key-variable is for a server that runs already. Add --base-url URL.")
        key = os.environ.get(arguments.key_variable)
        if not key:
            raise CommandError(f"the environment variable {arguments.key_variable} is empty. Put the key into it.")
    try:
        from speechllm.page.packages import need_packages

        need_packages()
        from speechllm.page.recordings import PageError
        from speechllm.page.run import PageSettings, run_page
    except (ImportError, OSError, RuntimeError) as error:
        raise CommandError(error) from error
    names = ("model", "base_url", "host", "port", "max_new_tokens")
    settings = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    try:
        return run_page(PageSettings(key=key, **settings))
    except PageError as error:
        raise CommandError(error) from error
