"""Distances between what the LLM hears and what it reads: L_IN and L_OUT of DiVA (Held et al. 2024, arXiv 2410.02678)
and LAD (Gopal et al. 2026, arXiv 2603.07025).

Unusual here, as in every loss of this room:
- Everything returns a sum, never a mean: the trainer divides by the number of items of the whole optimizer step, so
  that batch splits and process counts give one curve.
- What had to be cut or left out is returned as a count beside the sum.
- Sums are float32 whatever the inputs are (float64 stays), and hang on the graph even where nothing counts, so that a
  batch without a label does not stop a sharded run.
"""

import torch

from modeling_speechllm.connector_base import length_mask


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; wider ones as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def input_distance(
    audio: torch.Tensor,
    audio_lengths: torch.Tensor,
    text: torch.Tensor,
    text_lengths: torch.Tensor,
    over_tokens: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_IN of DiVA and LAD: the last audio vectors of a row against the embeddings of its transcript.

    Sum over utterances of 1 / max(1, N) sum_t ||Z_tail,t - Y_head,t||_2 (un-squared; without the factor 1 / N where it
    is `over_tokens`, as in DiVA's code), where Z_tail are the last N of
    the valid audio vectors. Of a transcript with more tokens than the row has audio vectors the first ones are
    compared, and N is their number. A distance of 0 has gradient 0; the transcript's embeddings get none.

    Args:
        audio (`torch.Tensor` of shape `(batch, tokens, dim)`): what the connector made, anything past its lengths.
        audio_lengths (`torch.Tensor` of shape `(batch,)`): valid audio vectors.
        text (`torch.Tensor` of shape `(batch, tokens, dim)`): LLM input embeddings, anything past their lengths.
        text_lengths (`torch.Tensor` of shape `(batch,)`): tokens of each transcript.

    Returns:
        the sum, to be divided by the number of utterances or of compared tokens, and how many transcript tokens were
        left out.
    """
    compared = torch.minimum(audio_lengths, text_lengths)
    positions = torch.arange(audio.shape[1], device=audio.device)
    tail = length_mask(audio_lengths, audio.shape[1]) & (positions >= (audio_lengths - compared)[:, None])
    head = length_mask(compared, text.shape[1])
    difference = at_least_float32(audio[tail]) - at_least_float32(text.detach()[head])  # (compared of all rows, dim)
    # The gradient of this norm at 0 is 0 in torch; that of a square root of squares would be NaN.
    norms = torch.linalg.vector_norm(difference, dim=-1)
    if not over_tokens:
        norms = norms * compared.clamp(min=1).reciprocal()[:, None].expand_as(head)[head]
    return norms.sum(), (text_lengths - compared).sum()


def output_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """L_OUT of DiVA and LAD: sum over utterances of ||h_speech - h_text||_2, un-squared.

    A distance of 0 has gradient 0; the teacher gets none.

    Args:
        student (`torch.Tensor` of shape `(batch, dim)`): last-layer hidden state of the LLM that heard the speech, at
            the last position of the prompt.
        teacher (`torch.Tensor` of shape `(batch, dim)`): the same of the LLM that read the transcript.

    Returns:
        the sum, to be divided by the number of utterances.
    """
    difference = at_least_float32(student) - at_least_float32(teacher.detach())
    return torch.linalg.vector_norm(difference, dim=-1).sum()


__all__ = ["at_least_float32", "input_distance", "output_distance"]
