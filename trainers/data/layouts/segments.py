"""A stretch of a recording as audio of its own, without loss: for manifests whose rows are parts of longer files."""

import io
import logging
from pathlib import Path
from typing import Any

import soundfile

logger = logging.getLogger(__name__)
INTEGER = ("PCM_S8", "PCM_16", "PCM_24")  # that FLAC holds
SLACK = 0.5  # seconds that a segment may end after its recording before it is told


def cut(path: str | Path, start: float, stop: float | None, name: str) -> dict[str, Any]:
    """
    The `audio` of a row that is a part of a file.

    Args:
        path: the recording.
        start, stop: in seconds; to its end without `stop`.
        name: for messages.

    Returns:
        {"bytes", "path"}: FLAC of the same samples, or WAV of floats where the recording holds no whole numbers. Of a
        recording that cannot be read its path, which says why when it is decoded.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate, whole = file.samplerate, file.subtype in INTEGER
            first = min(round(start * rate), file.frames)
            last = file.frames if stop is None else round(stop * rate)
            if last > file.frames + SLACK * rate:
                over = (last - file.frames) / rate
                logger.warning("%s ends %.1f s after its recording %s; it is kept up to there.", name, over, path)
            file.seek(first)
            samples = file.read(max(min(last, file.frames) - first, 0), dtype="int32" if whole else "float32")
            kind = {"format": "FLAC", "subtype": file.subtype} if whole else {"format": "WAV", "subtype": "FLOAT"}
    except (soundfile.LibsndfileError, OSError):
        return {"bytes": None, "path": str(path)}
    content = io.BytesIO()
    soundfile.write(content, samples, rate, **kind)
    return {"bytes": content.getvalue(), "path": f"{name}.{kind['format'].lower()}"}


__all__ = ["cut"]
