"""Terms of a loss as sums over items, and their means over many batches and all processes."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from accelerate import Accelerator


@dataclass
class Term:
    """One part of a loss, or with weight 0 a figure that is only reported.

    Args:
        total: sum over the items of this batch, a scalar.
        items: what it is a sum over, a key of the batch's `counts`; it is divided by their global number.
        weight: factor in the loss.
    """

    total: torch.Tensor
    items: str
    weight: float = 1.0


def weighted_loss(terms: dict[str, Term], counts: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum over terms of weight x total / items; `counts` are those of the whole optimizer step."""
    return sum(term.weight * term.total / counts[term.items].clamp(min=1) for term in terms.values() if term.weight)


class Totals:
    """Adds up terms and counts of batches."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, float] = defaultdict(float)
        self.described: dict[str, Term] = {}

    def add(self, terms: dict[str, Term], counts: dict[str, float]) -> None:
        """Adds one batch of this process."""
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.total.detach().double()
            self.described[name] = term
        for name, count in counts.items():
            self.counts[name] += count

    def take(self, accelerator: Accelerator) -> tuple[dict[str, float], dict[str, float]]:
        """The terms' means over all processes since the last time, with the `loss` they make, and the counts."""
        if not self.counts:
            return {}, {}
        names, items = sorted(self.described), sorted(self.counts)
        local = [self.sums.get(name, torch.tensor(0.0)).item() for name in names] + [self.counts[i] for i in items]
        values = torch.tensor(local, dtype=torch.float32, device=accelerator.device)
        values = accelerator.reduce(values, reduction="sum").tolist()
        counts = dict(zip(items, values[len(names) :], strict=True))
        means = {
            name: value / max(counts[self.described[name].items], 1.0)
            for name, value in zip(names, values, strict=False)
        }
        means["loss"] = sum(self.described[name].weight * means[name] for name in names)
        self.sums.clear()
        self.counts.clear()
        return means, counts


__all__ = ["Term", "Totals", "weighted_loss"]
