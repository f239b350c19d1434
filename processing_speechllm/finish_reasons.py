"""Why an answer ended: said to its end, or cut at the most new tokens that it was given."""

from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

OTHER_ENDS = ("stopping_criteria", "max_time")


def generation_option(config: GenerationConfig, options: dict[str, Any], name: str) -> Any:
    """An option as `model.generate` takes it: of the call, else of its `generation_config`, else of the model's."""
    given = getattr(options.get("generation_config"), name, None)
    return next((value for value in (options.get(name), given, getattr(config, name)) if value is not None), None)


def finish_reasons(
    config: GenerationConfig,
    options: dict[str, Any],
    new_tokens: torch.Tensor,
    prompt_length: int,
    tokenizer: PreTrainedTokenizerBase,
) -> list[list[str]]:
    """
    `"length"` for each sequence that has as many tokens as it was given and none of its ends, else `"stop"`.

    Args:
        config: the model's.
        options: of `model.generate`, a `generation_config` among them or not; they come before the config.
        new_tokens (`torch.Tensor` of shape `(prompts, sequences, tokens)`): padded behind their ends.
        prompt_length: tokens of the prompts, which `max_length` counts too.
        tokenizer: of the tokens, for `stop_strings`.
    """

    chosen = partial(generation_option, config, options)
    most = chosen("max_new_tokens")
    most = chosen("max_length") - prompt_length if most is None else most
    ends = options["eos_token_id"] if "eos_token_id" in options else chosen("eos_token_id")  # None: there is no end
    ends = set() if ends is None else set(torch.as_tensor(ends).flatten().tolist())
    strings = chosen("stop_strings") or []
    strings = [strings] if isinstance(strings, str) else strings
    pad = chosen("pad_token_id") if any(options.get(name) is not None for name in OTHER_ENDS) else None

    def reason(tokens: list[int]) -> str:
        if ends & set(tokens) or (strings and any(text in tokenizer.decode(tokens) for text in strings)):
            return "stop"
        while tokens and tokens[-1] == pad:  # behind an end that the tokens do not show
            tokens = tokens[:-1]
        return "length" if len(tokens) >= most else "stop"

    return [[reason(tokens) for tokens in sequences] for sequences in new_tokens.tolist()]


__all__ = ["finish_reasons", "generation_option"]
