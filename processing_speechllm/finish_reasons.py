"""Why an answer ended: said to its end, or cut at the most new tokens that it was given."""

from typing import Any

import torch
from transformers import GenerationConfig


def finish_reasons(
    config: GenerationConfig, options: dict[str, Any], new_tokens: torch.Tensor, prompt_length: int
) -> list[list[str]]:
    """
    `"length"` for each sequence that has as many tokens as it was given and no end token among them, else `"stop"`.

    Args:
        config: the model's.
        options: of `model.generate`, a `generation_config` among them or not; they come before the config.
        new_tokens (`torch.Tensor` of shape `(prompts, sequences, tokens)`): padded behind their ends.
        prompt_length: tokens of the prompts, which `max_length` counts too.
    """

    def chosen(name: str) -> Any:
        sources = (
            options.get(name),
            getattr(options.get("generation_config"), name, None),
            getattr(config, name, None),
        )
        return next((value for value in sources if value is not None), None)

    most = chosen("max_new_tokens")
    most = chosen("max_length") - prompt_length if most is None else most
    ends, pad = chosen("eos_token_id"), chosen("pad_token_id")
    ends = (
        set() if ends is None else {ends} if isinstance(ends, int) else set(torch.as_tensor(ends).flatten().tolist())
    )

    def reason(tokens: list[int]) -> str:
        while tokens and tokens[-1] == pad:  # behind the end of a stop string, say
            tokens = tokens[:-1]
        return "length" if len(tokens) >= most and not ends & set(tokens) else "stop"

    return [[reason(tokens) for tokens in sequences] for sequences in new_tokens.tolist()]


__all__ = ["finish_reasons"]
