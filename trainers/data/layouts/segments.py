"""A stretch of a recording as audio of its own, without loss: for manifests whose rows are parts of longer files."""

import io
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from processing_speechllm.audio_addresses import read_address
from processing_speechllm.audio_decoding import AudioError, decode

from .layout import version_of

logger = logging.getLogger(__name__)
INTEGER = ("PCM_S8", "PCM_16", "PCM_24")  # that FLAC holds
SLACK = 0.5  # seconds that a segment may end after its recording before it is told


def cut(path: str | Path, start: float, stop: float | None, name: str, channel: int | None = None) -> dict[str, Any]:
    """
    The `audio` of a row that is a part of a file.

    Args:
        path: the recording.
        start, stop: in seconds; to its end without `stop`.
        name: for messages.
        channel: the one that is taken, from 1; all without it.

    Returns:
        {"bytes", "path"}: FLAC of the same samples, or WAV of floats where the recording holds no whole numbers (mono
        where soundfile does not know its format). Of a recording that cannot be read what `unreadable` gives.
    """
    try:
        samples, rate, kind = _read(str(path), start, stop, name, channel)
    except AudioError as error:
        return unreadable(str(error), name)
    content = io.BytesIO()
    soundfile.write(content, samples, rate, **kind)
    return {"bytes": content.getvalue(), "path": f"{name}.{kind['format'].lower()}"}


def unreadable(finding: str, name: str) -> dict[str, Any]:
    """
    The `audio` of a part of a recording that cannot be read: no bytes, and a path that says the finding when it is
    decoded. The recording's own path would be read as the whole of it, as soon as something can.

    Args:
        finding: with the file's name before it, and a remedy.
        name: of the part.
    """
    return {"bytes": b"", "path": f"{finding} Its part {name}"}


def _read(
    path: str, start: float, stop: float | None, name: str, channel: int | None
) -> tuple[np.ndarray, int, dict[str, str]]:
    """Samples (samples,) or (samples, channels), their rate, and the format that holds them."""
    try:
        with soundfile.SoundFile(path) as file:
            if channel is not None and channel > file.channels:
                raise AudioError(
                    f"{path}: the number of its channels is {file.channels}, so channel {channel} cannot be taken. "
                    "Correct the number of the channel."
                )
            first, last = _bounds(path, start, stop, name, file.frames, file.samplerate)
            file.seek(first)
            whole = file.subtype in INTEGER
            samples = file.read(last - first, dtype="int32" if whole else "float32")
            kind = {"format": "FLAC", "subtype": file.subtype} if whole else {"format": "WAV", "subtype": "FLOAT"}
            one = channel is not None and samples.ndim == 2
            return (samples[:, channel - 1] if one else samples), file.samplerate, kind
    except (soundfile.LibsndfileError, OSError) as error:
        if channel is not None and Path(path).is_file():
            raise AudioError(
                f"{path}: soundfile cannot read it, so its channel {channel} cannot be taken. Convert it to WAV or "
                "FLAC."
            ) from error
    samples, rate = _decoded(path, version_of([Path(path)]))
    first, last = _bounds(path, start, stop, name, len(samples), rate)
    return samples[first:last], rate, {"format": "WAV", "subtype": "FLOAT"}


@lru_cache(maxsize=1)  # parts of a recording follow each other
def _decoded(path: str, version: str) -> tuple[np.ndarray, int]:
    """All samples (samples,) of a recording, and their rate."""
    samples, rate = decode(*read_address(path))
    return samples, round(rate)


def _bounds(path: str, start: float, stop: float | None, name: str, frames: int, rate: int) -> tuple[int, int]:
    """Samples that a part starts and stops at within its recording, which it may exceed a little."""
    first, last = round(start * rate), frames if stop is None else round(stop * rate)
    if min(last, frames) <= first:
        until = f"to {stop:g} s" if stop is not None else "on"
        raise AudioError(
            f"{path}: lasts {frames / rate:g} s and has nothing from {start:g} s {until}. Correct the times."
        )
    if last > frames + SLACK * rate:
        over = (last - frames) / rate
        logger.warning("%s ends %.1f s after its recording %s; it is kept up to there.", name, over, path)
    return first, min(last, frames)


__all__ = ["cut", "unreadable"]
