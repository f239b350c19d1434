"""Prompt and task generalisation as MTBI measures them (Xie et al., arXiv 2505.18644), over any transcribed set.

Paper: a benchmark of *prompt generalisation* (prompts not seen in training, of a seen task) and *task generalisation*
(unseen tasks); its prompts and data are not published. Here both follow the held-out marks of the task pool that
targets are generated from, so a model trained with that pool has seen what is called seen and nothing else; a model
trained otherwise has seen what its training says.

Three folders, by what can score the answer: `transcribe` (word error rate), `question` (exact match and F1 against an
answer that follows from the transcript), `instruct` (a judge). All carry checks of form where the prompt asks for one.
"""

import json
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.targets.prompts import AUDIO, LANGUAGE, Prompt, Task, load_tasks, select_prompts, user_turn

from ..normalise import base_code
from .building import Plan
from .forms import answer_language, form_of
from .recordings import Utterance, read_recordings
from .rows import METRICS, PROMPT_KINDS, Dropped, Item, Recorded, draw_order, source_name

WORD_TASKS = {"first_word", "last_word", "count_words"}
# Where a word is not what white space separates: nothing does, or it separates syllables.
WITHOUT_WORD_MARKS = {"zh", "yue", "ja", "th", "lo", "my", "km", "bo", "vi"}
SCORED_BY = {"repeat": "transcribe", "language": "question", **dict.fromkeys(WORD_TASKS, "question")}
DESCRIPTION = """\
Prompt and task generalisation after MTBI (arXiv 2505.18644): every recording under a prompt that training saw \
(`seen`), another wording of the same task (`unseen prompt`) and a task that training did not see (`unseen task`), \
after the held-out marks of speechllm's task pool. `task` and `prompt_id` name the prompt. The paper's own prompts \
and data are not published, so figures are comparable between models on this set only. """
SCORING = {
    "transcribe": "Here: the tasks that the transcript answers; `reference` is the transcript.",
    "question": (
        "Here: the tasks whose answer follows from the transcript by rule (first and last word, number of words) or "
        "from its language; `references` holds it. A right answer in a sentence loses exact match and part of F1."
    ),
    "instruct": "Here: the tasks that only a judge can score; there is no reference.",
}


@dataclass(frozen=True)
class MTBISettings:
    """
    What `plan_mtbi` draws from.

    Args:
        source, split, name, columns, language, languages: as in `read_recordings`.
        items: utterances per language; None is all. Each is asked once per kind of prompt.
        prompt_languages: of the prompts; None is the language of the speech, English where the pool has none.
        tasks: names of tasks; None is all.
        task_folder: another task pool.
        license: of the source.
        seed: of the draw of utterances and prompts.
    """

    source: str
    split: str = "test"
    name: str | None = None
    columns: dict[str, str] | None = None
    language: str | None = None
    languages: Sequence[str] | None = None
    items: int | None = 250
    prompt_languages: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    task_folder: str | Path | None = None
    license: str | None = None
    seed: int = 0


def plan_mtbi(settings: MTBISettings) -> list[Plan]:
    """
    Up to three plans, one per way of scoring; each has rows of all kinds of prompts that it has tasks for.

    Utterances are drawn by a hash of seed and id, the same for all kinds. The tasks take turns over them, so that all
    are asked equally often, and in the same order, so that a recording that is asked a seen prompt is asked an unseen
    one of the same task: kinds differ by the wording alone. The wording is drawn at random.

    Raises:
        FileNotFoundError, ValueError: the source or the pool cannot be used.
    """
    recordings, utterances, dropped = read_recordings(
        settings.source, settings.split, settings.name, settings.columns, settings.language, settings.languages
    )
    pool = load_tasks(settings.task_folder)
    items: dict[str, list[Item]] = {scored_by: [] for scored_by in SCORING}
    for language, members in sorted(utterances.items()):
        order = draw_order(settings.seed, [member.id for member in members])
        chosen = order if settings.items is None else order[: settings.items]
        dropped += [Dropped(members[place].id, language, "not_drawn") for place in order[len(chosen) :]]
        for split, kind in PROMPT_KINDS.items():
            tasks, unasked = _tasks(pool, settings, split, language)
            dropped += [Dropped(f"{kind}/{task}", language, "task_not_asked", reason) for task, reason in unasked]
            for turn, place in enumerate(chosen if tasks else []):
                task = tasks[turn % len(tasks)]
                item = _item(members[place], task, kind, settings.seed, pool)
                items[SCORED_BY.get(task.name, "instruct")].append(item)
    described = {
        "split": settings.split,
        "languages": settings.languages,
        "items": settings.items,
        "prompt_languages": settings.prompt_languages,
        "tasks": settings.tasks,
        "seed": settings.seed,
    }
    return [
        Plan(
            name=f"mtbi/{scored_by}",
            task=scored_by,
            title=f"MTBI generalisation, {scored_by}",
            description=DESCRIPTION + text,
            source=source_name(settings.source),
            license=settings.license,
            items=items[scored_by],
            dropped=dropped,
            settings=described,
            recordings=recordings,
        )
        for scored_by, text in SCORING.items()
        if items[scored_by]
    ]


def _tasks(
    pool: list[Task], settings: MTBISettings, split: str, language: str
) -> tuple[list[Task], list[tuple[str, str]]]:
    """The tasks to ask about speech in a language, shuffled, and those that cannot be, with the reason."""
    code = base_code(language)
    known = {prompt.language for task in pool for prompt in task.prompts}
    languages = settings.prompt_languages or [code if code in known else "en"]
    names = settings.tasks
    if names is not None:  # `select_prompts` wants each of its names to have prompts in the split
        held_out = {task.name for task in pool if task.held_out}
        names = [name for name in names if (name in held_out) == (split == "unseen_tasks")]
        if not names:
            return [], []
    tasks, unasked = [], []
    for task in select_prompts(pool, split, names, languages):
        if task.name in WORD_TASKS and code in WITHOUT_WORD_MARKS:
            unasked.append((task.name, "its writing does not separate words"))
        elif task.name == "language" and not all(_language_name(pool, p.language, code) for p in task.prompts):
            unasked.append((task.name, "the pool has no name for the language"))
        else:
            tasks.append(task)
    random.Random(f"{settings.seed}|tasks|{language}").shuffle(tasks)
    return tasks, unasked


def _item(utterance: Utterance, task: Task, kind: str, seed: int, pool: list[Task]) -> Item:
    rng = random.Random(f"{seed}|prompt|{kind}|{utterance.id}")
    prompt = rng.choice(task.prompts)
    wording, target = _wording(prompt, utterance.language, rng)
    scored_by = SCORED_BY.get(task.name, "instruct")
    form = form_of(task, prompt, utterance.language, target)
    if " " not in utterance.text and base_code(utterance.language) not in WITHOUT_WORD_MARKS:
        form.pop("not_transcript", None)  # of a single word: it may well be the answer
    values = {
        "recording": utterance.id,
        "task": task.name,
        "prompt_kind": kind,
        "prompt_id": prompt.id,
        **question(wording),
        "target_language": answer_language(task, prompt, utterance.language, target),
        **_answer(task.name, prompt, utterance, pool),
        "metric": METRICS[scored_by],
        "form": json.dumps(form) if form else None,
    }
    return Item(f"{kind}-{utterance.id}", utterance.language, (Recorded(utterance.row, utterance.text),), values)


def question(wording: str, audios: int = 1) -> dict[str, Any]:
    """A prompt as the column that can hold it: `messages` if it says where the speech stands, else `instruction`."""
    return {"messages": user_turn(wording, audios)} if AUDIO in wording else {"instruction": wording}


def _wording(prompt: Prompt, language: str, rng: random.Random) -> tuple[str, str | None]:
    """The prompt with `{language}` filled in by another language than that of the speech, and that language's code."""
    if LANGUAGE not in prompt.text:
        return prompt.text, None
    codes = [code for code in prompt.language_names if code != base_code(language)]
    code = rng.choice(codes or list(prompt.language_names))
    return prompt.text.replace(LANGUAGE, prompt.language_names[code]), code


def _answer(task: str, prompt: Prompt, utterance: Utterance, pool: list[Task]) -> dict[str, Any]:
    """The columns with the right answer, where the transcript tells it."""
    words = words_of(utterance.text)
    match task:
        case "repeat":
            return {"reference": utterance.text}
        case "first_word":
            return {"references": words[:1]}
        case "last_word":
            return {"references": words[-1:]}
        case "count_words":
            return {"references": [str(len(words))]}
        case "language":
            name = _language_name(pool, prompt.language, base_code(utterance.language))
            german = prompt.language == "de" and name.endswith("e")  # the pool has it as in "ins Deutsche"
            return {"references": [name[:-1]] if german else [name]}
    return {}


def words_of(text: str) -> list[str]:
    """What white space separates, without punctuation around it; `don't` and `e-mail` are one word."""

    def core(word: str) -> str:
        while word and not _is_letter(word[0]):
            word = word[1:]
        while word and not _is_letter(word[-1]):
            word = word[:-1]
        return word

    return [word for part in text.split() if (word := core(part))]


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNMS"


def _language_name(pool: list[Task], prompt_language: str, code: str) -> str | None:
    """A language's name in another, as a prompt of the pool that asks for translations has it."""
    for prompt in (prompt for task in pool for prompt in task.prompts):
        if prompt.language == prompt_language and code in prompt.language_names:
            return prompt.language_names[code]
    return None
