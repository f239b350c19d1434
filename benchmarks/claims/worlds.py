"""What a world gives to every variant: parents, training data, frames on disk, questions.

A world is made once into its folder and described by `World`; the variants (`papers/*.yaml`) name its data and
question sets, so that one file of variants serves both worlds.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class World:
    """
    Args:
        name: `nano` or `real`; which block of `worlds` in a paper's file applies.
        parents: paper -> settings that name encoder and LLM, as a command takes them.
        data: name -> folder of training rows.
        frames: name of the data, or one that a variant gives -> folder of `speechllm encode`; without, frames are
            computed on line.
        questions: name -> settings of `EvaluationConfig`: `dataset`, `task`, `headline`, ...
        models: name -> folder of a whole model that variants start from in place of the parents.
        helpers: folder that is put beside each trained model: what a cascade with the model's own encoder needs.
        languages: that data and questions come in parts of, as `six-en`.
    """

    name: str
    parents: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, str]
    frames: Mapping[str, str]
    questions: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, str] = field(default_factory=dict)
    helpers: str | None = None
    languages: tuple[str, ...] = field(default=())


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]], root: Path) -> str:
    """
    Writes `folder/manifest.jsonl`, whole or not at all.

    Args:
        folder: of the set.
        rows: with `audio` as a path below `root`, or a list of these.
        root: of the recordings.

    Returns:
        the folder's path, as commands take it.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def relative(path: str) -> str:
        return Path(os.path.relpath(root / path, folder)).as_posix()

    lines = []
    for row in rows:
        audio = row["audio"]
        audio = [relative(path) for path in audio] if isinstance(audio, list) else relative(audio)
        lines.append(json.dumps({**row, "audio": audio}, ensure_ascii=False) + "\n")
    partial = folder / "manifest.partial"
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(folder / "manifest.jsonl")
    return str(folder)


def read_rows(folder: Path) -> list[dict[str, Any]] | None:
    """The rows of a manifest as they stand, None where there is none yet."""
    path = folder / "manifest.jsonl"
    if not path.exists():
        return None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_language(rows: Iterable[Mapping[str, Any]], languages: Iterable[str]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each language, all of which must occur.

    Raises:
        ValueError: a language without a row.
    """
    rows = list(rows)
    parts = {language: [row for row in rows if row["language"] == language] for language in languages}
    missing = [language for language, part in parts.items() if not part]
    if missing:
        raise ValueError(f"No rows of {', '.join(missing)}. Build the world with more recordings.")
    return parts


__all__ = ["World", "by_language", "read_rows", "write_rows"]
