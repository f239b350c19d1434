"""Losses of logits with their gradients by formula.

    cross-entropy            p_s - 1 at the label
    forward KL(t || s)       p_s - p_t
    the same of top tokens   p_s - p_t at the tokens; elsewhere p_s - r_t p_s / r_s, r the mass of all other tokens

Differentiating step by step takes about twice as many passes over logits of (positions, vocabulary), the largest
tensors of a training. `tests/test_divergences.py` compares each with naive twins.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .distances import at_least_float32

IGNORED = -100
Formula = Callable[..., tuple[torch.Tensor, Callable[[], torch.Tensor]]]  # float logits, *others -> sum, its gradient


class ByFormula(torch.autograd.Function):
    """A sum over logits whose gradient is computed with it: `ByFormula.apply(formula, logits, temperature, *others)`.

    The formula is of logits / temperature in float32 at least, which it may overwrite. It gives the gradient as a
    function, called at once, and not for logits that need none, as in an evaluation.
    """

    @staticmethod
    def forward(ctx: Any, formula: Formula, logits: torch.Tensor, temperature: float, *others: Any) -> torch.Tensor:
        tempered = at_least_float32(logits)
        if temperature != 1:
            tempered = tempered / temperature if tempered is logits else tempered.div_(temperature)
        total, gradient = formula(tempered, *others)
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(gradient())
        ctx.temperature, ctx.dtype, ctx.others = temperature, logits.dtype, len(others)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return None, (gradient * (outer / ctx.temperature)).to(ctx.dtype), None, *[None] * ctx.others


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    """Sum of -log softmax(logits) at the labels, and its gradient; labels of -100 add nothing.

    Args:
        logits (`torch.Tensor` of shape `(n, vocabulary)`).
        labels (`torch.Tensor` of shape `(n,)`).
    """
    log_student = logits.log_softmax(-1)
    total = F.nll_loss(log_student, labels, ignore_index=IGNORED, reduction="sum")

    def gradient() -> torch.Tensor:
        labelled = (labels != IGNORED).to(log_student.dtype).unsqueeze(-1)
        likely = log_student.exp_()
        if (labels == IGNORED).any():
            likely.mul_(labelled)
        return likely.scatter_add_(-1, labels.clamp(min=0).unsqueeze(-1), -labelled)

    return total, gradient


def forward_kl(logits: torch.Tensor, log_teacher: torch.Tensor) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    """Sum of KL(teacher || softmax(logits)), and its gradient.

    Args:
        logits (`torch.Tensor` of shape `(n, vocabulary)`).
        log_teacher (`torch.Tensor` of shape `(n, vocabulary)`): log-probabilities, of exactly 1 together; overwritten.
    """
    log_student, teacher = logits.log_softmax(-1), log_teacher.exp()
    total = log_teacher.sub_(log_student).mul_(teacher).sum()
    return total, lambda: log_student.exp_().sub_(teacher)


def top_tokens_kl(
    logits: torch.Tensor, log_teacher: torch.Tensor, indices: torch.Tensor
) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    """Sum of the forward KL over k tokens and one more event, "any other token", and its gradient.

    Args:
        logits (`torch.Tensor` of shape `(n, vocabulary)`): of more than k tokens.
        log_teacher, indices (`torch.Tensor` of shape `(n, k)`): the teacher's log-probabilities of its k tokens.
    """
    log_student = logits.log_softmax(-1)
    log_tokens, teacher = log_student.gather(-1, indices), log_teacher.exp()
    total = (teacher * (log_teacher - log_tokens)).sum()
    rest = (1 - teacher.sum(-1)).clamp(min=0)
    mass = teacher.sum(-1) + rest  # 1 but for rounding
    others = log_student.scatter_(-1, indices, float("-inf"))
    likeliest = others.amax(-1)
    others = others.softmax(-1)
    log_rest = likeliest - others.amax(-1).log()  # of the student; a sum of probabilities would lose the small ones
    total = total + (torch.xlogy(rest, rest) - rest * log_rest).sum()

    def gradient() -> torch.Tensor:
        elsewhere = others.mul_((log_rest.exp() * mass - rest).unsqueeze(-1))
        return elsewhere.scatter_(-1, indices, log_tokens.exp() * mass.unsqueeze(-1) - teacher)

    return total, gradient


__all__ = ["ByFormula", "cross_entropy", "forward_kl", "top_tokens_kl"]
