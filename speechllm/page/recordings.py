"""What people record or upload -> checked speech as the OpenAI API takes it: a mono WAV at 16 kHz in Base64.

What is unusual here:
- It is resampled here and not by the server: engines differ in the formats and rates that they read, and 16 kHz is
  what speech encoders hear.
- A recording in which nothing can be heard is refused. Elsewhere silence is legal input; on a page it is a microphone
  that is muted or not allowed, and the answer to it would be made up.
"""

import base64
import io
import math
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from processing_speechllm.audio import AudioError, load_audio

RATE = 16_000  # Hz
SILENCE = -60.0  # dB of full scale; a sample of 33 in 16 bits. Rooms and cheap microphones are louder than that
SHORTEST = 0.1  # seconds; less is a click on the button


class PageError(Exception):
    """What the page tells the person before it: the finding and what to do."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Checked speech."""

    samples: np.ndarray  # float32 (samples,) at `RATE`
    path: str  # the same as a WAV file, for the players of the page

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE

    def as_block(self) -> dict[str, Any]:
        """Its part of a message to the OpenAI API."""
        return {"type": "input_audio", "input_audio": {"data": encoded(self.samples), "format": "wav"}}


def encoded(samples: np.ndarray) -> str:
    """Samples (samples,) at `RATE` -> Base64 of a 16-bit WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()


def read_recording(path: str | Path) -> Recording:
    """
    Decode, resample and check a file.

    Raises:
        PageError: it is no audio, damaged, too short or silent.
    """
    name = Path(path).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of digital silence, which is refused below
            samples = load_audio(str(path), RATE)
    except AudioError as error:
        raise PageError(f"This recording cannot be used. {str(error).replace(str(path), name)}") from error
    return check_recording(samples, name)


def check_recording(samples: np.ndarray, name: str = "the recording") -> Recording:
    """
    Samples (samples,) at `RATE` as a recording, written into a temporary WAV file.

    Raises:
        PageError: too short or silent.
    """
    seconds = len(samples) / RATE
    if seconds < SHORTEST:
        raise PageError(
            f"This recording is too short: {name} lasts {seconds:.2f} seconds. Press record, speak, then press stop."
        )
    level = peak_level(samples)
    if level < SILENCE:
        heard = "nothing but digital silence" if math.isinf(level) else f"nothing louder than {level:.0f} dB"
        raise PageError(
            f"Nothing can be heard in this recording: {name} holds {heard}. Check that the microphone is on, not "
            "muted, and allowed for this page, then record again."
        )
    return save_recording(samples)


def save_recording(samples: np.ndarray) -> Recording:
    """Samples (samples,) at `RATE` as a recording, unchecked, written into a temporary WAV file."""
    with tempfile.NamedTemporaryFile(suffix=".wav", dir=folder().name, delete=False) as file:
        soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
    return Recording(samples, file.name)


@cache
def folder() -> tempfile.TemporaryDirectory:
    """Where recordings lie until the process ends."""
    return tempfile.TemporaryDirectory(prefix="speechllm-page-")


def peak_level(samples: np.ndarray) -> float:
    """The largest sample of (samples,), in dB of full scale; minus infinity for zeros."""
    peak = float(np.abs(samples).max())
    return 20 * math.log10(peak) if peak else -math.inf


__all__ = [
    "RATE",
    "PageError",
    "Recording",
    "check_recording",
    "encoded",
    "peak_level",
    "read_recording",
    "save_recording",
]
