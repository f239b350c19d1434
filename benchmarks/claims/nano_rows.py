"""Rows of the nano world's training sets and questions: requests, instructions, answers of the LLM that reads."""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.nanoworld import speech
from benchmarks.nanoworld.lexicon import CITIES, COLOURS, DAYS, DEVICES, OBJECTS, OPENABLES, PLACES, ROOMS, bare_noun
from benchmarks.nanoworld.questions import answer_language
from benchmarks.nanoworld.tasks import INTENTS, Example, draw, tasks_for
from benchmarks.nanoworld.world import LANGUAGES, Frame, frames_of
from speechllm import NANO

# Trained, and never trained. `language` is no question in English.
MTBI_SEEN = ("transcribe", "translate", "intent", "device", "number", "first_word", "count_words")
MTBI_UNSEEN = ("place", "sum", "colour", "day", "last_word")
# BLOOMZMMS' templates are mostly requests to translate. Nothing here classifies: that is asked of models that never
# saw it.
MI_WEIGHTS = {"translate": 6.0} | dict.fromkeys(
    ("device", "place", "number", "colour", "day", "first_word", "last_word", "count_words"), 1.0
)
CLOSED = ("search", "hours", "weather")  # kinds of request that a text can answer
TRANSCRIBE = "Transcribe the speech."
ANSWER_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A recording: its name, what is said, in which language, the request that it is, seconds."""

    name: str
    text: str
    language: str
    request: Frame
    seconds: float

    def as_row(self) -> dict[str, Any]:
        """A training row without an answer."""
        facts = {"audio": f"{self.name}.wav", "text": self.text, "language": self.language, "duration": self.seconds}
        return {"id": self.name, "recording": self.name} | facts


def spell_phrases(plan: Mapping[str, speech.Utterance]) -> dict[str, speech.Utterance]:
    """The English training sentences in two phrases, each a recording of its own by the same voice."""
    phrases = {}
    for name, utterance in plan.items():
        words = utterance.text.split()
        if not name.startswith("train") or utterance.language != "en" or len(words) < 2:
            continue
        half = (len(words) + 1) // 2
        for number, part in enumerate((words[:half], words[half:]), 1):
            phrases[f"{name}-phrase-{number}"] = dataclasses.replace(
                utterance, text=" ".join(part), seed=utterance.seed + number
            )
    return phrases


def instruct(instruction: str, answer: str | None = None, audios: int = 1) -> list[dict]:
    """A chat in which the audios come first, each on a line of its own, with an answer or up to where it begins."""
    content = [{"type": "audio"}] * audios + [{"type": "text", "text": f"\n{instruction}"}]
    chat = [{"role": "user", "content": content}]
    if answer is not None:
        chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return chat


def asked(row: Spoken, instruction: str, answer: str, target: str, number: int = 0) -> dict[str, Any]:
    """What makes a row one of imitation."""
    return {"id": f"{row.name}-{target}-{number}", "target": target, "messages": instruct(instruction, answer)}


def answered(
    rows: Sequence[Spoken], weights: Mapping[str, float], each: int, seed: str, target: str
) -> list[dict[str, Any]]:
    """
    Instructions about recordings with the greedy answers of the embedded LLM, which reads the transcripts.

    Args:
        rows: recordings.
        weights: how often each task is drawn, of those that a request allows; requests that allow none are left out.
        each: instructions per recording.
        seed: of the draw.
        target: name of the set, in the ids.
    """
    from trainers.commands.inputs import load_checkpoint
    from trainers.targets.backends import LocalBackend, Question

    drawn: list[tuple[Spoken, int, Example]] = []
    for row in rows:
        rng = random.Random(f"{seed}|{row.text}")
        tasks = [task for task in tasks_for(row.request, row.language) if task in weights]
        for number, task in enumerate(rng.choices(tasks, [weights[t] for t in tasks], k=each) if tasks else []):
            drawn.append((row, number, draw(task, row.request, row.language, rng)))
    model, processor = load_checkpoint(NANO, "float32")
    reader = LocalBackend(model, processor, batch_size=64, max_new_tokens=ANSWER_TOKENS)
    questions = [
        Question([{"role": "user", "content": f"{row.text}\n{example.instruction}"}], 0) for row, _, example in drawn
    ]
    with tqdm(total=len(questions), desc=f"answers: {target}", mininterval=5) as bar:
        answers = reader.answer(questions, bar.update)
    name = seed.partition("|")[2].replace(" ", "-")
    made = []
    for (row, number, example), answer in zip(drawn, answers, strict=True):
        if answer.text.strip():
            made.append(row.as_row() | asked(row, example.instruction, answer.text, target, number))
            made[-1] |= {"id": f"{row.name}-{name}-{number}", "task": example.task}
    print(f"{name}: {len(made)} answers, {len(drawn) - len(made)} empty ones left out", flush=True)
    return made


# Questions


def valid_values(task: str, language: str) -> list[str] | None:
    """All answers of a task that names one of a list, in a language; None for others."""
    tables = {"device": DEVICES | OPENABLES, "place": ROOMS | CITIES | PLACES, "colour": COLOURS}
    if task == "intent":
        return sorted(set(INTENTS.values()))
    if task == "day":
        phrases = [DAYS[name][language] for name in DAYS]
        return sorted({*phrases, *(phrase.removeprefix("on ") for phrase in phrases)})
    if task not in tables:
        return None
    names = [words[language] for words in tables[task].values()]
    return sorted({*names, *(bare_noun(language, name) for name in names)})


def form_of(task: str, language: str) -> dict[str, Any]:
    """What an answer must look like to obey the instruction, right or wrong: checks of `speechllm evaluate`."""
    values = valid_values(task, language)
    if values is not None:
        return {"labels": values}
    return {
        "transcribe": {"min_words": 2},
        "translate": {"not_transcript": True, "min_words": 2},
        "number": {"not_transcript": True, "max_words": 3},
        "sum": {"number": True},
        "count_words": {"number": True},
        "first_word": {"one_word": True},
        "last_word": {"one_word": True},
    }.get(task, {"not_transcript": True})


def question(row: Spoken, task: str, name: str, kind: str | None, rng: random.Random) -> dict[str, Any]:
    """One question about a recording; `name` is the task's in the tables, `kind` the row's `prompt_kind`."""
    example = draw(task, row.request, row.language, rng, held_out=kind == "unseen_prompt")
    facts = {"id": f"{row.name}-{name}-{kind}", "instruction": example.instruction, "reference": example.answer}
    facts |= {"task": name, "target_language": answer_language(task, example.answer, row.request, row.language)}
    if kind is not None:
        facts |= {"prompt_kind": kind, "form": form_of(task, row.language)}
    return row.as_row() | facts


def question_rows(
    test: Sequence[Spoken], english: Sequence[Spoken], closed: Sequence[Spoken], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """
    The questions of all papers about recordings that no training hears.

    Returns:
        `six` (LAD): a text to read and a spoken question, about `closed`, and one open request per recording of
        `test`. `english` (MTBI): a prompt that training saw, one that it did not see, a task that it did not see.
        `instructions` (BLOOMZMMS): recognition and translation of `test`. `labels`: which intent.
    """
    sets: dict[str, list[dict[str, Any]]] = {name: [] for name in ("six", "english", "instructions", "labels")}

    def chance(row: Spoken) -> random.Random:
        return random.Random(f"{seed}|{row.name}|{row.text}")

    sets["six"] += [question(row, "context", "closed", None, chance(row)) for row in closed]
    for row in test:
        rng = chance(row)
        task = rng.choice([task for task in tasks_for(row.request, row.language) if task != "context"])
        sets["six"].append(question(row, task, f"open {row.language}", None, rng))
        recognition = question(row, "transcribe", "recognition", None, rng) | {"instruction": TRANSCRIBE}
        sets["instructions"] += [recognition, question(row, "translate", "translation", None, rng)]
        intent = question(row, "intent", "intent", None, rng)
        sets["labels"].append(intent | {"label": intent["reference"], "labels": sorted(set(INTENTS.values()))})
    for row in english:
        rng, tasks = chance(row), tasks_for(row.request, row.language)
        seen = rng.choice([task for task in tasks if task in MTBI_SEEN])
        sets["english"] += [question(row, seen, seen, kind, rng) for kind in ("seen", "unseen_prompt")]
        if unseen := [task for task in tasks if task in MTBI_UNSEEN]:
            task = rng.choice(unseen)
            sets["english"].append(question(row, task, task, "unseen_task", rng))
    return sets


def fact_questions(
    plan: Mapping[str, speech.Utterance], each: int, seed: int
) -> tuple[Callable[[Mapping[str, float]], list[dict[str, Any]]], dict[str, speech.Utterance]]:
    """
    Two recordings in one prompt: where something is, and a question about it.

    Args:
        plan: recordings, whose voices of the test say the facts.
        each: questions per language.
        seed: of the draw.

    Returns:
        the rows, once the recordings' seconds are known, and the recordings to make.
    """
    made, rows = {}, []
    known = [frame for frame in frames_of("test") if frame.kind == "search"]
    voices = {language: [u for name, u in plan.items() if name.startswith("test") and u.language == language]
              for language in LANGUAGES}  # fmt: skip
    for language in LANGUAGES:
        rng = random.Random(f"{seed}|facts|{language}")
        labels = sorted(bare_noun(language, room[language]) for room in ROOMS.values())
        for number in range(each):
            frame, room, voice = rng.choice(known), rng.choice(labels), rng.choice(voices[language])
            thing = bare_noun(language, OBJECTS[frame.slots[0]][language])
            texts = [frame.text(language), f"{thing}{'' if language == 'zh' else ' '}{room}"]
            names = [f"fact-{language}-{number:03d}-{part}" for part in ("question", "text")]
            for name, text in zip(names, texts, strict=True):
                made[name] = dataclasses.replace(voice, text=text, seed=voice.seed + 7 * number)
            content = [{"type": "audio"}, {"type": "text", "text": "\nText: "}, {"type": "audio"}]
            content.append({"type": "text", "text": ". Answer from the text."})
            facts = {"id": names[0], "recording": names[0], "audio": [f"{name}.wav" for name in names], "text": texts}
            facts |= {
                "language": [language] * 2,
                "messages": [{"role": "user", "content": content}],
                "task": "two slots",
            }
            rows.append(facts | {"target_language": language, "reference": room, "label": room, "labels": labels})

    def with_seconds(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
        """The rows both of whose recordings could be made."""
        parts = [[path.removesuffix(".wav") for path in row["audio"]] for row in rows]
        return [
            row | {"duration": sum(seconds[name] for name in names)}
            for row, names in zip(rows, parts, strict=True)
            if all(name in seconds for name in names)
        ]

    return with_seconds, made


__all__ = ["Spoken", "answered", "asked", "fact_questions", "form_of", "question_rows", "spell_phrases"]
