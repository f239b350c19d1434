"""Losses on the response: cross-entropy with its tokens, divergence from the LLM that read the transcript.

    cross-entropy           MTBI (Xie et al. 2025, arXiv 2505.18644), BLOOMZMMS stage 2, BLSP
    forward KL              Ultravox; Hinton et al. 2015 (arXiv 1503.02531) for the temperature and its square
    reverse KL, JSD         GKD (Agarwal et al. 2024, arXiv 2306.13649), equation 1, with TRL's `beta`

All take hidden states and a `head` that makes logits of them, scales and soft caps included, and return sums.

Unusual here:
- Logits exist for `chunk` positions at a time (`chunks.py`). Memory is chunk x vocabulary whatever the number of
  positions; with [`vocabulary_slices`] for a head, which computes them again in the backward pass, chunk x slice.
- Dividing the vocabulary costs a second pass through the head (the first finds the normalisers), fewer positions per
  chunk cost little. So take fewer positions first.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .chunks import Head, recomputed, sum_over_chunks
from .distances import at_least_float32
from .logit_losses import ByFormula, cross_entropy, forward_kl, top_tokens_kl

CHUNK = 256  # positions; with 256,000 tokens a float32 copy of the logits has 262 MB
KINDS = ("forward", "reverse", "jsd")


def vocabulary_slices(
    weight: torch.Tensor, bias: torch.Tensor | None = None, size: int = 32768, finish: Head | None = None
) -> list[Head]:
    """An LLM's head as one head per slice of the vocabulary, for [`response_divergence`].

    Args:
        weight (`torch.Tensor` of shape `(vocabulary, dim)`): of the head; gathered, where it is sharded.
        bias (`torch.Tensor` of shape `(vocabulary,)`, *optional*): of the head.
        size: tokens per slice; the last one may have fewer.
        finish: what the LLM does to each logit by itself, such as a scale or a soft cap.
    """
    weights = weight.split(size)  # split once: its gradient is put together once, too
    biases = [None] * len(weights) if bias is None else bias.split(size)

    def logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        product = F.linear(hidden, weight, bias)
        return product if finish is None else finish(product)

    return [partial(logits, weight=rows, bias=part) for rows, part in zip(weights, biases, strict=True)]


def tempered_logits(hidden: torch.Tensor, head: Head, temperature: float) -> torch.Tensor:
    """(n, dim) -> float32 logits (n, vocabulary) over the temperature."""
    return at_least_float32(head(hidden)) / temperature


def response_loss(
    hidden: torch.Tensor, labels: torch.Tensor, head: Head, chunk: int = CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy on the response: sum of -log p(label), equal in value and gradient to that of all logits at once.

    Args:
        hidden (`torch.Tensor` of shape `(positions, dim)`): last-layer hidden states where the next token is a label,
            of all rows one after the other.
        labels (`torch.Tensor` of shape `(positions,)`): the next tokens; -100 adds nothing.
        head: (n, dim) -> logits (n, vocabulary).
        chunk: positions whose logits exist at a time.

    Returns:
        the sum, to be divided by the number of labels, and how many labels are the likeliest token.
    """

    def of_chunk(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(hidden)
        return ByFormula.apply(cross_entropy, logits, 1.0, labels), (logits.detach().argmax(-1) == labels).sum()

    return sum_over_chunks(of_chunk, hidden, [labels], head, chunk)


def token_divergence(
    log_student: torch.Tensor, log_teacher: torch.Tensor, kind: str, beta: float = 0.5
) -> torch.Tensor:
    """What each token adds to the divergence of [`response_divergence`]; log-probabilities and result (n, tokens)."""
    if kind == "forward":
        return log_teacher.exp() * (log_teacher - log_student)
    if kind == "reverse":
        return log_student.exp() * (log_student - log_teacher)
    log_mixture = torch.logaddexp(log_student + math.log(1 - beta), log_teacher + math.log(beta))
    of_teacher = log_teacher.exp() * (log_teacher - log_mixture)
    of_student = log_student.exp() * (log_student - log_mixture)
    return beta * of_teacher + (1 - beta) * of_student


def check_kind(kind: str, beta: float, temperature: float) -> None:
    """Raises a ValueError for settings that [`response_divergence`] does not know."""
    if kind not in KINDS:
        raise ValueError(f"Unknown divergence {kind!r}; choose one of {', '.join(KINDS)}.")
    if kind == "jsd" and not 0 < beta < 1:
        raise ValueError(f"The JSD's beta must be between 0 and 1, not {beta}; at the ends take 'forward', 'reverse'.")
    check_temperature(temperature)


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"The temperature must be above 0, not {temperature}; 1 leaves distributions as they are.")


def response_divergence(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    head: Head | Sequence[Head],
    kind: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Divergence of the student's next-token distribution s from the teacher's t, both softmax(logits / temperature),
    summed over positions and multiplied by temperature^2, which keeps the gradient's size (Hinton et al. 2015).

        forward   KL(t || s)
        reverse   KL(s || t)
        jsd       beta KL(t || m) + (1 - beta) KL(s || m), m = beta t + (1 - beta) s

    `beta` is that of TRL's `DistillationTrainer` and `GKDTrainer`, where 0 stands for forward and 1 for reverse: the
    weight of the teacher in the mixture. The JSD goes to 0 at both ends.

    The same head makes both distributions. The teacher gets no gradient, neither does the head for its part in it.

    Args:
        student_hidden (`torch.Tensor` of shape `(positions, dim)`): last-layer hidden states where the next token is
            one of the response, of all rows one after the other.
        teacher_hidden (`torch.Tensor` of shape `(positions, dim)`): the same positions of the LLM that read.
        head: (n, dim) -> logits (n, vocabulary), or the heads of [`vocabulary_slices`].
        kind: `"forward"`, `"reverse"` or `"jsd"`.
        beta: of the JSD, above 0 and below 1.
        temperature: above 0.
        chunk: positions whose logits exist at a time.

    Returns:
        the sum, to be divided by the number of positions.

    Raises:
        ValueError: an unknown kind, a beta or a temperature out of range, or different numbers of positions.
    """
    check_kind(kind, beta, temperature)
    if len(student_hidden) != len(teacher_hidden):
        raise ValueError(
            f"The student has {len(student_hidden)} response positions, the teacher {len(teacher_hidden)}. Give both "
            "the same response tokens."
        )
    heads = [head] if callable(head) else head

    def log_mass(hidden: torch.Tensor, head: Head) -> torch.Tensor:
        return tempered_logits(hidden, head, temperature).logsumexp(-1, keepdim=True)  # (n, 1)

    def of_slice(
        student: torch.Tensor, teacher: torch.Tensor, masses: tuple[torch.Tensor, torch.Tensor] | None, head: Head
    ) -> torch.Tensor:
        student = tempered_logits(student, head, temperature)
        with torch.no_grad():
            teacher = tempered_logits(teacher, head, temperature)
        if masses is None:
            log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
        else:
            log_student, log_teacher = student - masses[0], teacher - masses[1]
        return token_divergence(log_student, log_teacher, kind, beta).sum()

    if len(heads) == 1:

        def of_chunk(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            none = student.new_zeros(())
            if kind != "forward":
                return of_slice(student, teacher, None, heads[0]), none
            with torch.no_grad():
                log_teacher = tempered_logits(teacher, heads[0], temperature).log_softmax(-1)
            return ByFormula.apply(forward_kl, heads[0](student), temperature, log_teacher), none

        total, _ = sum_over_chunks(of_chunk, student_hidden, [teacher_hidden.detach()], heads[0], chunk)
        return total * temperature**2
    totals = []
    for student, teacher in zip(student_hidden.split(chunk), teacher_hidden.split(chunk), strict=True):
        student_mass = torch.stack([recomputed(log_mass, student, head) for head in heads]).logsumexp(0)
        with torch.no_grad():
            masses = student_mass, torch.stack([log_mass(teacher, head) for head in heads]).logsumexp(0)
        totals += [recomputed(of_slice, student, teacher, masses, head) for head in heads]
    return sum(totals) * temperature**2


class TopTokens(NamedTuple):
    """A teacher known by its likeliest tokens: what a cache keeps instead of hidden states.

    Args:
        log_probabilities (`torch.Tensor` of shape `(positions, k)`): of softmax(logits / temperature), over the whole
            vocabulary. float32 keeps the remaining mass exact; half precision rounds it by about 1e-3.
        indices (`torch.Tensor` of shape `(positions, k)`): the tokens.
        temperature: at which they were computed. Those of another cannot be had from them: the remaining tokens, one
            by one, would be needed.
    """

    log_probabilities: torch.Tensor
    indices: torch.Tensor
    temperature: float


@torch.no_grad()
def top_k_of(
    teacher_hidden: torch.Tensor, head: Head, k: int, temperature: float = 1.0, chunk: int = CHUNK
) -> TopTokens:
    """The k likeliest tokens of each position, likeliest first, for [`top_k_divergence`].

    Args:
        teacher_hidden (`torch.Tensor` of shape `(positions, dim)`): as in [`response_divergence`].
        head: (n, dim) -> logits (n, vocabulary).
        k: from 1 to the size of the vocabulary.
        temperature: above 0, that of the training to come.
        chunk: positions whose logits exist at a time.

    Raises:
        ValueError: k or the temperature is out of range.
    """
    check_temperature(temperature)
    parts = []
    for hidden in teacher_hidden.split(chunk):
        log_probabilities = tempered_logits(hidden, head, temperature).log_softmax(-1)
        vocabulary = log_probabilities.shape[-1]
        if not 1 <= k <= vocabulary:
            raise ValueError(f"k must be from 1 to the {vocabulary} tokens of the vocabulary, not {k}.")
        parts.append(log_probabilities.topk(k))
    values, indices = (torch.cat(part) for part in zip(*parts, strict=True))
    return TopTokens(values, indices, temperature)


def top_k_divergence(
    student_hidden: torch.Tensor, teacher: TopTokens, head: Head, temperature: float = 1.0, chunk: int = CHUNK
) -> torch.Tensor:
    """Forward KL(t || s) over the teacher's k likeliest tokens and one more event, "any other token", summed over
    positions and multiplied by temperature^2. Equal to [`response_divergence`] where k is the size of the vocabulary.

    What is lost is the divergence among the other tokens, weighted with the teacher's mass on them: little by the
    choice of k. In the reverse KL and the JSD it would be weighted with the student's mass, which may be large, and a
    student could escape the loss among the other tokens; so there is only the forward one.

    Args:
        student_hidden (`torch.Tensor` of shape `(positions, dim)`): as in [`response_divergence`].
        teacher ([`TopTokens`]): the same positions, from [`top_k_of`].
        head: (n, dim) -> logits (n, vocabulary).
        temperature: above 0, and the one at which the teacher's tokens were computed.
        chunk: positions whose logits exist at a time.

    Returns:
        the sum, to be divided by the number of positions.

    Raises:
        ValueError: the teacher's tokens are of another temperature or of another number of positions.
    """
    check_temperature(temperature)
    if teacher.temperature != temperature:
        raise ValueError(
            f"The teacher's top tokens were computed at temperature {teacher.temperature}, the loss is at "
            f"{temperature}. Train at {teacher.temperature}, or compute them again at {temperature}."
        )
    if len(student_hidden) != len(teacher.indices):
        raise ValueError(
            f"The student has {len(student_hidden)} response positions, the teacher's top tokens "
            f"{len(teacher.indices)}. Compute them again with this tokenizer, template and responses."
        )

    def of_chunk(
        hidden: torch.Tensor, log_teacher: torch.Tensor, indices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        none, logits = hidden.new_zeros(()), head(hidden)
        log_teacher, indices = at_least_float32(log_teacher), indices.long()
        if indices.shape[-1] == logits.shape[-1]:
            log_student = (at_least_float32(logits) / temperature).log_softmax(-1).gather(-1, indices)
            return token_divergence(log_student, log_teacher, "forward").sum(), none
        return ByFormula.apply(top_tokens_kl, logits, temperature, log_teacher, indices), none

    tokens = [teacher.log_probabilities.detach(), teacher.indices]
    total, _ = sum_over_chunks(of_chunk, student_hidden, tokens, head, chunk)
    return total * temperature**2


__all__ = [
    "Head",
    "TopTokens",
    "response_divergence",
    "response_loss",
    "top_k_divergence",
    "top_k_of",
    "vocabulary_slices",
]
