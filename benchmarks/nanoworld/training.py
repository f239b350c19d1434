"""What the three trainings share: optimizer, schedule and checkpoints that a killed run resumes from.

Matrices inside the networks are trained by Muon, everything else (embeddings, norms, convolutions, heads) by AdamW. A
checkpoint is one safetensors file (weights, optimizer states, step) that replaces the previous one atomically.
Batches depend on the step alone, so a resumed run sees what the uninterrupted run would have seen.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def autocast(device: torch.device, enabled: bool = True) -> torch.autocast:
    """bfloat16 matrix products, on CPU and GPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


class Optimizer:
    """Muon for hidden matrices and AdamW for the rest, under one trapezoidal schedule.

    Args:
        model: module to train; parameters without `requires_grad` are left alone.
        steps: length of the run in updates.
        lr: peak learning rate of both parts (Muon's is matched to AdamW's update size).
        adamw_names: parts of names whose matrices belong to AdamW.
        warmup: updates to reach the peak.
        decay: share of the run, at its end, over which the rate falls to zero.
        weight_decay: of the matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        lr: float,
        adamw_names: tuple[str, ...] = ("embed", "head"),
        warmup: int = 100,
        decay: float = 0.5,
        weight_decay: float = 0.02,
    ):
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        hidden = [p for name, p in trained if p.ndim == 2 and not any(part in name for part in adamw_names)]
        chosen = {id(parameter) for parameter in hidden}
        rest = [parameter for _, parameter in trained if id(parameter) not in chosen]
        self.parts = [torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]
        if hidden:
            self.parts.append(
                torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        self.parameters = [parameter for _, parameter in trained]
        self.steps, self.lr, self.warmup, self.decay = steps, lr, warmup, decay

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear up, flat, linear down to zero."""
        left = (self.steps - step) / max(self.decay * self.steps, 1)
        return self.lr * min(1.0, (step + 1) / self.warmup, max(left, 0.0))

    def update(self, step: int, clip: float = 1.0) -> float:
        """Clips, steps and clears the gradients; returns their norm."""
        norm = nn.utils.clip_grad_norm_(self.parameters, clip)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.rate(step)
            part.step()
            part.zero_grad(set_to_none=True)
        return norm.item()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All states as flat tensors."""
        flat = {}
        for number, part in enumerate(self.parts):
            for index, state in part.state_dict()["state"].items():
                flat |= {f"{number}.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        return flat

    def load(self, flat: dict[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        for number, part in enumerate(self.parts):
            whole = part.state_dict()
            for name, value in flat.items():
                owner, index, key = name.split(".", 2)
                if int(owner) == number:
                    whole["state"].setdefault(int(index), {})[key] = value
            part.load_state_dict(whole)


def save_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer, step: int, seconds: float) -> None:
    """Writes weights and optimizer states after `step` updates and `seconds` of training."""
    tensors = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    tensors |= {f"optimizer.{name}": value.clone() for name, value in optimizer.tensors().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"progress": json.dumps({"step": step, "seconds": seconds})})
    partial.replace(path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> tuple[int, float]:
    """Restores a checkpoint if there is one; returns updates done and seconds spent."""
    if not path.exists():
        return 0, 0.0
    with safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        progress = json.loads(stored.metadata()["progress"])
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    optimizer.load({n.removeprefix("optimizer."): t for n, t in tensors.items() if n.startswith("optimizer.")})
    return progress["step"], progress["seconds"]
