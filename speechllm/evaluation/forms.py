"""Whether an answer has the form asked for: the checks of docs/evaluation.md (IFEval's idea, Zhou et al. 2023)."""

import json
import re
from collections.abc import Callable, Collection
from typing import Any

from .behaviour import is_transcript
from .languages import is_in_language
from .normalise import count_words, loose

KEYS = {
    "language": str,
    "min_words": int,
    "max_words": int,
    "max_sentences": int,
    "list": (bool, int),
    "json": bool,
    "one_word": bool,
    "number": bool,
    "question": bool,
    "labels": list,
    "not_transcript": bool,
}
_ITEM = re.compile(r"^\s*(?:[-*•·–]|\(?\d{1,3}[.)、:])\s*\S")
_FENCE = re.compile(r"^```\w*\n(.*?)\n?```$", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?。！？؟।]+(?=\s|$|[\"'”’»」)])|[。！？]")
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*")


def read_form(content: str | dict | None) -> dict[str, Any]:
    """
    The checks of a row's `form`.

    Raises:
        ValueError: no JSON object, an unknown check or a value of the wrong kind, by name.
    """
    if content is None or content == "":
        return {}
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"the form is no JSON ({error}): {content!r}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the form must be a JSON object, not {content!r}")
    form = {key: value for key, value in content.items() if value is not None}
    for key, value in form.items():
        if key not in KEYS:
            raise ValueError(f"the form has the unknown check {key!r}; known: {', '.join(KEYS)}")
        negative = isinstance(value, int) and value < 0
        no_number = KEYS[key] is int and isinstance(value, bool)
        no_texts = isinstance(value, list) and not all(isinstance(label, str) for label in value)
        if not isinstance(value, KEYS[key]) or negative or no_number or no_texts:
            raise ValueError(f"the form's {key} cannot be {value!r}")
    return form


def follows(
    form: dict[str, Any], answer: str, transcript: str | None, language: str | None, candidates: Collection[str]
) -> dict[str, bool | None]:
    """
    Each check of a form on an answer; None where it cannot be told.

    Args:
        form: of [`read_form`].
        answer: the answer.
        transcript: what was said, for `not_transcript`.
        language: code of the answer's language, if known; says what a word is.
        candidates: languages that compete, see [`is_in_language`].
    """
    checks: dict[str, Callable[[Any], bool | None]] = {
        "language": lambda wanted: is_in_language(answer, wanted, candidates),
        "min_words": lambda limit: count_words(answer, language) >= limit,
        "max_words": lambda limit: 0 < count_words(answer, language) <= limit,
        "max_sentences": lambda limit: 0 < count_sentences(answer) <= limit,
        "list": lambda wanted: is_list(answer, wanted),
        "json": lambda wanted: is_json(answer) == wanted,
        "one_word": lambda wanted: is_one_word(answer) == wanted,
        "number": lambda wanted: bool(_NUMBER.fullmatch(answer.strip().rstrip("."))) == wanted,
        "question": lambda wanted: answer.strip().rstrip("\"'”’»」").endswith(("?", "？", "؟")) == wanted,
        "labels": lambda labels: loose(answer) in {loose(label) for label in labels},
        "not_transcript": lambda wanted: (
            None if transcript is None else is_transcript(answer, transcript, language) != wanted
        ),
    }
    return {key: checks[key](value) for key, value in form.items()}


def has_form(checks: dict[str, bool | None]) -> bool | None:
    """Whether all checks that can be told hold; None if none can."""
    told = [value for value in checks.values() if value is not None]
    return all(told) if told else None


def count_sentences(text: str) -> int:
    """Ends of sentences, and a last one without an end."""
    text = text.strip()
    ends = list(_SENTENCE_END.finditer(text))
    rest = text[ends[-1].end() :].strip("\"'”’»」) \n") if ends else text
    return len(ends) + bool(rest)


def is_list(text: str, wanted: bool | int) -> bool:
    """Whether every line but a first that ends in a colon is an item: two or more, or as many as wanted."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].rstrip().endswith((":", "：")) and not _ITEM.match(lines[0]):
        lines = lines[1:]
    items = all(map(_ITEM.match, lines)) and len(lines) > 0
    if isinstance(wanted, bool):
        return (items and len(lines) >= 2) == wanted
    return items and len(lines) == wanted


def is_json(text: str) -> bool:
    """Whether the text is one JSON object or array and nothing else, a code fence around it allowed."""
    text = text.strip()
    fenced = _FENCE.match(text)
    try:
        return isinstance(json.loads(fenced[1] if fenced else text), (dict, list))
    except json.JSONDecodeError:
        return False


def is_one_word(text: str) -> bool:
    """No white space within, and at most four characters in writings without spaces."""
    return len(text.split()) == 1 and 0 < count_words(text, None) <= 4


__all__ = ["KEYS", "count_sentences", "follows", "has_form", "is_json", "is_list", "is_one_word", "read_form"]
