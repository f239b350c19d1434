"""What a caller hands to the pipeline -> prompts: checked chats with their audios decoded.

What is unusual here:
- A prompt is made from the input and the processor alone, so that worker processes (`num_workers`) need no model, also
  where they are spawned.
- Audios are decoded here: a decoder, as `datasets` gives with `Audio()`, cannot leave the worker that made it.
"""

import os
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset, get_worker_info
from transformers.utils.chat_template_utils import Chat

from .audio import LoadedAudio, as_audio_list
from .chat_messages import AUDIO_KINDS, check_text, collect_audio, instruction_chat, is_chat, normalize_chats

DEFAULT_INSTRUCTION = "Transcribe the speech."
ROW_KEYS = {"audio", "instruction", "messages"}


@dataclass
class Prompt:
    """One request: the chat as it was given, with bare audio blocks, and its audios decoded, in reading order."""

    messages: list[dict]
    chat: list[dict]
    audio: list
    is_chat: bool  # given as a chat, so answered by the chat continued; else by the answer alone
    languages: list[dict] | None = None  # what was heard in each audio, if asked for
    confidences: list[dict] | None = None  # how surely each audio was made out, if asked for
    no_speech: bool | None = None  # whether nothing was read in its audios, where that is looked for
    continued: list[int] = field(default_factory=list)  # tokens of a prompt that ends in an answer to be continued

    @property
    def continues(self) -> bool:
        """Whether the chat ends in an assistant's message, to be continued (as in transformers' pipelines)."""
        return self.chat[-1]["role"] == "assistant"


class Rows(Dataset):
    """A sized collection that is no torch dataset, such as a `datasets.Dataset`, as one that workers can read."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def as_inputs(inputs: Any) -> Any:
    """A list for many, a dataset or generator for streams, anything else for one; samples are never taken apart."""
    if isinstance(inputs, (list, tuple)):
        if len(inputs) == 0:
            raise ValueError("The list of inputs is empty. Pass at least one audio.")
        if is_chat(inputs):
            return {"messages": list(inputs)}
        items = as_audio_list(inputs)
        if len(items) == 1 and items[0] is not inputs[0]:
            return items[0]
        return [{"messages": list(item)} if is_chat(item) else item for item in items]
    one = (str, bytes, bytearray, memoryview, os.PathLike, Mapping, Chat, Dataset)
    if isinstance(inputs, one) or any(hasattr(inputs, name) for name in ("__array__", "get_all_samples", "read")):
        return inputs
    if hasattr(inputs, "__getitem__") and isinstance(inputs, Sized):
        return Rows(inputs)
    return (row for row in inputs) if isinstance(inputs, Iterable) else inputs


def make_prompt(
    processor: Any,
    inputs: Any,
    instruction: str | None = None,
    audio: Any = None,
    sampling_rate: float | None = None,
) -> dict[str, Prompt]:
    """One input in any form -> its prompt, with its audios decoded by the processor."""
    if inputs is None:
        raise ValueError("The input is None. Pass an audio, or a row with an instruction alone.")
    if isinstance(inputs, (list, tuple)) and is_chat(inputs):  # of a dataset of chats
        inputs = {"messages": list(inputs)}
    if isinstance(inputs, Mapping) and "messages" in inputs:
        inputs, audio = inputs["messages"], inputs.get("audio", audio)
        is_conversation = True
    else:
        is_conversation = isinstance(inputs, Chat)
    if is_conversation:
        if instruction is not None:
            raise ValueError("A chat holds its instruction. Put it in a message, and drop `instruction`.")
        chats, several = normalize_chats(inputs)
        if several:
            raise ValueError("messages holds several chats. Give each its own row.")
        return {"prompt": _prompt(processor, chats[0], as_audio_list(audio), sampling_rate, is_chat=True)}
    if isinstance(inputs, Mapping) and ROW_KEYS & set(inputs):
        instruction = inputs.get("instruction") if inputs.get("instruction") is not None else instruction
        inputs = as_audio_list(inputs.get("audio"))
        if not inputs and instruction is None:
            raise ValueError("The row has neither audio nor instruction. Give at least one.")
    else:
        inputs = [inputs]
    instruction = DEFAULT_INSTRUCTION if instruction is None else instruction
    check_instruction(instruction)
    return {"prompt": _prompt(processor, instruction_chat(inputs, instruction), [], sampling_rate, is_chat=False)}


def _prompt(processor: Any, messages: list[dict], given: list, rate: float | None, is_chat: bool) -> Prompt:
    chats, sources = collect_audio([messages], given, need_sources=True)
    audio = [processor.loaded(source, rate) for source in sources]
    if get_worker_info() is not None:
        messages = portable(messages, sources, audio)
    return Prompt(messages, chats[0], audio, is_chat)


def portable(messages: list[dict], sources: list, audio: list) -> list[dict]:
    """The messages with decoders and open files replaced by what was decoded, so that they can leave a worker."""
    pairs = iter(zip(sources, audio, strict=True))

    def replaced(block: dict) -> dict:
        if not (isinstance(block, Mapping) and block.get("type") in AUDIO_KINDS):
            return block
        source, loaded = next(pairs)
        if not (hasattr(source, "get_all_samples") or hasattr(source, "read")):
            return block
        return {"type": "audio", "audio": {"array": loaded.samples, "sampling_rate": loaded.sampling_rate}}

    return [
        {**message, "content": [replaced(block) for block in message["content"]]}
        if isinstance(message.get("content"), (list, tuple))
        else message
        for message in messages
    ]


def collate(items: list[dict[str, Prompt]]) -> dict[str, list[Prompt]]:
    """A batch of prompts; they are padded by the processor, when all are known."""
    return {"prompt": [item["prompt"] for item in items]}


def check_instruction(instruction: Any) -> None:
    """Raise a `ValueError` unless `instruction` is text."""
    if not isinstance(instruction, str):
        raise ValueError(
            f"The instruction must be a string, not {type(instruction).__name__}. To ask each audio something else, "
            'pass rows: [{"audio": ..., "instruction": ...}, ...].'
        )
    check_text(instruction)
    if not instruction.strip():
        raise ValueError(f'The instruction is empty. Say what to do, or leave it out for "{DEFAULT_INSTRUCTION}"')


def with_answer(prompt: Prompt, answer: str) -> list[dict]:
    """The chat with the answer as its last message, or at the end of it if that was to be continued."""
    if not prompt.continues:
        return [*prompt.messages, {"role": "assistant", "content": answer}]
    *before, last = prompt.messages
    content = last["content"]
    content = content + answer if isinstance(content, str) else [*content, {"type": "text", "text": answer}]
    return [*before, {**last, "content": content}]


__all__ = ["LoadedAudio", "Prompt", "make_prompt"]
