"""Requests of OpenAI's API -> checked options, and chats as the processor takes them, with their audios decoded.

What is unusual here:
- An option that the server does not carry out is refused, never ignored; unless its value asks for nothing, as many
  clients send such ones (`n=1`, `logprobs=false`).
- Audios and what stands beside them are put on lines of their own, as `instruction_chat` does it in training and in
  the pipeline, so that a model is asked as it was taught.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import _get_template_variables

from processing_speechllm.audio import LoadedAudio
from processing_speechllm.audio_addresses import is_url
from processing_speechllm.chat_messages import collect_audio, normalize_chats

TEXT_KINDS = ("text", "input_text", "output_text")  # the latter two are of the Responses API
AUDIO_KINDS = {"input_audio": ("data", "format"), "audio_url": ("url",)}  # with the keys of each
KINDS = (*TEXT_KINDS, *AUDIO_KINDS)
ROLES = ("system", "user", "assistant")
NOTHING = ("", [], {}, None)  # values of keys that ask for nothing
OF_AN_ANSWER = ("type", "id", "status", "phase")  # keys of a message that the Responses API gave, which is sent back
MESSAGES = '[{"role": "user", "content": ...}]'
CLOSING = set(".,;:!?)]…。，；：！？）")  # a text that begins so goes on with the sentence that the audio stands in
IMPLIED = ("messages", "add_generation_prompt", "tools", "documents")  # of a template, but not for callers to set


class RequestError(ValueError):
    """
    A request that cannot be answered: the finding and the remedy, for the client.

    Args:
        message: one sentence for each of the two.
        status: HTTP status.
        code: the word that programs look at, if OpenAI's API has one for it.
        param: the option at fault.
    """

    def __init__(self, message: str, status: int = 400, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def _is_number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


ANSWER_LENGTH = (_is_whole(1, 2**31 - 1), "a whole number of tokens from 1 up")
OPTIONS = {  # what is carried out: a check, and what is wanted in words
    "model": (_is(str), "the name that /v1/models lists"),
    "stream": (_is(bool), "true or false"),
    "temperature": (_is_number(0, 100), "a number from 0 up; 0 takes the most probable token"),
    "top_p": (_is_number(1e-6, 1), "a number above 0, up to 1"),
    "seed": (_is_whole(-(2**63), 2**63 - 1), "a whole number"),
    "chat_template_kwargs": (_is(dict), "an object of the chat template's variables"),
    "user": (_is(str), "text"),  # the caller's own mark; it asks for nothing
}
CHAT_OPTIONS = OPTIONS | {
    "messages": (_is(list), f"a list of messages: {MESSAGES}"),
    "max_tokens": ANSWER_LENGTH,
    "max_completion_tokens": ANSWER_LENGTH,
    "stream_options": (
        lambda value: (
            isinstance(value, dict) and set(value) <= {"include_usage"} and all(map(_is(bool), value.values()))
        ),
        '{"include_usage": true}; the counts come with the last piece',
    ),
}
RESPONSE_OPTIONS = OPTIONS | {
    "input": (_is(str, list), f"text, or a list of messages: {MESSAGES}"),
    "instructions": (_is(str), "text"),
    "max_output_tokens": ANSWER_LENGTH,
}
ASKS_FOR_NOTHING = {  # options that are not carried out: the values that need not be
    "n": [1],
    "logprobs": [False],
    "top_logprobs": [0],
    "presence_penalty": [0],
    "frequency_penalty": [0],
    "logit_bias": [{}],
    "stop": [[], ""],
    "tools": [[]],
    "functions": [[]],
    "tool_choice": ["none", "auto"],
    "function_call": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "text"}],
    "text": [{}, {"format": {"type": "text"}}],
    "modalities": [["text"]],
    "store": [False],
    "background": [False],
    "service_tier": ["auto", "default"],
    "truncation": ["disabled"],
    "include": [[]],
    "metadata": [{}],
}
REMEDIES = {
    "stop": "Cut the answer in your program, or end it by max_tokens",
    "logprobs": "Serve the model by vLLM if you need probabilities",
    "top_logprobs": "Serve the model by vLLM if you need probabilities",
    "n": "Send the request as often as you want answers",
    "tools": "Describe the functions in a message, and read the answer in your program",
    "previous_response_id": "Nothing is stored here: send the earlier turns in `input`",
    "store": "Nothing is stored here: keep the answer in your program",
    "max_tokens": "Here it is called max_output_tokens",
    "max_completion_tokens": "Here it is called max_output_tokens",
    "max_output_tokens": "Here it is called max_tokens",
}


@dataclass(frozen=True)
class Options:
    """What one endpoint takes: names to checks (`CHAT_OPTIONS`), and the chat template's variables."""

    known: dict[str, tuple[Callable[[Any], bool], str]]
    variables: frozenset[str]

    def check(self, body: dict) -> dict:
        """
        The options that are to be carried out; those whose value is None count as not given.

        Raises:
            RequestError: an option that is unknown, not carried out here, or has a value that it cannot have.
        """
        given = {name: value for name, value in body.items() if value is not None}
        for name, value in given.items():
            if name not in self.known:
                if not any(value == nothing for nothing in ASKS_FOR_NOTHING.get(name, [])):
                    self._refuse(name)
                continue
            is_right, wanted = self.known[name]
            if not is_right(value):
                raise RequestError(f"{name} is {_shown(value)}. Give {wanted}.", param=name)
        lengths = [given[name] for name in ("max_tokens", "max_completion_tokens") if name in given]
        if len(set(lengths)) > 1:
            raise RequestError("max_tokens and max_completion_tokens differ. Give one of them.", param="max_tokens")
        unread = sorted(set(given.get("chat_template_kwargs", {})) - self.variables)
        if unread:
            known = f"It reads: {', '.join(sorted(self.variables))}" if self.variables else "It reads no variables"
            raise RequestError(
                f"The chat template of this model does not read {', '.join(unread)}. {known}; leave out the others.",
                param="chat_template_kwargs",
            )
        return {name: value for name, value in given.items() if name in self.known and name != "user"}

    def _refuse(self, name: str) -> None:
        remedy = REMEDIES.get(name, "Leave it out")
        raise RequestError(
            f"The option {name} is not carried out here, and options are not ignored. {remedy}. "
            f"Known: {', '.join(sorted(self.known))}.",
            code="unsupported_parameter",
            param=name,
        )


def _shown(value: Any, longest: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def template_variables(processor: Any) -> frozenset[str]:
    """The variables of the chat template that a caller may set, such as `enable_thinking`."""
    template = processor.chat_template
    if not isinstance(template, str):
        return frozenset()
    return frozenset(_get_template_variables(template)) - {*IMPLIED, *processor.tokenizer.special_tokens_map}


def load_chat(messages: list, processor: Any, allow_urls: bool = True) -> list[dict]:
    """
    Messages as clients send them -> messages for `apply_chat_template`, with the audios decoded. It takes as long as
    the audio takes to arrive and to be decoded.

    Args:
        messages: of the chat completions or the Responses API. Audio is `input_audio` (Base64 or a `data:` address) or
            `audio_url` (an http(s) or `data:` address).
        processor: the model's; its limits and its `allow_local_files` hold.
        allow_urls: whether an http(s) address is fetched.

    Raises:
        RequestError: messages or audio that cannot be used.
    """
    try:
        chats, several = normalize_chats(messages)
        if several:
            raise ValueError("The messages are several chats. Send one request for each.")
        chat = [_with_known_blocks(message, number) for number, message in enumerate(chats[0])]
        (bare,), sources = collect_audio([chat], [], need_sources=True)
    except ValueError as error:
        raise RequestError(str(error), param="messages") from error
    audio = []
    for number, source in enumerate(sources, start=1):
        try:
            if not allow_urls and isinstance(source, dict) and is_url(source.get("url", "")):
                raise ValueError(f"{source['url']}: web addresses are not fetched here. Send the audio itself.")
            audio.append(processor.loaded(source))
        except ValueError as error:
            place = f"Audio {number} of {len(sources)}: " * (len(sources) > 1)
            raise RequestError(f"{place}{error}", param="messages") from error
    rest = iter(audio)
    for message in bare:
        if isinstance(message.get("content"), list):
            blocks = [
                {"type": "audio", "audio": next(rest)} if block["type"] == "audio" else block
                for block in message["content"]
            ]
            message["content"] = on_lines(blocks)
    return bare


def _with_known_blocks(message: dict, number: int) -> dict:
    """A message with the blocks of both APIs in the form of chat completions."""
    others = [key for key, value in message.items() if key not in ("role", "content") and value not in NOTHING]
    if others or "content" not in message:
        found = f"has {', '.join(others)}, which is not carried out here" if others else "has no content"
        raise ValueError(f"Message {number} {found}. Write it as text in the content (tools are not called here).")
    role = "system" if message["role"] == "developer" else message["role"]  # the newer word, which few templates know
    if role not in ROLES:
        raise ValueError(
            f"Message {number} has the role {_shown(role)}. Give one of {', '.join(ROLES)} (developer counts as "
            "system; tools are not called here, so write what one said into a user's message)."
        )
    content = message["content"]
    if not isinstance(content, str):
        content = [_known_block(block, f"Message {number}") for block in content]
    return {"role": role, "content": content}


def _known_block(block: Any, place: str) -> dict:
    """A block of either API in the form of chat completions; `place` says in which message it is."""
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    kind = kind if isinstance(kind, str) else repr(kind)
    if kind == "audio" and isinstance(block.get("audio"), LoadedAudio):  # by a handler; no JSON can say it
        return block
    if kind in TEXT_KINDS:
        _check_keys(block, ("type", "text"), f"{place} has a content block of kind {kind!r}")
        return {"type": "text", "text": block.get("text")}
    if kind not in AUDIO_KINDS:
        raise ValueError(
            f"{place} has a content block of kind {kind!r}. Use text, input_audio "
            '({"type": "input_audio", "input_audio": {"data": "<Base64>", "format": "wav"}}) or audio_url.'
        )
    _check_keys(block, ("type", kind), f"{place} has a content block of kind {kind!r}")
    if isinstance(block.get(kind), Mapping):
        _check_keys(block[kind], AUDIO_KINDS[kind], f"{place} has an {kind}")
    return {"type": kind, kind: block.get(kind)}


def _check_keys(given: Mapping, known: tuple[str, ...], place: str) -> None:
    """Raise a `ValueError` for keys that ask for something that is not carried out."""
    others = [str(key) for key, value in given.items() if key not in known and value not in NOTHING]
    if others:
        raise ValueError(
            f"{place} with {', '.join(others)}, which is not carried out here and is not ignored. Leave out all but "
            f"{', '.join(known)}."
        )


def response_messages(given: str | list, instructions: str | None = None) -> list[dict]:
    """
    `input` and `instructions` of the Responses API -> messages for `load_chat`. The input is text, the blocks of one
    message of the user, or messages; those that the API itself gave may be sent back as they were.

    Raises:
        RequestError: something else in the list, or a message with a key that is not carried out.
    """
    if isinstance(given, str):
        messages = [{"role": "user", "content": given}]
    elif given and all(isinstance(item, Mapping) and item.get("type") in KINDS for item in given):
        messages = [{"role": "user", "content": given}]
    else:
        messages = [_message_of(item, number) for number, item in enumerate(given)]
    return [{"role": "system", "content": instructions}] * bool(instructions) + messages


def _message_of(item: Any, number: int) -> dict:
    """One item of `input`, without what says only where it came from."""
    kind = item.get("type", "message") if isinstance(item, Mapping) else None
    if kind != "message":
        found = _shown(item) if kind is None else f"of kind {kind!r}"
        raise RequestError(
            f"Item {number} of the input is {found}, which is no message. Give text, or messages alone: {MESSAGES}.",
            param="input",
        )
    return {key: value for key, value in item.items() if key not in OF_AN_ANSWER}


def on_lines(blocks: list[dict]) -> list[dict]:
    """A line break between an audio and what stands beside it, unless that has white space or a full stop there."""
    laid_out = []
    for block in blocks:
        if laid_out and "audio" in (block["type"], laid_out[-1]["type"]):
            before, after = laid_out[-1].get("text", ""), block.get("text", "")
            if not before[-1:].isspace() and not after[:1].isspace() and after[:1] not in CLOSING:
                laid_out.append({"type": "text", "text": "\n"})
        laid_out.append(block)
    return laid_out


__all__ = [
    "CHAT_OPTIONS",
    "RESPONSE_OPTIONS",
    "Options",
    "RequestError",
    "load_chat",
    "response_messages",
    "template_variables",
]
