"""What is answered about audio in which the connector read nothing.

A reading connector (`ctc_compress`) gives the LLM one embedding per token that it read: of silence, noise or music,
none. The LLM then sees an instruction and nothing it is about, and makes something up. That nothing was read is known
before it is asked; so, where the processor has a `no_speech_answer`, that is the answer, and says so (`no_speech`).
Whisper's decoding in transformers leaves such audio out too, by a threshold of its own (`no_speech_threshold`).
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from .chat_messages import AUDIO_KINDS
from .finish_reasons import generation_option
from .pipeline_prompts import LoadedAudio, Prompt


def chosen_answer(given: Any, own: str | None) -> str | None:
    """The answer of a call: its own, else the processor's; None where the LLM is to be asked in any case (`False`).

    Raises:
        ValueError: something else than text or False.
    """
    if given is None:
        return own
    if given is False:
        return None
    if not isinstance(given, str) or not given.strip():
        raise ValueError(
            f"no_speech_answer={given!r} must be what to answer, in words, or False to ask the LLM in any case."
        )
    return given


def with_no_speech(prompts: list[Prompt], counts: list[int]) -> list[Prompt]:
    """The prompts with whether they end in a user's turn with audio and nothing was read in any of their audios.

    Args:
        prompts: as they were asked. Of audios that are given apart (`{"tokens": n}`) it is not known, so it is False.
        counts: tokens read in each of all other audios, in order.
    """
    rest, heard = iter(counts), []
    for prompt in prompts:
        row = [next(rest) if isinstance(audio, LoadedAudio) else 1 for audio in prompt.audio]
        heard.append(replace(prompt, no_speech=nothing_read(prompt.chat, row)))
    return heard


def nothing_read(chat: list[dict], counts: list[int]) -> bool:
    """Whether a chat ends in a user's turn with audio, and no token was read in any of its audios."""
    return ends_in_audio(chat) and not any(counts)


def ends_in_audio(chat: list[dict]) -> bool:
    """Whether the last message of a chat has audio and is not the assistant's."""
    content = chat[-1].get("content")
    blocks = content if isinstance(content, list) else []
    return chat[-1]["role"] != "assistant" and any(block.get("type") in AUDIO_KINDS for block in blocks)


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Tokens of an answer, with the end of it where the tokenizer knows one."""
    end = tokenizer.eos_token_id
    return tokenizer(answer, add_special_tokens=False)["input_ids"] + ([] if end is None else [end])


def put_answer(new_tokens: torch.Tensor, rows: list[bool], ids: list[int], pad: int) -> torch.Tensor:
    """Generated tokens (prompts, sequences, tokens), with `ids` and padding in place of those of some prompts."""
    answer = torch.tensor(ids, device=new_tokens.device)
    missing = max(len(ids) - new_tokens.shape[-1], 0)
    new_tokens = torch.nn.functional.pad(new_tokens, (0, missing), value=pad)
    answer = torch.nn.functional.pad(answer, (0, new_tokens.shape[-1] - len(ids)), value=pad)
    chosen = torch.tensor(rows, device=new_tokens.device)[:, None, None]
    return torch.where(chosen, answer, new_tokens)


def generate_or_answer(
    model: Any, tokenizer: Any, encoded: Any, options: dict, silent: list[bool], answer: str | None
) -> tuple[torch.Tensor, Any]:
    """
    What the model says, with `answer` in place of what it says of silent prompts, unless it is asked to tell more
    (`return_dict_in_generate`). A silent prompt alone is not given to the LLM at all.

    Args:
        encoded: the model's inputs, `input_ids` (prompts, tokens) among them.
        options: of `model.generate`.
        silent: for each prompt, whether nothing was read in its audio.
        answer: what is said of those; needed where there are any.

    Returns:
        new tokens (prompts, sequences, tokens), and what `generate` gave, None where it was not asked.
    """
    prompts, length = len(silent), encoded["input_ids"].shape[1]
    chosen = partial(generation_option, model.generation_config, options)
    replaced = any(silent) and not chosen("return_dict_in_generate")
    ids = answer_ids(tokenizer, answer) if replaced else []
    if replaced and prompts == 1:
        if options.get("streamer") is not None:
            stream_answer(options["streamer"], encoded["input_ids"], ids)
        return torch.tensor([[ids] * (chosen("num_return_sequences") or 1)]), None
    output = model.generate(**encoded, **options)
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    new_tokens = sequences[:, length:].reshape(prompts, -1, sequences.shape[1] - length)
    return put_answer(new_tokens, silent, ids, tokenizer.pad_token_id) if replaced else new_tokens, output


def stream_answer(streamer: Any, input_ids: torch.Tensor, ids: list[int]) -> None:
    """Gives a streamer what `generate` would: the prompt, the answer's tokens one by one, the end."""
    streamer.put(input_ids.cpu())
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()


__all__ = ["answer_ids", "chosen_answer", "ends_in_audio", "generate_or_answer", "nothing_read", "with_no_speech"]
