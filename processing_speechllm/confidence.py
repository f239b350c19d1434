"""How surely an audio was made out: how near its embeddings lie to those of the LLM's tokens.

A connector that speaks the LLM's language maps audio that it knows onto the LLM's own token embeddings, and silence,
noise, music or speech outside its training to places between them. The score of an audio is the mean, over its tokens,
of the cosine similarity to the nearest token embedding. It needs no head of its own, no transcript, no second answer
and no instruction, so it is the same whatever is asked.

From which score on an audio counts as made out depends on the checkpoint, and is calibrated on recordings that it
knows. Connectors that never come near the token embeddings have no such number.
"""

from dataclasses import replace
from typing import Any

import torch

from .pipeline_prompts import LoadedAudio, Prompt

CHUNK = 128  # audio tokens compared with the whole vocabulary at once


def audio_confidences(embeds: torch.Tensor, counts: list[int], table: torch.Tensor) -> list[float]:
    """
    Args:
        embeds: embeddings of the tokens of all audios, one after the other (tokens, dim).
        counts: tokens of each audio.
        table: the LLM's token embeddings (vocabulary, dim).

    Returns:
        `list[float]`: for each audio the mean cosine similarity of its embeddings to the nearest of the table; 0 for
        one without tokens, in which a reading connector read nothing.
    """
    table = torch.nn.functional.normalize(table.float(), dim=-1)
    nearest = [
        (torch.nn.functional.normalize(part.float(), dim=-1) @ table.T).amax(dim=-1) for part in embeds.split(CHUNK)
    ]
    return [part.mean().item() if len(part) else 0.0 for part in torch.cat(nearest).split(counts)]


def read_embeddings(processor: Any, audio: Any, mask: Any) -> tuple[torch.Tensor, list[int]]:
    """Embeddings (tokens, dim) that the LLM is given of `audio`, what the model's `get_audio_features` made of the
    features with this mask: those of all audios in order, and how many are each one's."""
    counts = processor.audio_token_counts(mask)
    embeds, used = audio.pooler_output, audio.connector.used
    if used is not None:  # a reading connector's places without a token are zeros that the LLM does not see
        used = [row[:count] for row, count in zip(used, counts, strict=True)]
        embeds, counts = embeds[torch.cat(used)], [int(row.sum()) for row in used]
    return embeds, counts


def with_confidences(prompts: list[Prompt], scores: list[float], least: float | None) -> list[Prompt]:
    """The prompts with the confidence of each of their audios, whose scores are given in order, and whether it is at
    least the least one."""
    rest, heard = iter(scores), []
    for prompt in prompts:
        row = [next(rest) for audio in prompt.audio if isinstance(audio, LoadedAudio)]
        confidences = [{"score": score, "understood": None if least is None else score >= least} for score in row]
        heard.append(replace(prompt, confidences=confidences))
    return heard


__all__ = ["audio_confidences", "read_embeddings", "with_confidences"]
