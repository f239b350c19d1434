"""Prompt pools: what the LLM is asked about an utterance, in YAML that people read and extend.

A pool is a folder of YAML files, each a mapping of tasks:

    summarise:
      description: The content in a few words.
      held_out: true                      # optional: the whole task is kept for evaluation
      max_new_tokens: 128                 # optional: limit of an answer's length
      held_out_prompts: [en/8]            # optional: these prompts are
      prompts:
        en:
          1: Summarise what is said.
          8: Give me the gist of it.
        de:
          1: Fasse das Gesagte zusammen.

A prompt's id is `task/language/number`. Numbers are written out, so that ids stay when prompts come and go.
`{audio}` in a prompt says where the speech stands; without it the speech comes first, on a line of its own
(`instruction_chat` of the processor). `{language}` stands for a language to translate to; the task then carries
`language_names`, for each prompt language the names of the languages by code.

Here are also the (prefix, postfix) templates of multi-instructional training (Denisov & Vu, arXiv 2404.10922): a pool
whose prompts all say `{audio}`, or one taken from a user's own prompt collection by `templates_from_prompts`.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from processing_speechllm.chat_messages import AUDIO, instruction_chat

TASK_FOLDER = Path(__file__).parent / "tasks"
TEMPLATE_FOLDER = Path(__file__).parent / "templates"
TASK_KEYS = ("description", "held_out", "held_out_prompts", "language_names", "max_new_tokens", "prompts")
LANGUAGE = "{language}"
SENTINEL = "THE_SPEECH_STANDS_HERE"
SPLITS = ("train", "unseen_prompts", "unseen_tasks")


@dataclass(frozen=True)
class Prompt:
    """One wording of a task. `language_names` is empty unless the text says `{language}`."""

    id: str
    language: str
    text: str
    held_out: bool = False
    language_names: dict[str, str] = field(default_factory=dict, hash=False)

    def wording(self, spoken: Sequence[str | None], rng: random.Random) -> tuple[str, str | None]:
        """The text with `{language}` filled in by a language that none of the `spoken` codes names, and its code."""
        if LANGUAGE not in self.text:
            return self.text, None
        codes = [code for code in self.language_names if code not in spoken]
        code = rng.choice(codes or list(self.language_names))
        return self.text.replace(LANGUAGE, self.language_names[code]), code


@dataclass(frozen=True)
class Task:
    """A task and its wordings, in the order of languages and numbers in the file; None is no limit of its own."""

    name: str
    prompts: tuple[Prompt, ...]
    held_out: bool = False
    description: str = ""
    max_new_tokens: int | None = None

    def only(self, prompts: Iterable[Prompt]) -> "Task":
        """The same task with these of its prompts."""
        return replace(self, prompts=tuple(prompts))


def user_turn(wording: str, audios: int) -> list[dict]:
    """
    A chat of one user turn: `audios` audio blocks without source, and the wording around or after them.

    An empty wording gives the audio alone (instruction-free, AZeroS).
    """
    return instruction_chat([None] * audios, wording or AUDIO)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML says that keys are unique; PyYAML silently keeps the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f"{key!r} stands twice (line {key_node.start_mark.line + 1}). Remove one of the two.")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_tasks(folder: str | Path | None = None) -> list[Task]:
    """
    All tasks of the YAML files in a folder, by file name and then in file order.

    Args:
        folder: a pool; None is the packaged task pool, `TEMPLATE_FOLDER` the packaged templates.

    Raises:
        ValueError: no YAML there, unknown keys, wrong types, duplicate tasks or wordings; with file, task and remedy.
    """
    folder = TASK_FOLDER if folder is None else Path(folder)
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if not files:
        raise ValueError(
            f"No YAML files in {folder}. Give a folder of prompt pools, or leave it out for the packaged."
        )
    tasks, homes = [], {}
    for file in files:
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
            if not isinstance(content, dict):
                raise ValueError("the file must be a mapping of task names to tasks.")
            for name, entry in content.items():
                if name in homes:
                    raise ValueError(f"task {name!r} is also in {homes[name]}. Rename one of the two.")
                homes[name] = file.name
                tasks.append(_parse_task(name, entry))
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{file}: {error}") from error
    _refuse_duplicates(tasks, folder)
    return tasks


def _parse_task(name: Any, entry: Any) -> Task:
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"a task's name must be text without a slash, not {name!r}.")
    if not isinstance(entry, dict):
        raise ValueError(f"task {name!r} must be a mapping with the keys {', '.join(TASK_KEYS)}.")
    for key in entry:
        if key not in TASK_KEYS:
            raise ValueError(f"task {name!r} has the unknown key {key!r}.{nearest(key, TASK_KEYS)}")
    pools = entry.get("prompts")
    if not isinstance(pools, dict) or not pools:
        raise ValueError(f"task {name!r} needs prompts: a mapping of language codes to numbered prompts.")
    held_out = entry.get("held_out", False)
    if not isinstance(held_out, bool):
        raise ValueError(f"task {name!r}: held_out must be true or false, not {held_out!r}.")
    limit = entry.get("max_new_tokens")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"task {name!r}: max_new_tokens must be a whole number from 1, not {limit!r}.")
    marked = entry.get("held_out_prompts", [])
    names = entry.get("language_names", {})
    if not isinstance(marked, list) or not isinstance(names, dict):
        raise ValueError(f"task {name!r}: held_out_prompts must be a list and language_names a mapping.")
    prompts = []
    for language, pool in pools.items():
        if not isinstance(language, str):  # YAML reads a bare `no` as False
            raise ValueError(f'task {name!r}: the language {language!r} is no text. Put it in quotes, as in "no".')
        if not isinstance(pool, dict) or not pool:
            raise ValueError(f"task {name!r}, {language}: prompts must be numbered, as in `1: What is said?`.")
        for number, text in pool.items():
            where = f"task {name!r}, {language}/{number}"
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{where}: the number must be a whole number from 1.")
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{where}: the prompt must be text, not {text!r}. Put it in quotes.")
            if text.count(AUDIO) > 1:
                raise ValueError(f"{where}: {AUDIO} stands more than once. Keep one.")
            targets = names.get(language, {}) if LANGUAGE in text else {}
            if LANGUAGE in text and (not isinstance(targets, dict) or not targets):
                raise ValueError(f"{where}: {LANGUAGE} needs language_names for {language}, as in `de: German`.")
            if not all(isinstance(item, str) for pair in targets.items() for item in pair):
                raise ValueError(f"{where}: codes and names in language_names must be text. Put them in quotes.")
            key = f"{language}/{number}"
            prompts.append(Prompt(f"{name}/{key}", language, text, held_out or key in marked, targets))
    known = [prompt.id.partition("/")[2] for prompt in prompts]
    for key in marked:
        if key not in known:
            raise ValueError(f"task {name!r}: held_out_prompts names {key!r}.{nearest(str(key), known)}")
    return Task(name, tuple(prompts), held_out, str(entry.get("description", "")), limit)


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` with the nearest of the known words, or all of them."""
    known = list(known)
    close = get_close_matches(str(word), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def _refuse_duplicates(tasks: list[Task], folder: Path) -> None:
    """The same wording twice would be drawn twice as often, or be trained on though held out."""
    seen = {}
    for prompt in (prompt for task in tasks for prompt in task.prompts):
        first = seen.setdefault(" ".join(prompt.text.casefold().split()), prompt)
        if first is not prompt:
            raise ValueError(f"{folder}: {first.id} and {prompt.id} have the same wording. Remove one of the two.")


def select_prompts(
    tasks: list[Task],
    split: str = "train",
    names: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
) -> list[Task]:
    """
    The tasks and prompts of one side of the held-out marks (prompt and task generalisation of MTBI).

    Args:
        split: `"train"`: prompts without any mark; `"unseen_prompts"`: marked prompts of unmarked tasks;
            `"unseen_tasks"`: all prompts of marked tasks.
        names: only these tasks; None is all.
        languages: only prompts in these languages; None is all.

    Raises:
        ValueError: an unknown task or language, or nothing left.
    """
    for wanted, known in (
        (names or [], [task.name for task in tasks]),
        (languages or [], sorted({prompt.language for task in tasks for prompt in task.prompts})),
    ):
        for word in wanted:
            if word not in known:
                raise ValueError(f"The prompt pool has no {word!r}.{nearest(word, known)}")
    chosen = []
    for task in tasks:
        if task.held_out != (split == "unseen_tasks") or names is not None and task.name not in names:
            continue
        prompts = tuple(
            prompt
            for prompt in task.prompts
            if (languages is None or prompt.language in languages)
            and (task.held_out or prompt.held_out == (split == "unseen_prompts"))
        )
        if prompts:
            chosen.append(task.only(prompts))
    left_out = set(names or []) - {task.name for task in chosen}
    if left_out or not chosen:
        raise ValueError(
            f"No prompts are left of {', '.join(sorted(left_out)) or 'the pool'} with prompt_split={split!r} and "
            f"prompt_languages={languages}. Choose another split (train, unseen_prompts, unseen_tasks) or languages."
        )
    return chosen


def draw_prompts(
    tasks: list[Task], count: int, rng: random.Random, weights: Mapping[str, float] | None = None
) -> list[tuple[Task, Prompt]]:
    """`count` random prompts, none twice. Tasks are drawn uniformly and without repetition as far as they go, or each
    time by their weights (1 where none is given), as one draws from a pool that has more of some; then a prompt of the
    task."""
    drawn, unused = [], {task.name: list(task.prompts) for task in tasks}
    while len(drawn) < count:
        open_tasks = [task for task in tasks if unused[task.name]]
        if not open_tasks:
            total = sum(len(task.prompts) for task in tasks)
            raise ValueError(
                f"{count} different prompts per row are asked for, but the pool has {total}. Ask for less."
            )
        if weights is None:
            chosen = rng.sample(open_tasks, min(len(open_tasks), count - len(drawn)))
        else:
            shares = [weights.get(task.name, 1.0) for task in open_tasks]
            chosen = rng.choices(open_tasks, shares if any(shares) else None)
        for task in chosen:
            pool = unused[task.name]
            drawn.append((task, pool.pop(rng.randrange(len(pool)))))
    return drawn


def by_language(tasks: list[Task]) -> dict[str | None, list[Task]]:
    """The tasks with only the prompts of a language, by its code, and under None as they are."""
    pools: dict[str | None, list[Task]] = {None: tasks}
    for language in sorted({prompt.language for task in tasks for prompt in task.prompts}):
        of_language = [task.only(p for p in task.prompts if p.language == language) for task in tasks]
        pools[language] = [task for task in of_language if task.prompts]
    return pools


def choose_pool(pools: dict[str | None, list[Task]], language: str | None, count: int) -> list[Task]:
    """The prompts for an utterance: in its language, where there are `count` of them; else in English; else all."""
    for code in (language, "en"):
        if sum(len(task.prompts) for task in pools.get(code, []) if code is not None) >= count:
            return pools[code]
    return pools[None]


def templates_from_prompts(
    prompts: Iterable[str | Callable[[str], str]],
    sentinel: str = SENTINEL,
    name: str = "collection",
    language: str = "en",
) -> tuple[Task, Counter]:
    """
    (Prefix, postfix) templates of a user's own prompt collection, as BLOOMZMMS took 4,300 from public ones: render
    each prompt with a sentinel in place of the text, and split there.

    Args:
        prompts: prompts rendered with the sentinel, or functions that render one with the text they are given.
        sentinel: a string that occurs in no prompt otherwise.
        name: name of the task that the templates make up.
        language: code of the prompts' language.

    Returns:
        the task, whose prompts are numbered by their place in the collection, and counts: `kept`, and dropped for
        `no_sentinel`, `several_sentinels`, `reserved` (the prompt itself says `{audio}` or `{language}`) or
        `duplicate`.

    Raises:
        ValueError: no template is left.
    """
    kept, counts, seen = [], Counter(), set()
    for number, prompt in enumerate(prompts, start=1):
        rendered = prompt if isinstance(prompt, str) else prompt(sentinel)
        text = rendered.replace(sentinel, AUDIO)
        key = " ".join(text.casefold().split())
        if rendered.count(sentinel) != 1:
            reason = "several_sentinels" if sentinel in rendered else "no_sentinel"
        elif AUDIO in rendered or LANGUAGE in rendered:
            reason = "reserved"
        elif key in seen:
            reason = "duplicate"
        else:
            reason = "kept"
            seen.add(key)
            kept.append(Prompt(f"{name}/{language}/{number}", language, text))
        counts[reason] += 1
    if not kept:
        raise ValueError(
            f"None of {sum(counts.values())} prompts gave a template ({dict(counts)}). Each must hold {sentinel!r} "
            "exactly once, in place of the text."
        )
    return Task(name, tuple(kept)), counts


def save_tasks(tasks: Iterable[Task], file: str | Path) -> None:
    """Write tasks as a YAML file that `load_tasks` reads back."""
    content = {}
    for task in tasks:
        entry = content[task.name] = {"description": task.description, "held_out": task.held_out}
        marked = [prompt.id.partition("/")[2] for prompt in task.prompts if prompt.held_out and not task.held_out]
        entry["held_out_prompts"] = marked
        if task.max_new_tokens is not None:
            entry["max_new_tokens"] = task.max_new_tokens
        entry["prompts"] = {}
        for prompt in task.prompts:
            number = int(prompt.id.rpartition("/")[2])
            entry["prompts"].setdefault(prompt.language, {})[number] = prompt.text
        entry["language_names"] = {
            prompt.language: dict(prompt.language_names) for prompt in task.prompts if prompt.language_names
        }
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=float("inf"))
    Path(file).write_text(text, encoding="utf-8")
