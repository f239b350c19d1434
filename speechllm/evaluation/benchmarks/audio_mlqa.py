"""Audio-MLQA (LAD, Gopal et al., arXiv 2603.07025): a question that is spoken, about a text that is read.

Paper: the text contexts of MLQA, the questions synthesised in English, Vietnamese, Spanish, German and Chinese, 250
items each, ten voices per language (five female, five male), one at random per item. Which questions, voices and
instruction the authors took is not said; here any set in SQuAD's form serves, and everything is drawn by a seed.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from speechllm.speech_synthesis import Synthesizer, Voice, choose_voices
from trainers.targets.prompts import load_tasks

from ..normalise import base_code
from ..rows import OWN_PROMPTS, OWN_TASKS
from .building import Plan
from .rows import METRICS, Dropped, Item, Spoken, draw_order, source_name
from .squad import HUB_LICENSES, SquadQuestion, read_squad

LANGUAGES = ("en", "vi", "es", "de", "zh")
DESCRIPTION = """\
Audio-MLQA as LAD (arXiv 2603.07025) evaluates it: the model reads a text (`context`), hears a question about it \
(`audio`), and answers with words of the text (`references`). `text` is the question in writing, for the text bound. \
Which questions, voices and wording the authors took is not published; these were drawn by a seed."""


@dataclass(frozen=True)
class AudioMLQASettings:
    """
    What `plan_audio_mlqa` draws from.

    Args:
        source, split, config, revision: as in `read_squad`.
        languages: codes.
        items: questions per language; None is all.
        max_context_characters: questions about longer texts are left out, and counted; None is no limit.
        voices_per_gender: female and male voices per language.
        voices: these voices instead, in every language.
        license: of the source; known for MLQA and XQuAD on the Hub.
        seed: of the draw of items and voices.
    """

    source: str
    languages: Sequence[str] = LANGUAGES
    items: int | None = 250
    max_context_characters: int | None = 2000
    split: str = "test"
    config: str | None = None
    revision: str | None = None
    voices_per_gender: int = 5
    voices: Sequence[Voice] = ()
    license: str | None = None
    seed: int = 0


def plan_audio_mlqa(settings: AudioMLQASettings, synthesizer: Synthesizer) -> Plan:
    """
    The items of Audio-MLQA: per language the first `items` questions in the order of a hash of seed and id, so that
    sets that are parallel across languages give the same questions in each, as far as the limit lets them.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read, or the synthesizer has not the voices.
    """
    items, dropped, voices, seen = [], [], {}, set()
    for language in settings.languages:
        questions = read_squad(settings.source, language, settings.split, settings.config, settings.revision)
        voices[language] = choose_voices(synthesizer, language, settings.voices_per_gender, settings.voices)
        usable = []
        for question in questions:
            identity = f"{language}-{question.id}"
            reason, detail = _objection(question, settings.max_context_characters)
            if reason:
                dropped.append(Dropped(identity, language, reason, detail))
            elif identity in seen:
                dropped.append(Dropped(identity, language, "id_stands_twice"))
            else:
                seen.add(identity)
                usable.append(question)
        order = draw_order(settings.seed, [question.id for question in usable])
        chosen = order if settings.items is None else order[: settings.items]
        items += [_item(usable[place], language, voices[language], settings.seed) for place in chosen]
        dropped += [Dropped(f"{language}-{usable[place].id}", language, "not_drawn") for place in order[len(chosen) :]]
    left_out = ("source", "voices", "license")  # told by what is in it, by the items, beside them
    described = {name: value for name, value in asdict(settings).items() if name not in left_out}
    return Plan(
        name="audio-mlqa",
        task="question",
        title="Audio-MLQA",
        description=DESCRIPTION,
        source=source_name(settings.source),
        license=settings.license or HUB_LICENSES.get(settings.source),
        items=items,
        dropped=dropped,
        settings=described,
        voices=voices,
    )


@functools.cache
def spoken_question_instructions() -> dict[str, str]:
    """The first wording of evaluation's own task `spoken_question` by language."""
    (task,) = [task for task in load_tasks(OWN_PROMPTS) if task.name == OWN_TASKS["question"]]
    return {prompt.language: prompt.text for prompt in reversed(task.prompts)}


def _objection(question: SquadQuestion, limit: int | None) -> tuple[str, str]:
    """Why a question cannot be an item: a reason to count by and a detail; empty if it can."""
    if not question.answers:
        return "no_answer", ""
    if not question.question:
        return "empty_question", ""
    if limit is not None and len(question.context) > limit:
        return "context_too_long", f"{len(question.context)} characters"
    return "", ""


def _item(question: SquadQuestion, language: str, voices: Sequence[Voice], seed: int) -> Item:
    voice = random.Random(f"{seed}|voice|{language}|{question.id}").choice(list(voices))
    instructions = spoken_question_instructions()
    instruction = instructions.get(base_code(language), instructions["en"])
    values = {
        "task": "question",
        "prompt_kind": "unseen_task",
        "instruction": instruction,
        "context": question.context,
        "target_language": language,
        "references": list(question.answers),
        "metric": METRICS["question"],
    }
    return Item(f"{language}-{question.id}", language, (Spoken(question.question, language, voice.name),), values)
