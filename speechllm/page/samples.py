"""What the page offers to begin with: packaged recordings with what to ask about them, and instructions for any."""

import json
from dataclasses import dataclass
from pathlib import Path

from .hearing import language_name

INSTRUCTIONS = (
    "Transcribe the speech.",
    "What does the speaker want?",
    "Which language is spoken?",
    "Translate the request into English.",
)


@dataclass(frozen=True)
class Sample:
    """A packaged recording."""

    path: str
    language: str  # in English
    text: str  # what is said
    instructions: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.language}: “{self.text}”"


def load_samples(folder: str | Path) -> list[Sample]:
    """The rows of `examples.json` in a folder."""
    rows = json.loads((Path(folder) / "examples.json").read_text(encoding="utf-8"))
    return [
        Sample(
            str(Path(folder) / row["file"]),
            language_name(row["language"]),
            row["text"],
            tuple(question["instruction"] for question in row["questions"]),
        )
        for row in rows
    ]


__all__ = ["INSTRUCTIONS", "Sample", "load_samples"]
