"""CTC over the LLM's vocabulary and over languages (BLOOMZMMS, stage 1; Denisov & Vu 2024, arXiv 2404.10922), and the
gate's language loss (LAD; Gopal et al. 2026, arXiv 2603.07025). Sums and counts, as in `distances`."""

import torch
from torch.nn import functional as F

from modeling_speechllm.connector_base import length_mask

from .distances import at_least_float32


def check_languages(languages: torch.Tensor, count: int) -> None:
    """Raises a ValueError for labels that are neither -1 nor one of `count` languages."""
    if ((languages < -1) | (languages >= count)).any():
        raise ValueError(
            f"Language labels must be from 0 to {count - 1}, or -1 for unknown, not {languages.tolist()}. Give the "
            "connector's config every language of the data, or label the others -1."
        )


def language_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L_LID of LAD: sum of -log softmax(g)_label over the rows whose language is known.

    Args:
        logits (`torch.Tensor` of shape `(batch, languages)`): the gate's.
        labels (`torch.Tensor` of shape `(batch,)`): -1 for unknown.

    Returns:
        the sum, to be divided by the number of labels that are not -1, and how many of those the gate got right.

    Raises:
        ValueError: a label that is none of the languages.
    """
    check_languages(labels, logits.shape[1])
    total = F.cross_entropy(at_least_float32(logits), labels, ignore_index=-1, reduction="sum")
    return total, (logits.argmax(-1) == labels).sum()


def ctc_rows(
    logits: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor, blank: int
) -> torch.Tensor:
    """-log p(target) of each row, (batch,), shapes as in [`ctc_loss`]; every target must fit."""
    log_probabilities = at_least_float32(logits).log_softmax(-1).transpose(0, 1)  # (time, batch, vocabulary)
    return F.ctc_loss(log_probabilities, targets, lengths, target_lengths, blank, reduction="none")


def ctc_loss(
    logits: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor, blank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """CTC (Graves et al. 2006), stage 1 of BLOOMZMMS: sum over utterances of -log p(transcript | speech).

    A target of n tokens, r of which equal the one before, needs n + r frames. Rows with fewer add nothing and are
    counted; the original (ESPnet, `zero_infinity`) leaves them out too, uncounted.

    Args:
        logits (`torch.Tensor` of shape `(batch, frames, vocabulary)`): before the softmax.
        lengths (`torch.Tensor` of shape `(batch,)`): valid frames.
        targets (`torch.Tensor` of shape `(batch, tokens)`): transcript tokens, anything past `target_lengths`.
        target_lengths (`torch.Tensor` of shape `(batch,)`): tokens of each transcript.
        blank: the token that stands for nothing.

    Returns:
        the sum, to be divided by the number of utterances (ESPnet counts all of them), and the number of rows whose
        target does not fit.

    Raises:
        ValueError: a target is the blank or outside the vocabulary.
    """
    valid = length_mask(target_lengths, targets.shape[1])
    wrong = valid & ((targets == blank) | (targets < 0) | (targets >= logits.shape[-1]))
    if wrong.any():
        raise ValueError(
            f"CTC targets contain {sorted(set(targets[wrong].tolist()))}, but a target must be from 0 to "
            f"{logits.shape[-1] - 1} and not the blank, {blank}. Tokenize transcripts without special tokens, or "
            "choose as the blank a token that no transcript has."
        )
    repeats = ((targets[:, 1:] == targets[:, :-1]) & valid[:, 1:]).sum(1)
    fits = target_lengths + repeats <= lengths
    # A row without a possible path has loss infinity and gradient NaN; with an empty target it has neither.
    rows = ctc_rows(logits, lengths, targets.masked_fill(~valid, 0), target_lengths * fits, blank)
    return rows.masked_fill(~fits, 0.0).sum(), (~fits).sum()


def language_ctc_loss(
    logits: torch.Tensor, lengths: torch.Tensor, languages: torch.Tensor, token_counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Intermediate language CTC of BLOOMZMMS: the target is the language, once per transcript token.

    Equal neighbours need a blank between them, so at most (frames + 1) // 2 repetitions fit. The original leaves rows
    with more tokens out of the loss, uncounted (`zero_infinity`). Here, a choice of ours, they keep what fits and
    are counted: the language of fast speech is known all the same.

    Args:
        logits (`torch.Tensor` of shape `(batch, frames, languages + 1)`): before the softmax; the last class is the
            blank.
        lengths (`torch.Tensor` of shape `(batch,)`): valid frames.
        languages (`torch.Tensor` of shape `(batch,)`): -1 for unknown, left out.
        token_counts (`torch.Tensor` of shape `(batch,)`): tokens of each transcript.

    Returns:
        the sum, to be divided by the number of languages that are not -1, and the number of such rows whose
        repetitions were cut.

    Raises:
        ValueError: a label that is none of the languages.
    """
    blank = logits.shape[-1] - 1
    check_languages(languages, blank)
    known = languages >= 0
    repetitions = torch.minimum(token_counts, (lengths + 1) // 2) * known
    targets = languages.clamp(min=0)[:, None].expand(-1, (logits.shape[1] + 1) // 2).contiguous()
    rows = ctc_rows(logits, lengths, targets, repetitions, blank)
    return rows.masked_fill(~known, 0.0).sum(), (known & (repetitions < token_counts)).sum()


__all__ = ["ctc_loss", "language_ctc_loss", "language_loss"]
