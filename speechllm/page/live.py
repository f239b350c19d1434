"""Speech as it comes from a microphone -> turns: a turn is over when the speaker has paused.

Voice activity is told by Silero VAD (https://github.com/snakers4/silero-vad; MIT), 32 ms at a time, on the CPU.
"""

import warnings
from typing import Any

import numpy as np

from .recordings import RATE

FRAME = 512  # samples at 16 kHz, what Silero VAD hears at a time
PAUSE = 0.5  # seconds without speech that end a turn
PAD = 0.2  # seconds kept before and behind the speech
LEAST_SPEECH = 0.2  # seconds; shorter sounds, such as a knock, are no turn
LONGEST = 30.0  # seconds; a turn without any pause is sent then, and goes on as another


def load_vad() -> Any:
    """Silero VAD, on the CPU; it lies in its package."""
    from silero_vad import load_silero_vad

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)  # silero-vad 6.2
        return load_silero_vad()


class Listener:
    """
    Cuts turns out of a microphone's stream.

    Args:
        pause: seconds without speech that end a turn, at least `PAD`.
        model: the VAD, with `reset_states` and a call (frame, rate) -> probability; None for Silero's.
    """

    def __init__(self, pause: float = PAUSE, model: Any = None):
        from silero_vad import VADIterator

        self._vad = VADIterator(
            load_vad() if model is None else model,
            sampling_rate=RATE,
            min_silence_duration_ms=round(1000 * max(pause, PAD)),
            speech_pad_ms=round(1000 * PAD),
        )
        self._rate: int | None = None
        self._resample: Any = None
        self._rest = np.zeros(0, dtype=np.float32)  # less than a frame, at RATE
        self._kept = np.zeros(0, dtype=np.float32)  # the frames that a turn may still need
        self._first = 0  # place of `_kept` in the stream
        self._start: int | None = None  # place where the turn that is going on begins
        self._speech = 0  # place where its speech began, behind the margin
        self._continues = False  # whether it goes on from one that was cut at `LONGEST`
        self.too_short = 0  # sounds that were no turn

    @property
    def speaking(self) -> bool:
        """Whether a turn is going on."""
        return self._start is not None

    def hear(self, rate: int, samples: np.ndarray) -> list[np.ndarray]:
        """
        The turns that this piece of the stream ends.

        Args:
            rate: of the samples, in Hz.
            samples: float32 (samples,).

        Returns:
            `list[np.ndarray]`: float32 (samples,) at 16 kHz each.
        """
        if rate != self._rate:
            import soxr

            self._rate = rate
            self._resample = None if rate == RATE else soxr.ResampleStream(rate, RATE, 1, dtype="float32")
        samples = samples.astype(np.float32, copy=False)
        if self._resample is not None:
            samples = self._resample.resample_chunk(samples)
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // FRAME * FRAME
        self._rest = samples[whole:]
        return [turn for frame in samples[:whole].reshape(-1, FRAME) if (turn := self._take(frame)) is not None]

    def finish(self) -> list[np.ndarray]:
        """The turn that is going on, when the microphone is switched off."""
        end = self._first + len(self._kept)
        turn = self._cut(end, end) if self.speaking else None
        self._vad.reset_states()
        self._kept, self._rest, self._first = self._kept[:0], self._rest[:0], 0
        return [] if turn is None else [turn]

    def _take(self, frame: np.ndarray) -> np.ndarray | None:
        import torch

        self._kept = np.concatenate([self._kept, frame])
        end = self._first + len(self._kept)
        event = self._vad(torch.from_numpy(frame)) or {}
        if "start" in event:
            self._start = max(event["start"], self._first)
            self._speech = end - FRAME
        turn = self._cut(event["end"], event["end"] - round(PAD * RATE)) if "end" in event else None
        if self.speaking and end - self._start >= LONGEST * RATE:
            turn = self._cut(end, end)
            self._start, self._continues = end, True  # no pause yet: what follows is a turn of its own
        if not self.speaking:
            self._forget(end - round(PAD * RATE) - FRAME)
        return turn

    def _cut(self, end: int, silent: int) -> np.ndarray | None:
        """The turn up to a place of the stream, if its speech, up to the place `silent`, is long enough for one. What
        goes on from a turn that was cut is one however short, unless its speech was over by then."""
        turn = self._kept[self._start - self._first : max(end - self._first, 0)]
        over = self._continues and silent - self._start <= FRAME
        short = silent - self._speech < LEAST_SPEECH * RATE and not self._continues
        self._start, self._continues = None, False
        self._forget(end)
        self.too_short += short
        return None if short or over else turn

    def _forget(self, place: int) -> None:
        """Drops what lies before a place of the stream."""
        drop = max(place - self._first, 0)
        self._kept, self._first = self._kept[drop:], self._first + drop


__all__ = ["FRAME", "PAUSE", "Listener"]
