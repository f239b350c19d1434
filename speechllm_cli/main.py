"""Entry point of the `speechllm` command: parser and dispatch.

speechllm ask speechllm/small/examples/guitars.ogg "What does the company make?"
speechllm demo
speechllm doctor
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from . import ask, benchmark, demo, doctor, evaluate, publish, serve, training

EXAMPLE = """\
60 seconds with it:
  speechllm doctor                       is everything installed and working?
  speechllm demo                         the packaged recordings, asked several things each
  speechllm ask question.wav "Transcribe the speech."
"""


class _Version(argparse.Action):
    """Prints the installed version; looked up only when asked for."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"speechllm {metadata.version('speechllm')}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each subcommand sets `run`, which takes the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="speechllm",
        description="Ask a text LLM with ears about recordings, and teach it to hear.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (ask, demo, serve, doctor, benchmark):
        command.add_parser(commands)
    training.add_parsers(commands)
    evaluate.add_parser(commands)
    publish.add_parsers(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 1 (a check failed) or 2 (wrong usage, unusable input)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # It tells, on some CPUs, of a package that would make its own products in 4 bits faster.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if not argv:
        build_parser().print_help()
        return 0
    if argv[0] in training.HELP:  # their parsers need heavy imports
        return training.run(argv[0], argv[1:])
    if argv[0] == evaluate.NAME:
        return evaluate.run(argv[1:])
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv, argparse.Namespace(command_line=argv))
    if rest and (not hasattr(arguments, "inputs") or any(word.startswith("-") and word != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # of `ask`: argparse takes no inputs after an option
        arguments.inputs += rest
    if sys.stdout is None:  # it was closed
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    sys.stdout.reconfigure(errors="replace")  # an answer in Chinese must not end a program whose terminal is Latin-1
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":  # how Accelerate starts it
    sys.exit(main())
