"""Attention of a block of queries at a time, over all keys or over those near it: the bookkeeping of both.

With a context every position attends to that many before and after it, so cost grows linearly with the length of the
audio. Audio of up to `context + 1` positions is attended to as a whole, as without.
"""

from collections.abc import Iterator

import torch

from .connector_base import length_mask


def query_blocks(time: int, size: int, context: int | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of at most `size` consecutive queries, and the keys that any of them attends to."""
    for start in range(0, time, size):
        stop = min(start + size, time)
        reach = (0, time) if context is None else (max(start - context, 0), min(stop + context, time))
        yield slice(start, stop), slice(*reach)


def attended_keys(lengths: torch.Tensor, queries: slice, keys: slice, context: int | None) -> torch.Tensor:
    """Which keys of a block its queries attend to, (batch, 1, queries or 1, keys) bool.

    Queries past their row's length, whose outputs are nobody's, see whatever is near them: a query that sees nothing
    would have no attention to take a gradient of.
    """
    valid = length_mask(lengths, keys.stop)[:, None, None, keys.start :]
    if context is None:
        return valid
    query = torch.arange(queries.start, queries.stop, device=lengths.device)[:, None]
    key = torch.arange(keys.start, keys.stop, device=lengths.device)
    past_end = query >= lengths[:, None, None, None]
    return ((query - key).abs() <= context) & (valid | past_end)


def context_within(context: int | None, time: int) -> int | None:
    """The context, or None where it reaches over all of `time` positions."""
    return None if context is None or time <= context + 1 else context


__all__ = ["attended_keys", "context_within", "query_blocks"]
