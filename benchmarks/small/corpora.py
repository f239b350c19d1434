"""Recordings by corpus and split: speakers of a test are in no training.

A corpus is a folder with `manifest.jsonl` (`audio`, `text`, `speaker` or less), as the data folder holds them.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
TEST_SHARE = 0.2
SOURCES = {  # name: (folder, list of recordings, rows of one language)
    "cv_en": ("common_voice_en", "manifest.jsonl", None),
    "cv_unlabelled": ("common_voice_en", "untranscribed.jsonl", None),
    "cv_other": ("common_voice", "manifest.jsonl", "en"),
    "picovoice": ("picovoice_slu", "manifest.jsonl", None),
}


@dataclass
class Recording:
    """One recording: its id (corpus and path), file, transcript where there is one, and its manifest row."""

    id: str
    path: Path
    text: str | None
    split: str
    row: dict = field(default_factory=dict)

    def samples(self) -> np.ndarray:
        """float32 mono samples at 16 kHz, `(samples,)`.

        Raises:
            ValueError: another rate or more than one channel.
        """
        samples, rate = soundfile.read(self.path, dtype="float32")
        if rate != RATE or samples.ndim != 1:
            raise ValueError(f"{self.path}: {rate} Hz, shape {samples.shape}; expected mono at {RATE} Hz. Convert it.")
        return samples

    def seconds(self) -> float:
        """Length by the file's header."""
        info = soundfile.info(self.path)
        return info.frames / info.samplerate


def share_of(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12


def split_of(source: str, row: dict) -> str:
    """`"test"` or `"train"`: by speaker where known; corpora that only test are all test."""
    if source == "cv_unlabelled":
        return "train"
    if source == "cv_en":
        return "test" if share_of(row["speaker"]) >= 1 - TEST_SHARE else "train"
    return "test"


def recordings(data: Path, source: str) -> list[Recording]:
    """All recordings of a source of `SOURCES`, in the manifest's order."""
    folder, manifest, language = SOURCES[source]
    rows = [json.loads(line) for line in (data / folder / manifest).read_text(encoding="utf-8").splitlines()]
    return [
        Recording(
            f"{source}/{row['audio']}", data / folder / row["audio"], row.get("text"), split_of(source, row), row
        )
        for row in rows
        if language is None or row["language"] == language
    ]


def spoken_recordings(folder: Path) -> list[Recording]:
    """Recordings made by text-to-speech (`speaking.py`), all for training but the rows that say otherwise."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        Recording(f"{folder.name}/{row['audio']}", folder / row["audio"], row["text"], row.get("split", "train"), row)
        for row in rows
    ]


def normalized(text: str) -> str:
    """Lower case, letters and apostrophes, words one space apart: what the connector learns to read."""
    text = text.lower().replace("’", "'").replace("-", " ").replace("&", " and ")
    return " ".join(re.sub(r"[^\w\s']|_", "", text).split())
