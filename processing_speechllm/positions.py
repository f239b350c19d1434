"""How long an answer may be: what the LLM's positions leave beside the prompt."""

from typing import Any

MAX_NEW_TOKENS = 256  # where neither the checkpoint nor the caller says how many


def positions(model: Any) -> int | None:
    """Positions of the LLM; None if it has no fixed number, as BLOOM."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def default_new_tokens(length: int, limit: int | None) -> int:
    """`MAX_NEW_TOKENS`, or what `limit` positions leave after a prompt of `length` tokens, if that is less."""
    return MAX_NEW_TOKENS if limit is None else min(MAX_NEW_TOKENS, limit - length)


def check_positions(length: int, audio: int, wanted: int, limit: int | None) -> None:
    """
    Args:
        length: tokens of the prompt.
        audio: how many of them are audio.
        wanted: tokens to be generated.
        limit: positions of the LLM, if it has a fixed number of them.

    Raises:
        ValueError: more tokens than positions.
    """
    if limit is None or length + wanted <= limit:
        return
    remedy = f"Ask for at most {limit - length} new tokens" if length < limit else ""
    shorter = f"se a shorter {'audio, ' * (audio > 0)}chat or instruction"
    raise ValueError(
        f"The prompt takes {length} tokens ({audio} of them audio) and {wanted} more are to be generated, "
        f"{length + wanted} in all, but the LLM has {limit} positions. "
        + (f"{remedy}, or u{shorter}." if remedy else f"U{shorter}.")
    )


__all__ = ["MAX_NEW_TOKENS", "check_positions", "default_new_tokens", "positions"]
