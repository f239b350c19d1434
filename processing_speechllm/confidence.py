"""How surely an audio was made out: how near its embeddings lie to those of the LLM's tokens.

A connector that speaks the LLM's language maps audio that it knows onto the LLM's own token embeddings, and silence,
noise, music or speech outside its training to places between them. The score of an audio is the mean, over its tokens,
of the cosine similarity to the nearest token embedding. It needs no head of its own, no transcript, no second answer
and no instruction, so it is the same whatever is asked.

From which score on an audio counts as made out depends on the checkpoint, and is calibrated on recordings that it
knows. Connectors that never come near the token embeddings have no such number.
"""

import torch

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


__all__ = ["audio_confidences"]
