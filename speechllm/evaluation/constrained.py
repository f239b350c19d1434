"""Answers that can be nothing but a label: a trie of the labels' tokens constrains `generate`, greedy or with beams.

A label may be the beginning of another ("door", "door or window"): after its last token the trie allows both the end
and the other's next token, so the choice is the model's. Greedy decoding takes the best token step by step, which need
not be the best label; with as many beams as labels, and sums of log-probabilities (`length_penalty=0`), it is
(`label_scores` says the scores themselves).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Trie = dict[int, dict]


def label_tokens(tokenizer: Any, label: str) -> list[int]:
    """
    The tokens of a label as an answer.

    Raises:
        ValueError: the label is empty, or the tokenizer does not give it back.
    """
    tokens = tokenizer(label, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(tokens, skip_special_tokens=True)
    if not tokens or " ".join(back.split()) != " ".join(label.split()):
        raise ValueError(
            f"The label {label!r} cannot be an answer: the tokenizer makes {back!r} of it. Give labels it can spell."
        )
    return list(tokens)


def build_trie(labels: Sequence[Sequence[int]], end: int) -> Trie:
    """
    The labels' tokens, each closed by `end`, as nested dicts from token to what may follow.

    Raises:
        ValueError: no labels, an empty one, or one that holds the end token.
    """
    if not labels:
        raise ValueError("There are no labels. Give at least one.")
    trie: Trie = {}
    for tokens in labels:
        if not tokens or end in tokens:
            raise ValueError(
                f"A label's tokens must not be empty nor hold the end token {end}, as {list(tokens)} does."
            )
        node = trie
        for token in (*tokens, end):
            node = node.setdefault(token, {})
    return trie


def allowed_tokens(tries: Sequence[Trie], prompt_length: int, end: int) -> Callable[[int, torch.Tensor], list[int]]:
    """
    The `prefix_allowed_tokens_fn` of a batch.

    Args:
        tries: of each prompt; labels may differ from prompt to prompt.
        prompt_length: tokens before the answers, which all begin at the same place.
        end: what a finished row goes on with.
    """

    def allowed(row: int, sequence: torch.Tensor) -> list[int]:
        node = tries[row]
        for token in sequence[prompt_length:].tolist():
            if token == end or token not in node:  # finished, and padded since
                return [end]
            node = node[token]
        return list(node)

    return allowed


def beam_options(beams: int) -> dict[str, Any]:
    """Options of `generate` with which beams compare labels by the sum of their log-probabilities, to the end."""
    return {"num_beams": beams, "length_penalty": 0.0, "early_stopping": "never"} if beams > 1 else {"num_beams": 1}


__all__ = ["Trie", "allowed_tokens", "beam_options", "build_trie", "label_tokens"]
