"""Checkpoint folders: which are whole, which is the last, which are the best, and the mean of several.

A checkpoint is whole once its marker lies in it, which is written last. So one whose writing was killed is never taken
for a whole one.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from modeling_speechllm.partial_checkpoints import TRAINED_FILE

MARKER = "checkpoint_complete.json"
BEGUN = "checkpoint_begun"
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
    """Writes the marker: every file of the folder with its size, after all of them reached the disk."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (MARKER, BEGUN)]
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


def best_checkpoints(
    output_dir: str | Path, history: list[dict], metric: str, greater_is_better: bool, count: int
) -> list[Path]:
    """The `count` whole checkpoints with the best `metric`, best first; `history` is `TrainerState.log_history`.

    Raises:
        ValueError: fewer checkpoints that were evaluated.
    """
    values = {entry["step"]: entry[metric] for entry in history if metric in entry}
    found = [
        (values[step], folder)
        for folder in checkpoint_folders(output_dir)
        if is_whole(folder)
        for step in [int(folder.name.split("-")[-1])]
        if step in values
    ]
    if len(found) < count:
        raise ValueError(
            f"{len(found)} checkpoints have the metric {metric}, {count} are to be averaged. Save and evaluate at the "
            "same steps (save_steps a multiple of eval_steps), or lower average_best."
        )
    found.sort(key=lambda pair: pair[0], reverse=bool(greater_is_better))
    return [folder for _, folder in found[:count]]


def average_checkpoints(folders: list[Path], output: str | Path) -> Path:
    """Mean of the weights of several checkpoints of one run, in their dtype, into a folder like theirs.

    Raises:
        ValueError: checkpoints without weights, or with different ones.
    """
    name = next((name for name in WEIGHTS if (folders[0] / name).is_file()), None)
    if name is None:
        raise ValueError(f"{folders[0]} holds none of {', '.join(WEIGHTS)}. Averaging needs unsharded checkpoints.")
    total: dict[str, torch.Tensor] = {}
    first = load_file(folders[0] / name)
    for folder in folders:
        state = load_file(folder / name)
        if state.keys() != first.keys():
            raise ValueError(f"{folder} and {folders[0]} hold different weights. Average checkpoints of one run.")
        for key, value in state.items():
            total[key] = total.get(key, 0) + value.double() / len(folders)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    for path in folders[0].iterdir():  # configs and processor
        if path.suffix in (".json", ".jinja", ".model", ".txt") and path.name not in (MARKER, "trainer_state.json"):
            shutil.copy(path, output / path.name)
    save_file(
        {key: value.to(first[key].dtype) for key, value in total.items()}, output / f"{name}.partial", {"format": "pt"}
    )
    (output / f"{name}.partial").replace(output / name)
    return output


__all__ = [
    "average_checkpoints",
    "best_checkpoints",
    "clear_halves",
    "is_whole",
    "last_checkpoint",
    "mark_begun",
    "mark_whole",
]
