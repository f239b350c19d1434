"""Numbers on the command lines of benchmarks: refused by argparse where they cannot be."""

import argparse
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """What a whole number from `least` on is read by."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return read


def above_zero(text: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


__all__ = ["above_zero", "whole"]
