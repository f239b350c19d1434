"""How an answer fails beside being wrong: empty, repeating, refusing, transcribing in place of obeying.

Each is a rule that can be read here; none is a judgement of content.
"""

import re

from .normalise import by_character, plain, whisper_normalised
from .packages import need

REPEATS = 4  # times in a row
LONGEST_PERIOD = 20  # words or characters that repeat
TRANSCRIBED = 0.2  # word error rate against the transcript up to which an answer is one

REFUSALS = {  # how assistants begin to decline; lower case
    "en": r"i(?:'|’)?m sorry|i am sorry|sorry, (?:but )?i|i can(?:'|’)?t|i cannot|i am unable|i(?:'|’)?m unable|"
    r"i(?:'|’)?m not able|as an ai|as a language model|i do not have access|i don(?:'|’)?t have access",
    "de": r"es tut mir leid|tut mir leid|entschuldigung, (?:aber )?ich|ich kann (?:leider )?nicht|ich kann leider|"
    r"als ki|als sprachmodell",
    "es": r"lo siento|lamento|no puedo|no me es posible|como (?:una )?ia|como modelo de lenguaje",
    "fr": r"je suis désolé|désolé|je ne peux pas|je ne suis pas en mesure|en tant qu(?:'|’)ia|en tant que modèle",
    "id": r"maaf|mohon maaf|saya tidak (?:bisa|dapat)|sebagai (?:model|ai)",
    "vi": r"xin lỗi|tôi xin lỗi|rất tiếc|tôi không thể|là một (?:mô hình|ai)",
    "zh": r"抱歉|对不起|很抱歉|我无法|我不能|作为(?:一个)?(?:人工智能|ai|语言模型)",
}
_REFUSAL = re.compile(rf"^\W*(?:{'|'.join(REFUSALS.values())})")


def is_empty(answer: str) -> bool:
    """No letter, digit or symbol but white space."""
    return not answer.strip()


def is_repeating(answer: str) -> bool:
    """Whether the same one to twenty words (or characters, for loops within words and writings without spaces) stand
    four times or more in a row and make up at least half of the answer."""
    return _loops(answer.split()) or _loops(list("".join(answer.split())), shortest=12)


def _loops(tokens: list[str], shortest: int = REPEATS) -> bool:
    """Whether some run of repeats covers half of the tokens, and at least `shortest` of them."""
    for period in range(1, min(LONGEST_PERIOD, len(tokens) // REPEATS) + 1):
        run = best = 0
        for place in range(period, len(tokens)):
            run = run + 1 if tokens[place] == tokens[place - period] else 0
            best = max(best, run)
        covered = best + period
        if best >= (REPEATS - 1) * period and covered >= max(shortest, len(tokens) / 2):
            return True
    return False


def is_refusal(answer: str) -> bool:
    """Whether the answer begins as assistants decline, in English, German, Spanish, French, Indonesian, Vietnamese or
    Chinese."""
    return _REFUSAL.match(answer.strip().lower()) is not None


def word_errors(reference: str, answer: str, language: str | None) -> tuple[int, int]:
    """Substitutions, insertions and deletions, and words of the reference, after Whisper's normaliser."""
    jiwer = need("jiwer", "A word error rate")
    reference = whisper_normalised(reference, language)
    measured = jiwer.process_words(reference, whisper_normalised(answer, language))
    errors = measured.substitutions + measured.deletions + measured.insertions
    return errors, measured.hits + measured.substitutions + measured.deletions


def is_transcript(answer: str, transcript: str | None, language: str | None) -> bool:
    """Whether an answer is (nearly) the transcript: at most a fifth of its words wrong."""
    if transcript is None or not whisper_normalised(transcript, language):
        return False
    errors, words = word_errors(transcript, answer, language)
    return errors <= TRANSCRIBED * words


def is_same(left: str, right: str) -> bool:
    """Whether two answers are equal but for white space."""
    return plain(left) == plain(right)


__all__ = [
    "REFUSALS",
    "by_character",
    "is_empty",
    "is_refusal",
    "is_repeating",
    "is_same",
    "is_transcript",
    "word_errors",
]
