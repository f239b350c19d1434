"""In which language a text is, by Lingua (Stahl), which is made for short text and works offline.

Only the languages that are asked about compete. Short answers are no evidence: a text with few letters, or whose
language Lingua is unsure of, is not judged, and how many were judged stands beside every rate.
"""

import functools
from collections.abc import Collection
from typing import Any

from .normalise import base_code
from .packages import need

MINIMUM_LETTERS = 12
MINIMUM_LETTERS_WITHOUT_SPACES = 2  # of a writing of its own: Chinese, Japanese, Korean, Thai
CERTAIN = 0.6  # confidence in another language, and
ODDS = 3.0  # how many times that in the language wanted, for a text to be in the wrong one


@functools.cache
def _detector(codes: tuple[str, ...]) -> Any:
    lingua = need("lingua", "Telling the language of an answer")
    known = {language.iso_code_639_1.name.lower(): language for language in lingua.Language.all()}
    languages = [known[code] for code in codes if code in known]
    return lingua.LanguageDetectorBuilder.from_languages(*languages).build() if len(languages) > 1 else None


@functools.cache
def supported_languages() -> frozenset[str]:
    """Codes of the languages that can be told apart."""
    lingua = need("lingua", "Telling the language of an answer")
    return frozenset(language.iso_code_639_1.name.lower() for language in lingua.Language.all())


def is_in_language(text: str, wanted: str | None, candidates: Collection[str]) -> bool | None:
    """
    Whether a text is in a language; None if that cannot be told.

    Args:
        text: an answer.
        wanted: code of the language it should be in.
        candidates: codes of the languages that compete, `wanted` among them or not. English always does.
    """
    code = base_code(wanted)
    if code is None or code not in supported_languages():
        return None
    letters = [character for character in text if character.isalpha()]
    dense = sum(ord(character) >= 0x0E00 for character in letters) > len(letters) / 2
    if len(letters) < (MINIMUM_LETTERS_WITHOUT_SPACES if dense else MINIMUM_LETTERS):
        return None
    others = {base_code(candidate) for candidate in candidates} & supported_languages()
    detector = _detector(tuple(sorted(others | {code, "en"})))
    if detector is None:  # English alone
        detector = _detector(("de", "en", "es", "fr", "zh"))
    scores = {
        confidence.language.iso_code_639_1.name.lower(): confidence.value
        for confidence in detector.compute_language_confidence_values(text)
    }
    best = max(scores, key=scores.get)
    if best == code:
        return True
    return False if scores[best] >= max(CERTAIN, ODDS * scores[code]) else None


__all__ = ["is_in_language", "supported_languages"]
