"""The live microphones of all who have the page open: pieces of sound come in, names of finished turns go out.

What is unusual here:
- Gradio's own streaming is not used: a piece that comes while the one before is being worked on takes its place, and
  what was said is lost without a word (`event.data` in its routes, 6.31). `live.js` posts all, in order, to the route
  that `add_route` adds.
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .live import Listener
from .recordings import Recording, save_recording

IDLE = 600.0  # seconds after which a microphone that went away without a word is forgotten
LARGEST = 64 * 2**20  # bytes of a piece; at 48 kHz nearly six minutes
RATES = (8_000, 192_000)  # Hz
CHUNK = 0.1  # seconds between two pieces


@dataclass
class _Microphone:
    listener: Listener
    heard: float = field(default_factory=time.monotonic)  # when the last piece came
    short: int = 0  # sounds too short for a turn, told so far


class Microphones:
    """
    Args:
        listener: makes a [`Listener`] from the pause that ends a turn, in seconds.
    """

    def __init__(self, listener: Callable[[float], Listener] = Listener):
        self._listener = listener
        self._open: dict[str, _Microphone] = {}
        self._turns: dict[str, Recording] = {}
        self._listening = threading.Lock()  # one piece at a time
        self._closed = False

    def close(self) -> None:
        """Returns once nothing is heard any more; see [`Hearing.close`]."""
        with self._listening:
            self._closed = True

    def hear(self, stream: str, rate: float, pause: float, piece: bytes, end: bool = False) -> dict[str, Any]:
        """
        The next piece of a microphone's stream.

        Args:
            stream: name that the browser gave it.
            rate: in Hz.
            pause: seconds that end a turn; of the first piece.
            piece: float32 samples, little-endian.
            end: whether it is the last.

        Returns:
            `dict`: `speaking`, whether a turn is going on; `turns`, names of those that are over; `short`, whether a
            sound was too short for one; `ended`.

        Raises:
            ValueError: a rate, a pause or a piece that cannot be.
        """
        if not RATES[0] <= rate <= RATES[1]:
            raise ValueError(f"the rate is {rate:g} Hz, not between {RATES[0]} and {RATES[1]}")
        if not 0 < pause <= 10:
            raise ValueError(f"the pause is {pause:g} s, not between 0 and 10")
        if len(piece) % 4 or len(piece) > LARGEST:
            raise ValueError(f"a piece of {len(piece)} bytes is not of float32 samples, or too large")
        samples = np.frombuffer(piece, dtype="<f4")
        if not np.isfinite(samples).all():
            raise ValueError("a piece has samples that are no numbers")
        with self._listening:
            if self._closed:
                raise ValueError("the page is closed")
            return self._hear(stream, int(rate), pause, samples, end)

    def _hear(self, stream: str, rate: int, pause: float, samples: np.ndarray, end: bool) -> dict[str, Any]:
        microphone = self._open.get(stream)
        if microphone is None:
            self._forget_idle()
            microphone = self._open[stream] = _Microphone(self._listener(pause))
        listener = microphone.listener
        turns = listener.hear(rate, samples)
        if end:
            turns += listener.finish()
            del self._open[stream]
        names = [secrets.token_urlsafe(12) for _ in turns]
        self._turns.update(zip(names, map(save_recording, turns), strict=True))
        short = listener.too_short > microphone.short
        microphone.short, microphone.heard = listener.too_short, time.monotonic()
        return {"speaking": listener.speaking, "turns": names, "short": short, "ended": end}

    def take(self, names: str) -> list[Recording]:
        """The turns of these names, separated by spaces, that nobody has taken yet."""
        return [self._turns.pop(name) for name in names.split() if name in self._turns]

    def _forget_idle(self) -> None:
        now = time.monotonic()
        for name, microphone in list(self._open.items()):
            if now - microphone.heard > IDLE:
                del self._open[name]


def add_route(app: Any, microphones: Microphones) -> None:
    """Where `live.js` posts to, in the FastAPI app of the page."""
    from fastapi import HTTPException, Request
    from fastapi.concurrency import run_in_threadpool

    async def live(stream: str, request: Request, rate: float, pause: float, end: bool = False) -> dict:
        piece = await request.body()
        try:
            return await run_in_threadpool(microphones.hear, stream, rate, pause, piece, end)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error

    app.add_api_route("/live/{stream}", live, methods=["POST"])


__all__ = ["CHUNK", "Microphones", "add_route"]
