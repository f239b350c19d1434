"""Checkpoint folders: which are whole, and which is the last.

A checkpoint is whole once its marker lies in it, which is written last. So one whose writing was killed is never taken
for a whole one.
"""

import json
import os
import shutil
from pathlib import Path

from transformers.utils import logging

from modeling_speechllm.partial_checkpoints import TRAINED_FILE

MARKER = "checkpoint_complete.json"
BEGUN = "checkpoint_begun"
CARD_FILES = ("README.md", "facts.json")  # an evaluation may add to them later
WEIGHTS = (TRAINED_FILE, "model.safetensors", "adapter_model.safetensors")

logger = logging.get_logger(__name__)


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """All `checkpoint-N` folders by N, whole or not."""
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.name.split("-")[-1].isdigit()]
    return sorted(folders, key=lambda folder: int(folder.name.split("-")[-1]))


def is_whole(folder: Path) -> bool:
    """Whether the checkpoint was written to its end and its files still have the sizes they had."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def mark_begun(folder: Path) -> None:
    """Says that the folder is being written, and no longer whole if it was."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BEGUN).touch()
    (folder / MARKER).unlink(missing_ok=True)


def mark_whole(folder: Path) -> None:
    """Writes the marker: every file of the folder but its card with its size, after all of them reached the disk."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if path.name not in (MARKER, BEGUN, *CARD_FILES)]
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    partial = folder / f"{MARKER}.partial"
    partial.write_text(json.dumps({str(p.relative_to(folder)): p.stat().st_size for p in files}), encoding="utf-8")
    partial.replace(folder / MARKER)
    (folder / BEGUN).unlink(missing_ok=True)


def last_checkpoint(output_dir: str | Path) -> Path:
    """The last whole checkpoint.

    Raises:
        ValueError: there is none.
    """
    whole = [folder for folder in checkpoint_folders(output_dir) if is_whole(folder)]
    if not whole:
        raise ValueError(
            f"{output_dir} has no whole checkpoint to resume from. Start without resume_from_checkpoint, and save "
            "earlier (save_steps)."
        )
    return whole[-1]


def clear_halves(output_dir: str | Path) -> list[Path]:
    """Removes checkpoints whose writing was interrupted, with a warning that names them; returns them."""
    halves = [
        folder for folder in checkpoint_folders(output_dir) if (folder / BEGUN).exists() and not is_whole(folder)
    ]
    for folder in halves:
        logger.warning(f"{folder} was not written to its end and is removed.")
        shutil.rmtree(folder)
    return halves


__all__ = ["checkpoint_folders", "clear_halves", "is_whole", "last_checkpoint", "mark_begun", "mark_whole"]
