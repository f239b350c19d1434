"""Sums over positions whose logits exist one chunk at a time, and are made once.

The vocabulary is the largest dimension by far. Where the head is frozen, each chunk's part of the sum is
differentiated down to the hidden states while its logits are there, and only that gradient, as large as the hidden
states, is kept for the backward pass (as in Liger's losses, Hsu et al. 2024, arXiv 2410.10989). Where the head is
trained too, a chunk is computed again in the backward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

Head = Callable[[torch.Tensor], torch.Tensor]


def recomputed(function: Callable, *args: Any) -> Any:
    """`function(*args)`, keeping only `args` for the backward pass."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def keeping_tensors_here() -> saved_tensors_hooks:
    """Hooks that offload activations do not see what is let go at once."""
    return saved_tensors_hooks(lambda kept: kept, lambda kept: kept)


def is_trained(head: Head, hidden: torch.Tensor) -> bool:
    """Whether a head, (n, dim) -> (n, vocabulary), has parameters that want gradients."""
    with keeping_tensors_here():
        return head(hidden[:0].detach()).requires_grad


class GradientsOnTheWay(torch.autograd.Function):
    """Sum over chunks of a function of hidden states, whose gradient is computed with the sum."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable, chunk: int, hidden: torch.Tensor, *others: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        totals, figures, gradients = [], [], []
        for part, *rest in zip(hidden.split(chunk), *(other.split(chunk) for other in others), strict=True):
            with torch.enable_grad(), keeping_tensors_here():
                part = part.detach().requires_grad_()
                total, figure = function(part, *rest)
            gradients += torch.autograd.grad(total, part)
            totals.append(total.detach())
            figures.append(figure)
        ctx.save_for_backward(torch.cat(gradients))
        total, figure = sum(totals), sum(figures)
        ctx.mark_non_differentiable(figure)
        return total, figure

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple:
        (hidden,) = ctx.saved_tensors
        return (
            None,
            None,
            (gradient * hidden.to(gradient.dtype)).to(hidden.dtype),
            *[None] * len(ctx.needs_input_grad[3:]),
        )


def sum_over_chunks(
    function: Callable, hidden: torch.Tensor, others: Sequence[torch.Tensor], head: Head, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Sums of what `function` gives for chunks of positions.

    Args:
        function: (hidden (n, dim), *others (n, ...)) -> a scalar, and a figure without gradient.
        hidden (`torch.Tensor` of shape `(positions, dim)`): hidden states, through which gradients flow.
        others: further tensors `(positions, ...)`, which get none.
        head: the head that `function` runs.
        chunk: positions at a time.

    Returns:
        the sums of both, equal in value and gradient to those without chunks.
    """
    if torch.is_grad_enabled() and hidden.requires_grad and len(hidden) and not is_trained(head, hidden):
        return GradientsOnTheWay.apply(function, chunk, hidden, *others)
    parts = zip(hidden.split(chunk), *(other.split(chunk) for other in others), strict=True)
    totals, figures = zip(*(recomputed(function, *part) for part in parts), strict=True)
    return sum(totals), sum(figures)


__all__ = ["Head", "recomputed", "sum_over_chunks"]
