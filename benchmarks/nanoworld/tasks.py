"""What can be asked about a request: tasks with exact answers, each defined only where it applies.

Answers that name a slot (device, place, colour, day, word) or come from a context are in the language of the request,
as the context itself; intents and languages are named in English; numbers are digits.
"""

import random
from dataclasses import dataclass

from benchmarks.nanoworld.lexicon import (
    CITIES,
    COLOURS,
    DAYS,
    DEVICES,
    LANGUAGE_NAMES,
    OBJECTS,
    OPENABLES,
    PLACES,
    ROOMS,
    WEATHER,
    bare_noun,
)
from benchmarks.nanoworld.prompts import PROMPTS, Prompt
from benchmarks.nanoworld.world import LANGUAGES, Frame

TASKS = tuple(PROMPTS)

INTENTS = {
    "switch": "switch",
    "open": "door or window",
    "colour": "colour",
    "timer": "timer",
    "alarm": "alarm",
    "sum": "sum",
    "number": "number",
    "code": "code",
    "weather": "weather",
    "route": "route",
    "hours": "opening hours",
    "shopping": "shopping",
    "search": "search",
    "music": "music",
}

WORD_TASKS = ("first_word", "last_word", "count_words")


@dataclass(frozen=True)
class Example:
    """One question about a request: the instruction and its exact answer."""

    task: str
    prompt: Prompt
    instruction: str
    answer: str


def tasks_for(frame: Frame, language: str) -> list[str]:
    """The tasks that make sense for a request in a language; Chinese, written without spaces, has no word tasks."""
    applicable = {
        "device": frame.kind in ("switch", "open", "colour"),
        "place": frame.kind in ("switch", "open", "colour", "music", "weather", "hours"),
        "number": frame.kind in ("number", "code", "timer", "alarm", "shopping"),
        "sum": frame.kind == "sum",
        "colour": frame.kind == "colour",
        "day": frame.kind in ("alarm", "weather", "hours"),
        "context": frame.kind in ("search", "hours", "weather"),
    }
    applicable |= dict.fromkeys(WORD_TASKS, language != "zh")
    if frame.kind == "number":  # with one word there is no first or last
        applicable |= {"first_word": False, "last_word": False}
    return [task for task in TASKS if applicable.get(task, True)]


def _device(frame: Frame, language: str) -> str:
    name = {"colour": "light"}.get(frame.kind) or frame.slots[1]
    return bare_noun(language, (DEVICES | OPENABLES)[name][language])


def _place(frame: Frame, language: str) -> str:
    match frame.kind:
        case "weather":
            return CITIES[frame.slots[0]][language]
        case "hours":
            return bare_noun(language, PLACES[frame.slots[0]][language])
    return bare_noun(language, ROOMS[frame.slots[-1]][language])


def _number(frame: Frame, language: str) -> str:
    return " ".join(map(str, frame.slots)) if frame.kind == "code" else str(frame.slots[0])


def _sum(frame: Frame, language: str) -> str:
    operation, left, right, _ = frame.slots
    return str(left + right if operation == "plus" else left - right)


def _day(frame: Frame, language: str) -> str:
    phrase = DAYS[frame.slots[1]][language]
    for lead in ("on ", "vào ", "hari ", "el ", "am "):
        if phrase.startswith(lead) and phrase != "hari ini":
            return phrase[len(lead) :]
    return phrase


ANSWERS = {
    "transcribe": lambda frame, language: frame.text(language),
    "intent": lambda frame, language: INTENTS[frame.kind],
    "device": _device,
    "place": _place,
    "number": _number,
    "sum": _sum,
    "colour": lambda frame, language: COLOURS[frame.slots[0]][language],
    "day": _day,
    "first_word": lambda frame, language: frame.text(language).split()[0],
    "last_word": lambda frame, language: frame.text(language).split()[-1],
    "count_words": lambda frame, language: str(len(frame.text(language).split())),
    "language": lambda frame, language: LANGUAGE_NAMES[language]["en"],
}


def draw(task: str, frame: Frame, language: str, rng: random.Random, held_out: bool = False) -> Example:
    """One example of a task: a random prompt (a held-out paraphrase on demand), target language and context."""
    prompt = rng.choice([prompt for prompt in PROMPTS[task] if prompt.held_out == held_out])
    if task == "translate":
        target = rng.choice([other for other in LANGUAGES if other != language])
        instruction = prompt.text.format(language=LANGUAGE_NAMES[target][prompt.language])
        return Example(task, prompt, instruction, frame.text(target))
    if task == "context":
        context, answer = _context(frame, language, rng)
        return Example(task, prompt, prompt.text.format(context=context), answer)
    return Example(task, prompt, prompt.text, ANSWERS[task](frame, language))


def _context(frame: Frame, language: str, rng: random.Random) -> tuple[str, str]:
    """A note of three facts, an object's room, a place's opening hour and a city's weather, and the one asked for.

    The fact of the frame's own kind is about what the frame asks; the other two are about anything.
    """
    values = {
        "search": bare_noun(language, ROOMS[rng.choice(list(ROOMS))][language]),
        "hours": str(rng.randrange(6, 13)),
        "weather": WEATHER[rng.choice(list(WEATHER))][language],
    }
    facts = []
    for kind, table in (("search", OBJECTS), ("hours", PLACES), ("weather", CITIES)):
        name = frame.slots[0] if kind == frame.kind else rng.choice(list(table))
        facts.append((bare_noun(language, table[name][language]), values[kind]))
    rng.shuffle(facts)
    separator, comma = ("", "，") if language == "zh" else (" ", ", ")
    return comma.join(f"{name}{separator}{value}" for name, value in facts), values[frame.kind]


def join(instruction: str, request: str, request_first: bool) -> str:
    """The user turn: instruction and request on two lines, in either order."""
    return f"{request}\n{instruction}" if request_first else f"{instruction}\n{request}"
