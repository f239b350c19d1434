"""User text that spells a special token: marked before the chat is rendered, and then encoded as text.

The work is transformers' own, from 5.23 on. An older one (serving engines pin them) cannot encode it as text, so
there it is refused instead of becoming a real token.
"""

from typing import Any

try:
    from transformers.utils.chat_template_utils import _CONTROL_TOKEN_END as BREAK
    from transformers.utils.chat_template_utils import _CONTROL_TOKEN_START as START
    from transformers.utils.chat_template_utils import encode_marked_chat as encode_marked
except ImportError:
    START, BREAK, encode_marked = "\U000f0000", "\U000f0001", None


def has_marked_text(text: str) -> bool:
    """Whether user text in a rendered chat spells a control token (which then carries markers)."""
    return START in text


def mark_inputs(
    tokenizer: Any, template: str, chats: list, tools: Any, documents: Any, variables: dict
) -> tuple[list, Any, Any, dict]:
    """
    The chats, tools, documents and variables of a template with every control token that they spell marked.

    Raises:
        ValueError: a control token is spelled, and this transformers cannot encode it as text.
    """
    if encode_marked is not None:
        # The last two arguments only guard combinations that the processor handles itself.
        return tokenizer._mark_chat_inputs(template, chats, tools, documents, variables, True, False)
    control_tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for text in _strings([chats, tools, documents, variables]):
        if spelled := [token for token in control_tokens if token in text]:
            raise ValueError(
                f"The chat spells the special token {spelled[0]!r}, which this transformers cannot keep as text. "
                "Install transformers 5.23 or later, or pass sanitize_control_tokens=False to have the token itself."
            )
    return chats, tools, documents, variables


def _strings(value: Any) -> list[str]:
    """Every string in nested dicts and lists, but for keys."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in _strings(item)] if isinstance(value, (list, tuple)) else []


__all__ = ["encode_marked", "has_marked_text", "mark_inputs"]
