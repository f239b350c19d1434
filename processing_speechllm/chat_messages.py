"""Chats as users hand them over -> checked messages with bare audio blocks, and the audios of those blocks.

What is unusual here:
- Audio blocks come in transformers' form (`{"type": "audio", "path": ...}`) and in OpenAI's (`input_audio`,
  `audio_url`); the two may be mixed in one chat.
- What a chat template would stumble over (no role, content that is a number) is refused before it is rendered, with
  the place of the message.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

AUDIO = "{audio}"  # in an instruction: where the speech stands
AUDIO_KINDS = ("audio", "input_audio", "audio_url")
SOURCE_KEYS = ("audio", "array", "bytes", "path", "url", "data", "base64", "tokens", "input_audio", "audio_url")
LIKE_A_SOURCE = re.compile("audio|file|path|ur[il]|data|array|bytes|wav", re.IGNORECASE)  # in the name of a key
FORM = '{"role": "user", "content": "..."}'


def instruction_chat(audio: list, instruction: str) -> list[dict]:
    """One user turn: every audio, then the instruction, each on a line of its own. An audio may be None (given later).

    An instruction that says `{audio}` has the audios there, with nothing added around them.
    Training and the pipeline both build their prompts here, so that a model is asked as it was taught.
    """
    content = []
    for source in audio:
        content += [{"type": "audio"} if source is None else {"type": "audio", "audio": source}]
        content += [{"type": "text", "text": "\n"}]
    if audio and AUDIO in instruction:
        prefix, _, last = instruction.partition(AUDIO)
    else:
        prefix, last = "", "\n" * bool(audio) + instruction
    content = [{"type": "text", "text": prefix}, *content[:-1], {"type": "text", "text": last}]
    content = [block for block in content if block.get("text") != ""] or [{"type": "text", "text": instruction}]
    return [{"role": "user", "content": content}]


def is_chat(value: Any) -> bool:
    """Whether a value is meant as one chat: a list with messages (dicts or objects with a role or content)."""
    return isinstance(value, (list, tuple)) and any(
        {"role", "content"} & set(message) and not {"audio", "messages", "instruction"} & set(message)
        if isinstance(message, Mapping)
        else hasattr(message, "role") and hasattr(message, "content")
        for message in value
    )


def normalize_chats(conversation: Any) -> tuple[list[list[dict]], bool]:
    """
    One chat or several -> (chats of checked messages, whether several were given).

    Messages are dicts, dataclasses or pydantic models; keys whose value is None are dropped, as APIs write them and
    templates print them.

    Raises:
        ValueError: no chat, or a message without role or content or with content that is neither text nor blocks; the
            finding, its place and the remedy.
    """
    conversation = getattr(conversation, "messages", conversation)
    if isinstance(conversation, Mapping) or isinstance(conversation, str):
        raise ValueError(f"The conversation is a {type(conversation).__name__}. Pass a list of messages: [{FORM}].")
    if not hasattr(conversation, "__len__") or not hasattr(conversation, "__getitem__"):
        raise ValueError(
            f"The conversation is a {type(conversation).__name__}, not a list. Pass a list of messages: [{FORM}]."
        )
    if len(conversation) == 0:
        raise ValueError("The conversation is empty. Give at least one message.")
    several = [isinstance(chat, (list, tuple)) or hasattr(chat, "messages") for chat in conversation]
    if len(set(several)) > 1:
        raise ValueError("The list mixes chats and messages. Pass one chat, or a list of chats.")
    if not several[0]:
        return [_normalize(conversation, "")], False
    chats = [getattr(chat, "messages", chat) for chat in conversation]
    return [_normalize(chat, f"chat {number}, ") for number, chat in enumerate(chats)], True


def _normalize(chat: Any, place: str) -> list[dict]:
    """One chat -> checked messages; `place` says which chat it is."""
    if len(chat) == 0:
        raise ValueError(f"The conversation is empty ({place.rstrip(', ')}). Give at least one message.")
    return [_normalize_message(message, f"{place}message {number}") for number, message in enumerate(chat)]


def _normalize_message(message: Any, place: str) -> dict:
    if callable(getattr(message, "model_dump", None)):
        message = message.model_dump()
    elif dataclasses.is_dataclass(message) and not isinstance(message, type):
        message = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    if not isinstance(message, Mapping):
        raise ValueError(f"The chat's {place} is a {type(message).__name__}, not a message. Write it as {FORM}.")
    message = {key: value for key, value in message.items() if value is not None}
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        found = "has no role" if role is None else f"has the role {role!r}"
        raise ValueError(f'The chat\'s {place} {found}. Give it one: "system", "user" or "assistant".')
    check_text(role)
    if isinstance(content, str):
        check_text(content)
    if content is None:
        if message.keys() - {"role", "content"}:  # calls of tools, thoughts, and whatever else a template reads
            return message
        raise ValueError(f'The chat\'s {place} has no content. Give it text or blocks, or "" if it is to be empty.')
    if isinstance(content, Mapping):
        raise ValueError(f'The chat\'s {place} has a dict as content. Put the block into a list: "content": [block].')
    if not isinstance(content, (str, list, tuple)):
        raise ValueError(
            f"The chat's {place} has a {type(content).__name__} as content. Give it text, or a list of blocks: "
            '[{"type": "text", "text": "..."}, {"type": "audio", "path": "a.wav"}].'
        )
    return message


def collect_audio(chats: list[list[dict]], given: list, need_sources: bool) -> tuple[list[list[dict]], list]:
    """
    Take the audios out of the chats' blocks, in reading order.

    Args:
        chats: chats of messages as `normalize_chats` gives them; not changed.
        given: audios for the blocks that have none of their own.
        need_sources: whether a block without an audio is an error.

    Returns:
        the chats with bare `{"type": "audio"}` blocks, and the audios.

    Raises:
        ValueError: a block of another kind, or audios and blocks that do not pair up.
    """
    sources, rest, bare = [], iter(given), 0
    new_chats = []
    for chat in chats:
        new_chats.append([])
        for message in chat:
            blocks = message.get("content")
            if isinstance(blocks, (list, tuple)):
                new_blocks = []
                for block in blocks:
                    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
                    if kind == "text" and isinstance(block.get("text"), str):
                        check_text(block["text"])
                        new_blocks.append({"type": "text", "text": block["text"]})
                    elif kind in AUDIO_KINDS:
                        source = block_source(block)
                        bare += source is None
                        sources.append(next(rest, None) if source is None else source)
                        new_blocks.append({"type": "audio"})
                    else:
                        raise ValueError(
                            f'A content block of kind {kind!r} cannot be used. Use {{"type": "text", "text": ...}} '
                            'and {"type": "audio", "audio": ...}.'
                        )
                message = {**message, "content": new_blocks}
            new_chats[-1].append(message)
    if len(given) > bare or need_sources and len(given) < bare:
        raise ValueError(
            f"The chat has {bare} audio blocks without an audio of their own but {len(given)} audios were given. Give "
            "one audio per block, in reading order."
        )
    return new_chats, sources


def check_text(text: str) -> None:
    """Raise a `ValueError` for half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text {text!r} cannot be written in UTF-8: character {error.start} is half of one. It was read in "
            "another encoding than it was written in; repair it there, or take such characters out."
        ) from error


def block_source(block: Mapping) -> Any:
    """An audio block's source as `load_audio` takes it, or None. Keys whose value is None do not count."""
    given = {key: block[key] for key in SOURCE_KEYS if block.get(key) is not None}
    kind, rate = block["type"], block.get("sampling_rate")
    if not given:
        others = [key for key in block if key not in ("type", *SOURCE_KEYS) and LIKE_A_SOURCE.search(str(key))]
        if kind != "audio" or any(block[key] is not None for key in others):
            found = f"has {' and '.join(map(repr, others))}, but " if others else "has "
            raise ValueError(
                f"A content block of kind {kind!r} {found}no audio under a known key. Use one of: "
                f"{', '.join(SOURCE_KEYS)}."
            )
        return None
    if len(given) > 1 and set(given) != {"bytes", "path"}:
        raise ValueError(f"An audio block has {' and '.join(given)}. Keep one of them.")
    (key, source), *_ = given.items()
    if key in ("input_audio", "audio_url"):
        source = _of_openai(key, source)
    elif key != "audio":
        return given if rate is None else {**given, "sampling_rate": rate}
    return source if rate is None else {"array": source, "sampling_rate": rate}


def _of_openai(key: str, content: Any) -> dict:
    """`{"data": Base64, "format": ...}` or `{"url": ...}`, or these strings alone -> a source of `load_audio`."""
    inner = "data" if key == "input_audio" else "url"
    value = content.get(inner) if isinstance(content, Mapping) else content
    if not isinstance(value, (str, bytes)):
        form = '{"data": "<Base64>", "format": "wav"}' if key == "input_audio" else '{"url": "https://..."}'
        raise ValueError(f'The {key} of an audio block has no {inner}. Write {{"type": "{key}", "{key}": {form}}}.')
    if key == "input_audio" and isinstance(value, str) and value[:5].lower() == "data:":
        return {"url": value}
    return {inner: value}


__all__ = ["collect_audio", "instruction_chat", "is_chat", "normalize_chats"]
