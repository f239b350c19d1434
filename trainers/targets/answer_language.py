"""Whether an answer is in another language than asked for: by its script, and in Latin letters by function words.

Coarse on purpose: it counts what is plainly wrong, and says nothing where it cannot tell.
"""

import re
import unicodedata
from collections import Counter

FEWEST_WORDS = 3  # function words that make a language plain
SCRIPTS = {  # the script that a language is written in, as Unicode names its letters; all others are Latin
    **dict.fromkeys(("ru", "uk", "bg", "be", "mk", "sr", "kk", "ky", "mn", "tt", "cv", "ab", "sah"), "CYRILLIC"),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "ug"), "ARABIC"),
    **dict.fromkeys(("hi", "mr", "ne"), "DEVANAGARI"),
    **{"zh": "CJK", "yue": "CJK", "ja": "CJK", "ko": "HANGUL", "el": "GREEK", "he": "HEBREW", "th": "THAI"},
    **{"ta": "TAMIL", "te": "TELUGU", "bn": "BENGALI", "as": "BENGALI", "ka": "GEORGIAN", "hy": "ARMENIAN"},
    **{"gu": "GUJARATI", "pa": "GURMUKHI", "kn": "KANNADA", "ml": "MALAYALAM", "or": "ORIYA", "si": "SINHALA"},
    **{"my": "MYANMAR", "km": "KHMER", "lo": "LAO", "am": "ETHIOPIC", "dv": "THAANA"},
}
KANA = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}
FUNCTION_WORDS = {
    "en": "the of and to is that it was for are with this you not have from they what which would there",
    "de": "der die das und ist nicht ein eine zu den mit sich auf für von wird dem auch wie sind ich",
    "es": "el los las que es una del se con por para como más pero este está su al qué y",
    "fr": "le les des est une que qui dans pas pour sur avec ce au du et il sont elle cette",
    "it": "il che di è una per con non sono del della gli anche come questo nel più si lo e",
    "pt": "o os que uma não com para do da em é por mais dos como mas ao ele isso está",
    "nl": "de het een van en is dat niet op te met voor zijn er aan ook ik je maar wat",
    "id": "yang dan di itu dengan untuk tidak dari dalam akan pada ini adalah ke saya juga kamu ada bisa apa",
    "vi": "là và của không có được cho một những trong người này đã với các để khi tôi bạn đó",
}
WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}


def main_code(language: str | int | None) -> str | None:
    """The language of a code with a region or script: "zh-CN" and "zh_Hans" are "zh". A number tells none."""
    return re.split(r"[-_]", language.lower())[0] if isinstance(language, str) and language else None


def is_other_language(text: str, language: str) -> bool:
    """Whether `text` is plainly not in the language of this code."""
    language = main_code(language)
    script = script_of(text)
    if script is None:
        return False
    if script != SCRIPTS.get(language, "LATIN"):
        return True
    if script != "LATIN" or language not in WORDS:
        return False
    words = re.findall(r"\w+", text.lower())
    counts = {code: sum(word in known for word in words) for code, known in WORDS.items()}
    return max(counts.values()) >= max(FEWEST_WORDS, 2 * counts[language] + 1)


def script_of(text: str) -> str | None:
    """The script that most letters of a text are in; None without letters."""
    names = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    counts = Counter()
    for name, count in names.items():
        counts[KANA.get(name, name)] += count
    return counts.most_common(1)[0][0] if counts else None


__all__ = ["is_other_language", "main_code", "script_of"]
