"""From chats with audio blocks to the LLM's own prompt format, and where in it the assistant speaks.

Text LLMs' templates want a string as content, so audio and text blocks are joined into one; templates that lay out
audio blocks themselves get the blocks. Assistant turns are found by `{% generation %}` marks, or for templates without
them by rendering the chat up to each turn, which works only where no template rewrites earlier turns (checked).
"""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from transformers.utils import logging
from transformers.utils.chat_template_utils import _get_template_variables, render_jinja_template

from .control_tokens import BREAK, encode_marked, has_marked_text

# For LLMs without a chat format (GPT-2, BLOOMZ): no role names; what the user says, a line break unless that ends in
# white space itself (BLOOMZMMS: "Repeat the sentence: {audio}. "), the answer, the end.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + (eos_token or '') }}{% endgeneration %}
    {%- else %}
        {{- message['content'] + ('' if message['content'][-1:] in (' ', '\\n') else '\\n') }}
    {%- endif %}
{%- endfor %}"""

Span = tuple[int, int]
logger = logging.get_logger(__name__)


def plain_chat_template(tokenizer: Any) -> str:
    """`CHAT_TEMPLATE`, opened by the beginning-of-sequence token if the tokenizer itself puts one before text."""
    opens = tokenizer.bos_token is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return "{{- bos_token }}" * opens + CHAT_TEMPLATE


def choose_template(own: str | dict[str, str] | None, given: str | None) -> str:
    """The template given, or of several named ones the one of that name or `"default"`."""
    if given is not None:
        return own[given] if isinstance(own, dict) and given in own else given
    if isinstance(own, dict):
        if "default" not in own:
            raise ValueError(
                f"The processor has several chat templates: {', '.join(own)}. Name one: chat_template=..."
            )
        return own["default"]
    if own is None:
        raise ValueError(
            "The processor has no chat template. Pass chat_template=..., or set `processor.chat_template`."
        )
    return own


def check_rendering(tokenizer: Any, add_prompt: bool, continue_final: bool | str, want_mask: bool) -> None:
    """Raise a `ValueError` for options of `apply_chat_template` that exclude each other."""
    if continue_final and add_prompt:
        raise ValueError(
            "continue_final_message and add_generation_prompt are not compatible: the one goes on with the last "
            "message, the other begins a new one. Pass one of them."
        )
    if continue_final and want_mask:
        raise ValueError("continue_final_message is not compatible with return_assistant_tokens_mask. Drop one.")
    if want_mask and not tokenizer.is_fast:
        raise ValueError(
            f"return_assistant_tokens_mask needs a fast tokenizer, and {type(tokenizer).__name__} is none. Load it "
            "with AutoTokenizer and `tokenizers` installed."
        )


def unknown_to(template: str, variables: dict) -> dict:
    """Those variables that the template does not read: options of the processor that came without a name."""
    unknown = {key: value for key, value in variables.items() if key not in _get_template_variables(template)}
    if unknown:
        logger.warning(
            f"{', '.join(unknown)}: the chat template does not read this, so it goes to the processor. Pass options "
            "of the processor in `processor_kwargs`."
        )
    return unknown


def lay_out_content(chats: list[list[dict]], template: str, audio_token: str, variables: dict) -> list[list[dict]]:
    """Give each message the content form that the template can read, see `content_form`."""
    if not any(isinstance(message.get("content"), list) for chat in chats for message in chat):
        return chats
    form = content_form(template, audio_token, variables)

    def lay_out(message: dict) -> dict:
        content = message.get("content")
        if not isinstance(content, list) or form == "blocks":
            return message
        joined = "".join(block["text"] if block["type"] == "text" else audio_token for block in content)
        return {**message, "content": joined if form == "string" else [{"type": "text", "text": joined}]}

    return [[lay_out(message) for message in chat] for chat in chats]


def content_form(template: str, audio_token: str, variables: dict) -> str:
    """
    What a chat template reads as content: `"blocks"` if it lays out audio blocks itself (with this placeholder),
    `"string"` if it prints strings, else `"text"` (lists of text blocks only). Found by rendering probes.
    """
    probe = "probe text"

    def render(content: Any) -> str:
        chat = [{"role": "user", "content": content}]
        try:
            return render_jinja_template(conversations=[chat], chat_template=template, **variables)[0][0]
        except Exception:  # templates raise whatever they like on content they cannot read
            return ""

    blocks = render([{"type": "audio"}, {"type": "text", "text": probe}])
    if re.search(f"{re.escape(audio_token)}\\s*{probe}", blocks) and "'type'" not in blocks:
        return "blocks"
    return "string" if probe in render(probe) else "text"


def render_with_spans(
    chats: list[list[dict]],
    template: str,
    want_spans: bool,
    control_tokens: Iterable[str],
    add_generation_prompt: bool,
    continue_final_message: bool | str,
    **variables: Any,
) -> tuple[list[str], list[list[Span]]]:
    """
    Render chats; if wanted also the character spans (start, end) of the assistant's turns in each.

    Raises:
        ValueError: the template cannot render the chats, with what it says.
    """
    render = partial(_render, chat_template=template, **variables)
    has_marks = re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
    rendered, spans = render(
        conversations=chats,
        return_assistant_tokens_mask=want_spans and has_marks,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
    )
    if want_spans and not has_marks:
        pairs = zip(chats, rendered, strict=True)
        spans = [_spans_by_prefix(chat, text, render, tuple(control_tokens)) for chat, text in pairs]
    return rendered, spans


def _render(conversations: list[list[dict]], **variables: Any) -> tuple[list[str], list[list[Span]]]:
    try:
        return render_jinja_template(conversations=conversations, **variables)
    except Exception as error:  # Jinja's, those that a template raises itself, and Python's on what it cannot read
        roles = " | ".join(", ".join(message["role"] for message in chat) for chat in conversations)
        raise ValueError(
            f"The chat template cannot lay out this chat: {error or type(error).__name__} (roles: {roles}). Give it "
            "the roles, contents and variables that it knows, or another chat_template."
        ) from error


def _spans_by_prefix(chat: list[dict], text: str, render: Any, control_tokens: tuple[str, ...]) -> list[Span]:
    """Assistant turns of one chat: from the end of the prompt for the turn to the end of the chat up to it."""
    spans = []
    for index, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before = render(conversations=[chat[:index]], add_generation_prompt=True)[0][0]
        until = render(conversations=[chat[: index + 1]])[0][0]
        if not (until.startswith(before) and text.startswith(until)):
            raise ValueError(
                f"The chat template renders the first {index + 1} messages otherwise than as the beginning of the "
                "whole chat, so the assistant's tokens cannot be told. Put {% generation %} and {% endgeneration %} "
                "around the assistant's content in the template, or keep one assistant turn per chat."
            )
        end = len(until.rstrip())
        if not until[:end].endswith(control_tokens):  # white space after the end-of-turn token is not the answer's
            end = len(until)
        spans.append((len(before), end))
    return spans


def break_at_spans(text: str, spans: list[Span]) -> tuple[str, list[Span]]:
    """Put a lone marker, at which `encode_marked` splits, at both ends of each span; also the spans moved."""
    pieces, new_spans, last = [], [], 0
    for index, (start, end) in enumerate(spans):
        pieces += [text[last:start], text[start:end]]
        new_spans.append((start + 2 * index, end + 2 * index + 1))
        last = end
    return BREAK.join([*pieces, text[last:]]), new_spans


def expand(text: str, replacements: list[dict], spans: list[Span]) -> tuple[str, list[Span]]:
    """Replace placeholders in a rendered chat as `text_replacement_offsets` says, and move the spans accordingly."""

    def moved(position: int) -> int:
        gains = (len(item["replacement"]) - len(item["text"]) for item in replacements if item["span"][1] <= position)
        return position + sum(gains)

    spans = [(moved(start), moved(end)) for start, end in spans]
    for item in reversed(replacements):
        text = text[: item["span"][0]] + item["replacement"] + text[item["span"][1] :]
    return text, spans


def span_mask(tokenizer: Any, text: str, spans: list[Span], add_special_tokens: bool) -> list[int]:
    """1 for each token of `text` inside a span, else 0. Marked text must have been broken at its spans."""
    if has_marked_text(text):
        mask = [0] * len(encode_marked(tokenizer, text))
        for start, end in spans:
            first, last = (len(encode_marked(tokenizer, text[:position])) for position in (start, end))
            mask[first:last] = [1] * (last - first)
        return mask
    offsets = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)["offset_mapping"]
    return [int(any(left < end and right > start for start, end in spans)) for left, right in offsets]


def place_masks(masks: list[list[int]], attention_mask: Any) -> Any:
    """Rows of 0 and 1 per token -> the same beside the padding, in the form (tensor, array, lists) of the other."""
    placed = []
    for mask, attention in zip(masks, attention_mask, strict=True):
        row = np.asarray(attention).copy()
        if row.sum() != len(mask):
            raise ValueError(
                f"The assistant's tokens cannot be told: the chat has {len(mask)} tokens but {row.sum()} were kept. "
                "Drop `truncation`."
            )
        row[row == 1] = mask
        placed.append(row)
    if hasattr(attention_mask, "new_tensor"):
        return attention_mask.new_tensor(np.stack(placed))
    return np.stack(placed) if isinstance(attention_mask, np.ndarray) else [row.tolist() for row in placed]
