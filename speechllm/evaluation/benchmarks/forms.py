"""The form that an answer to a task prompt must have, where code can tell: MTBI's instruction-following rate.

A check stands here only if the prompt itself asks for the form: "What is the first word?" may be answered in a
sentence, "Quote the very first word and nothing else" may not. `speechllm evaluate` knows the checks by these names.
"""

from trainers.targets.prompts import Prompt, Task

from ..normalise import base_code

# Tasks whose answer is prose in the language of the speech, if they are asked in it; `paraphrase` says so itself.
PROSE = {
    "summarise",
    "title",
    "details",
    "ask_question",
    "continue",
    "reply",
    "simplify",
    "formal_tone",
    "casual_tone",
}
PROSE |= {"paraphrase", "negate"}
SAME_LANGUAGE = {"paraphrase"}
MAY_TRANSCRIBE = {"repeat"}  # and nothing else: elsewhere a transcript is no answer
# By prompt, as `task/language/number`.
FORMS = {
    "title/en/6": {"max_words": 6},
    "topic/en/2": {"max_words": 2},
    "topic/en/7": {"one_word": True},
    "ask_question/en/1": {"question": True},
    "ask_question/en/2": {"question": True},
    "ask_question/en/3": {"question": True},
    "ask_question/en/4": {"question": True},
    "ask_question/en/5": {"question": True},
    "ask_question/en/6": {"question": True},
    "continue/en/7": {"max_words": 39},
    "answer/en/8": {"max_sentences": 1},
    "continue/en/2": {"max_sentences": 2},
    "continue/en/6": {"max_sentences": 1},
    "summarise/en/1": {"max_sentences": 1},
    "negate/en/6": {"max_sentences": 1},
    "sentiment/en/2": {"one_word": True},
    "sentence_type/en/3": {"one_word": True},
    "language/en/4": {"one_word": True},
    "language/en/8": {"one_word": True},
    "first_word/en/3": {"one_word": True},
    "first_word/en/7": {"one_word": True},
    "last_word/en/3": {"one_word": True},
    "last_word/en/7": {"one_word": True},
    "count_words/en/8": {"number": True},
    "summarise/zh/1": {"max_sentences": 1},
    "summarise/vi/1": {"max_sentences": 1},
    "summarise/id/1": {"max_sentences": 1},
    "summarise/es/1": {"max_sentences": 1},
    "summarise/de/1": {"max_sentences": 1},
}


def form_of(task: Task, prompt: Prompt, language: str | None, target_language: str | None) -> dict:
    """
    The checks of an answer to this prompt about speech in this language.

    Args:
        target_language: that the prompt asks for (`{language}` filled in), else None.
    """
    form = dict(FORMS.get(prompt.id, {}))
    if task.name not in MAY_TRANSCRIBE:
        form["not_transcript"] = True
    wanted = answer_language(task, prompt, language, target_language)
    return form | ({"language": wanted} if wanted else {})


def answer_language(task: Task, prompt: Prompt, language: str | None, target_language: str | None) -> str | None:
    """The language that the answer must be in, or None where the prompt leaves it open."""
    if target_language is not None:
        return target_language
    if task.name in MAY_TRANSCRIBE | SAME_LANGUAGE:
        return language
    asked_in_it = prompt.language == base_code(language)
    return language if task.name in PROSE and asked_in_it else None
