"""Chat rows in the forms that people have -> ours: `messages` of text and bare audio blocks, `audio` in their order.

Read are ms-swift's rows (`messages` with `<audio>` marks, `audios`), Qwen's (`{"type": "audio", "audio_url": ...}`,
`{"audio": ...}`, `<audio>FILE</audio>`), OpenAI's (`input_audio`, `audio_url`), ShareGPT's (`conversations` of `from`
and `value`), and TRL's, whose audios are in a column alone: they come first in the first user turn, as in its image
rows. Content is a string, a block or a list of both; system messages are kept.
"""

import base64
import binascii
import json
import re
from typing import Any
from urllib.parse import unquote, urlparse

from datasets import Features, List, Value

from .layouts.layout import ENCODED

MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
CHAT_COLUMNS = ("messages", "conversations", "audios")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
MESSAGE_KEYS = {"role", "content", "from", "value"}
MARK = re.compile(r"<audio>(?:([^<>\n]+)</audio>)?")
OTHER_MEDIA = ("images", "videos", "image", "video")


def chat_features(several: bool) -> Features:
    """Types of the columns that `chat_row` gives; with `several`, audios and what belongs to them are lists."""
    text = Value("string")
    if several:
        return Features({"messages": MESSAGES, "audio": List(ENCODED), "text": List(text)})
    return Features({"messages": MESSAGES, "audio": ENCODED, "text": text})


def chat_row(row: dict[str, Any], several: bool, name: str) -> dict[str, Any]:
    """
    `messages`, `audio` and `text` of a row of a chat.

    Args:
        row: with `messages` or `conversations`, and if there `audio` or `audios`, `text`.
        several: whether `audio` and `text` are lists.
        name: of the row, for messages.

    Raises:
        ValueError: a chat in a form that is not known, or audios and places for them that do not pair up.
    """
    try:
        for medium in OTHER_MEDIA:
            if row.get(medium):
                raise ValueError(f"it has {medium}, which a SpeechLLM cannot see. Leave such rows out")
        messages = row.get("messages") or row.get("conversations")
        given = row.get("audios") if row.get("audios") is not None else row.get("audio")
        given = [] if given is None else given if isinstance(given, list) else [given]
        audios = [source_of(audio) for audio in given]
        messages = messages and read_messages(messages, audios)
        if any("array" in audio for audio in audios):
            raise ValueError("an audio is an array of samples; write it to a file, and its path into the row")
    except ValueError as error:
        raise ValueError(f"{name}: {error}.") from error
    text = row.get("text")
    if several:
        text = text if isinstance(text, list) else [text] if len(audios) == 1 else [None] * len(audios)
        return {"messages": messages, "audio": audios, "text": text}
    if len(audios) > 1:
        raise ValueError(f"{name}: {len(audios)} audios where other rows have one. Write lists of them in all rows.")
    return {"messages": messages, "audio": audios[0] if audios else None, "text": text}


def read_messages(messages: Any, audios: list) -> list[dict[str, Any]]:
    """Messages in our form; `audios`, those of the row's column, becomes all audios of the chat in reading order."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except json.JSONDecodeError as error:
            raise ValueError(f"`messages` is text that is no JSON ({error})") from error
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ValueError("`messages` must be a list of {role, content}")
    marked = bool(audios)  # a mark in a chat without audios is text
    chat = [read_message(message, marked) for message in messages]
    places = [block for message in chat for block in message["content"] if block["type"] == "audio"]
    bare = [block for block in places if block["audio"] is None]
    if audios and not bare:
        if places:
            raise ValueError("the row has audio both in its messages and in its column. Keep one of the two")
        first = next((message for message in chat if message["role"] == "user"), None)
        if first is None:
            raise ValueError("it has audio but no user message for it")
        bare = [{"type": "audio", "audio": None} for _ in audios]
        between = {"type": "text", "text": "\n"}
        first["content"][:0] = [block for audio in bare for block in (audio, dict(between))]
    if len(bare) != len(audios):
        raise ValueError(f"its messages have {len(bare)} places for audio, its audios are {len(audios)}")
    for block, audio in zip(bare, list(audios), strict=True):
        block["audio"] = audio
    audios[:] = [block["audio"] for message in chat for block in message["content"] if block["type"] == "audio"]
    for block in (block for message in chat for block in message["content"]):
        block.pop("audio", None)
        block.setdefault("text", None)
    return chat


def read_message(message: dict[str, Any], marked: bool) -> dict[str, Any]:
    """One message as {"role", "content": blocks}; audio blocks hold their source, or None, under `audio`."""
    more = sorted(key for key, value in message.items() if key not in MESSAGE_KEYS and value not in (None, [], ""))
    if more:
        raise ValueError(f"a message has {', '.join(more)} beside role and content, which training does not read")
    role = message.get("role") or message.get("from")
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if not isinstance(role, str):
        raise ValueError(f"a message has no role: {str(message)[:80]}")
    if content is None and ROLES.get(role, role) == "assistant":
        raise ValueError("an assistant message has no content to learn. Write its answer, or leave the row out")
    pieces = content if isinstance(content, list) else [] if content is None else [content]
    blocks = [block for piece in pieces for block in read_block(piece, marked)]
    return {"role": ROLES.get(role, role), "content": blocks}


def read_block(block: Any, marked: bool) -> list[dict[str, Any]]:
    """A string or block of content as text and audio blocks."""
    if isinstance(block, str):
        return read_marks(block, marked)
    if not isinstance(block, dict):
        raise ValueError(f"content must be text or blocks, not {type(block).__name__}")
    block = {key: value for key, value in block.items() if value is not None}
    kind = block.get("type") or next((key for key in ("audio", "text") if key in block), None)
    if kind == "text" and isinstance(block.get("text"), str):
        return read_marks(block["text"], marked)
    if kind == "audio":
        source = next((block[key] for key in ("audio", "audio_url", "url", "path") if key in block), None)
        source = {"bytes": block["bytes"]} if source is None and "bytes" in block else source
        return [{"type": "audio", "audio": None if source is None else source_of(source)}]
    if kind in ("input_audio", "audio_url"):
        return [{"type": "audio", "audio": source_of(block.get(kind))}]
    raise ValueError(f"a content block of kind {kind!r} cannot be used, only text and audio")


def read_marks(text: str, marked: bool) -> list[dict[str, Any]]:
    """Text cut at its `<audio>` marks; without audios of the row only `<audio>FILE</audio>` is one."""
    blocks, last = [], 0
    for mark in MARK.finditer(text):
        if mark[1] is None and not marked:
            continue
        blocks += [{"type": "text", "text": text[last : mark.start()]}]
        blocks += [{"type": "audio", "audio": None if mark[1] is None else source_of(mark[1])}]
        last = mark.end()
    blocks.append({"type": "text", "text": text[last:]})
    return [block for block in blocks if block.get("text") != ""] or [{"type": "text", "text": text}]


def source_of(audio: Any) -> dict[str, Any]:
    """
    An audio in any written form as {"bytes", "path"}: a path, a `file:` or `data:` address, {"path"}, {"bytes"},
    {"url"}, or OpenAI's {"data", "format"} in base64. Web addresses and {"array"} stay as they are.
    """
    if isinstance(audio, bytes):
        return {"bytes": audio, "path": None}
    if isinstance(audio, dict):
        audio = {key: value for key, value in audio.items() if value is not None}
        if "array" in audio:
            return audio
        if "bytes" in audio:
            return {"bytes": audio["bytes"], "path": audio.get("path")}
        if isinstance(audio.get("data"), str) and not audio["data"].startswith("data:"):
            return {"bytes": _decoded(audio["data"]), "path": f"input_audio.{audio.get('format', 'wav')}"}
        audio = next((audio[key] for key in ("data", "path", "url") if key in audio), audio)
    if not isinstance(audio, str) or not audio:
        raise ValueError(f"an audio is {type(audio).__name__} {str(audio)[:60]!r}, not a path, an address or base64")
    if audio.startswith("data:"):
        head, _, data = audio.partition(",")
        return {"bytes": _decoded(data), "path": f"data.{head.partition('/')[2].partition(';')[0] or 'wav'}"}
    if audio.startswith("file:"):
        audio = unquote(urlparse(audio).path)
    return {"bytes": None, "path": audio}


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"an audio is no base64 ({error})") from error


__all__ = ["CHAT_COLUMNS", "MESSAGES", "chat_features", "chat_row"]
