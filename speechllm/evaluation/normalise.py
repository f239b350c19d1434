"""Texts made comparable before they are scored: Whisper's normaliser, MLQA's, and what a word is in each writing.

- Whisper's (Radford et al. 2022, appendix C) is transformers' own. Its table of British and American spellings,
  `english_spelling.json`, is OpenAI's (MIT licence, github.com/openai/whisper).
- MLQA's (Lewis et al. 2020) removes punctuation, articles by language and white space, and takes Chinese characters
  one by one. For languages that it does not know no articles are removed.
"""

import functools
import json
import re
import string
import unicodedata
from pathlib import Path

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

SPELLING = Path(__file__).parent / "english_spelling.json"
# Written without spaces: Whisper's list of languages scored by character, and Cantonese, Khmer and Tibetan.
BY_CHARACTER = ("zh", "ja", "th", "lo", "my", "yue", "km", "bo")
ARTICLES = {  # MLQA's
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": r"\sال^|ال",
}
MLQA_LANGUAGES = ("en", "es", "hi", "vi", "de", "ar", "zh")


def base_code(language: str | None) -> str | None:
    """`zh` of `zh-CN`; None stays."""
    return None if language is None else re.split("[-_]", language.lower())[0]


def by_character(language: str | None) -> bool:
    """Whether the language is written without spaces, so that characters are counted in place of words."""
    return base_code(language) in BY_CHARACTER


@functools.cache
def _whisper_normaliser(language: str | None):
    if base_code(language) == "en":
        return EnglishTextNormalizer(json.loads(SPELLING.read_text(encoding="utf-8")))
    return BasicTextNormalizer(split_letters=by_character(language))


def whisper_normalised(text: str, language: str | None) -> str:
    """The text as Whisper's evaluation compares it; in languages written without spaces one character is one word."""
    return _whisper_normaliser(language)(text).strip()


def answer_tokens(text: str, language: str | None) -> list[str]:
    """Words of an answer as MLQA's evaluation compares them; in languages written without spaces characters, and
    runs of other writing as words.

    MLQA does so for Chinese only; the other languages written without spaces are treated alike.
    """
    return answer_normalised(text, language).split()


def answer_normalised(text: str, language: str | None) -> str:
    """Lower case, no punctuation, no articles, single spaces between the tokens."""
    code = base_code(language)
    text = "".join(character for character in text.lower() if not _is_punctuation(character))
    if code in ARTICLES:
        text = re.sub(ARTICLES[code], " ", text)
    return " ".join(_character_tokens(text) if by_character(code) else text.split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _character_tokens(text: str) -> list[str]:
    """Letters of writings without spaces one by one, with the marks that belong to them; other runs whole."""
    tokens: list[str] = []
    joins = False  # whether the next character may go on with the last token
    for character in text:
        if character.isspace():
            joins = False
        elif _stands_alone(character):
            tokens.append(character)
            joins = False
        elif tokens and (joins or unicodedata.category(character)[0] == "M"):
            tokens[-1] += character
        else:
            tokens.append(character)
            joins = True
    return tokens


def _stands_alone(character: str) -> bool:
    names = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "MYANMAR", "KHMER", "TIBETAN")
    is_mark = unicodedata.category(character)[0] == "M"
    return not is_mark and unicodedata.name(character, "").startswith(names)


def plain(text: str) -> str:
    """The text in one line, as two answers are compared letter by letter."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def loose(text: str) -> str:
    """The text without case and without punctuation at its ends, as labels are compared."""
    return plain(text).casefold().strip(string.punctuation + "。，！？、「」«»“”‘’ ")


def count_words(text: str, language: str | None) -> int:
    """Words, or characters but punctuation where there are no spaces (also by the text's own writing)."""
    tokens = _character_tokens("".join(c for c in text if not _is_punctuation(c)))
    return len(tokens) if by_character(language) or language is None else len(text.split())


__all__ = [
    "BY_CHARACTER",
    "MLQA_LANGUAGES",
    "answer_normalised",
    "answer_tokens",
    "base_code",
    "by_character",
    "count_words",
    "loose",
    "plain",
    "whisper_normalised",
]
