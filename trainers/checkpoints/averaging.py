"""The best checkpoints of a run, and the mean of their weights (BLOOMZMMS averages three)."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .folders import MARKER, WEIGHTS, checkpoint_folders, is_whole


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
    """Mean of the weights of several checkpoints of one run, in their dtype, into a folder like theirs. Integers, such
    as a frozen LLM's in 8 or 4 bits, are copied.

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
            if value.is_floating_point():
                total[key] = total.get(key, 0) + value.double() / len(folders)
                continue
            if not torch.equal(value, first[key]):
                raise ValueError(f"{key} is of integers and not the same in {folder} and {folders[0]}.")
            total[key] = value
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


__all__ = ["average_checkpoints", "best_checkpoints"]
