"""How far a phase has come, and its end if it takes too long."""

import sys
import time
from typing import TextIO

EVERY = 10.0  # seconds between two lines


class Overtime(RuntimeError):
    """A phase took longer than it may."""


class Phase:
    """
    One phase of a measurement: a line when it begins, one every ten seconds, and one when it ends.

    Args:
        name: what is done.
        count: how many requests it has.
        limit: seconds that it may take.
        out: where the lines go.
    """

    def __init__(self, name: str, count: int, limit: float, out: TextIO | None = None):
        self.name, self.count, self.limit, self.out = name, count, limit, out or sys.stdout
        self.done, self.started = 0, time.monotonic()
        self.told = self.started
        self.tell(f"{count} requests")

    def tell(self, what: str) -> None:
        """Writes a line at once, also into a file or a pipe."""
        print(f"  {self.name}: {what}", file=self.out, flush=True)

    def check(self) -> None:
        """
        Raises:
            Overtime: the phase is over its limit.
        """
        if time.monotonic() - self.started > self.limit:
            raise Overtime(
                f"{self.name}: {self.done} of {self.count} requests were answered within {self.limit:g} s. Give a "
                "larger --phase-seconds, or fewer --requests."
            )

    def step(self, number: int = 1) -> None:
        """Counts answers, and says every ten seconds how many there are."""
        self.done += number
        now = time.monotonic()
        if now - self.told >= EVERY and self.done < self.count:
            self.told = now
            self.tell(f"{self.done} of {self.count} after {now - self.started:.0f} s")


__all__ = ["Overtime", "Phase"]
