"""Audio tokens that are there in number only: a connector's `used` says which the LLM is to read, the others are taken
out of attention and positions, so that a prompt's length still follows from the audio's."""

import torch

from .connector_base import ConnectorOutput, length_mask


def leave_out(left_out: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes places out of a prompt: out of attention, and out of the count of positions, so that the LLM gives what it
    would give without them.

    Args:
        left_out (`torch.BoolTensor` of shape `(batch, sequence)`): which places.
        attention_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): the prompt's own.

    Returns:
        the attention mask and the position ids, `(batch, sequence)` each.

    Raises:
        ValueError: an attention mask of another shape.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(left_out, dtype=torch.long)
    if attention_mask.shape != left_out.shape:
        raise ValueError(
            f"This connector leaves audio tokens out, for which the attention mask must be (batch, sequence) = "
            f"{tuple(left_out.shape)}, not {tuple(attention_mask.shape)}. Pass the processor's attention_mask."
        )
    attention_mask = attention_mask * ~left_out.to(attention_mask.device)
    return attention_mask, (attention_mask.cumsum(-1) - 1).clamp(min=0)


def left_out_places(
    placeholders: torch.Tensor, connected: ConnectorOutput, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """Placeholders `(batch, sequence)` whose audio token is not in the connector's `used`; `kept` `(audios, tokens)`
    are the audio tokens that have a placeholder at all, by default those within the lengths."""
    valid = length_mask(connected.lengths, connected.used.shape[1])
    unused = ~connected.used[valid if kept is None else kept]
    return placeholders.masked_scatter(placeholders, unused.to(placeholders.device))


def attended_places(attention_mask: torch.Tensor, size: int, at_end: bool = False) -> torch.Tensor:
    """The attended places of each row, in order, filled up to `size` with others: before them with `at_end`, else
    after them. (batch, sequence) -> (batch, size), no place twice."""
    attended = attention_mask.to(torch.int8)
    order = torch.argsort(attended if at_end else 1 - attended, dim=-1, stable=True)
    return order[:, order.shape[1] - size :] if at_end else order[:, :size]


def take_places(sequence: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(batch, sequence, dim) at places (batch, size) -> (batch, size, dim)."""
    return sequence.gather(1, places[..., None].expand(-1, -1, sequence.shape[-1]))


def put_places(short: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """What stands at places (batch, some) back at them: (batch, some, dim) -> (batch, size, dim), zeros elsewhere."""
    sequence = short.new_zeros(short.shape[0], size, short.shape[-1])
    return sequence.scatter(1, places[..., None].expand_as(short), short)


__all__ = ["attended_places", "leave_out", "left_out_places", "put_places", "take_places"]
