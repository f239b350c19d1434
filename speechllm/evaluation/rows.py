"""The rows of an evaluation: read by the loader of training, each one question with what scores its answer."""

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset

from processing_speechllm.chat_messages import instruction_chat
from trainers.data.bad_rows import BadRows
from trainers.data.chats import read_chat
from trainers.data.layouts.layout import SPLIT_NAMES
from trainers.data.layouts.recognition import local_splits
from trainers.data.loading import load_rows, source_name, with_durations
from trainers.targets.prompts import Prompt, Task, load_tasks, select_prompts, user_turn

from .chats import check_audio_blocks, content_in_words, with_context, without_answer
from .config import EvaluationConfig
from .forms import read_form
from .normalise import base_code, loose, whisper_normalised
from .sources import join_sources

OWN_PROMPTS = Path(__file__).parent / "prompts"
OWN_TASKS = {
    "transcribe": "repeat",
    "translate": "translate",
    "question": "spoken_question",
    "classify": "choose_label",
}
KINDS = ("seen", "unseen_prompt", "unseen_task")
TEXTS = ("instruction", "context", "reference", "label", "target_language", "prompt_kind", "task", "recording")
TEXTS_OR_LISTS = ("text", "language")
LISTS = ("references", "labels")


@dataclass(frozen=True)
class Item:
    """
    One question: a row of the data with its chat.

    Args:
        id: unique.
        row: its place in the data, where its audio is.
        chat: messages with a bare block `{"type": "audio"}` per audio, up to where the answer begins.
        texts: transcripts of the audios, or None.
        references: right answers; of `classify` the label.
        labels: all labels of `classify`, else empty.
        language, target_language: codes of speech and answer, or None.
        prompt_kind: of `KINDS`, or None if nobody says.
        task: name of what is asked.
        form: checks of [`read_form`].
        recording: what rows about the same recording share.
        seconds: of audio.
    """

    id: str
    row: int
    chat: list[dict]
    texts: list[str] | None
    references: list[str]
    labels: list[str]
    language: str | None
    target_language: str | None
    prompt_kind: str | None
    task: str
    form: dict[str, Any]
    recording: str
    seconds: float

    def read(self, texts: Sequence[str]) -> list[dict]:
        """The chat with these transcripts in place of the audios, as training gives it to the teacher."""
        return read_chat(self.chat, list(texts))

    @property
    def transcript(self) -> str | None:
        """What is said in all audios."""
        return None if self.texts is None else " ".join(self.texts)

    @property
    def asked(self) -> str:
        """The chat in words, audios as [audio]; for people."""
        return "\n".join(map(content_in_words, (message["content"] for message in self.chat)))


@dataclass
class Rows:
    """Items to ask about, the data they are from, and the rows that cannot be used: `{"id", "source", "finding"}`."""

    data: Dataset
    items: list[Item]
    bad: list[dict[str, str]] = field(default_factory=list)

    def audio(self, item: Item) -> list[Any]:
        """The item's undecoded audios."""
        audio = self.data[item.row]["audio"]
        return audio if isinstance(audio, list) else [audio]


def load_evaluation_rows(config: EvaluationConfig, folder: Path | None) -> Rows:
    """
    The rows of all datasets, as questions.

    Args:
        config: settings.
        folder: where unreadable audio is listed, or None.

    Raises:
        FileNotFoundError, ValueError: data that cannot be read, columns that are missing, more unusable rows than
            `max_bad_share`.
    """
    bad_rows = BadRows(folder, max_share=1.0, minimum=1)  # judged below, with what else is found
    parts = []
    for source in config.dataset:
        split = config.dataset_split or default_split(source)
        part = load_rows(
            source,
            split,
            False,
            config.dataset_config,
            config.columns,
            config.dataset_revision,
            config.dataset_language,
            transcribed=False,
            say=partial(print, file=sys.stderr, flush=True),
        )
        parts.append(part)
    data = join_sources(parts, config.dataset)
    check_columns(data, config)
    data = with_class_names(data)
    total = len(data)
    if config.limit is not None and config.limit < total:
        data = data.select([place * total // config.limit for place in range(config.limit)])
    seen = len(data)
    data = with_durations(data, bad_rows)
    rows = make_items(data, config)
    rows.bad = [*bad_rows.read(), *rows.bad]
    check_bad_share(rows.bad, seen, config.max_bad_share)
    return rows


def default_split(source: str) -> str:
    """`test`; of local data without it `train`, which single files are, or else the only split there is, which is
    said."""
    if not Path(source).expanduser().exists():
        return "test"
    names = local_splits(source, transcribed=False)
    known = [SPLIT_NAMES.get(name.replace("_", "-").split("-")[0]) for name in names]
    for split in ("test", "train"):
        if split in known:
            return split
    if len(names) == 1:
        print(f"{source}: scored on {names[0]!r}, the only split there is", file=sys.stderr, flush=True)
        return names[0]
    return "train"


def check_bad_share(bad: Sequence[dict[str, str]], rows: int, allowed: float) -> None:
    """
    Refuses results over what is left of too many rows.

    Raises:
        ValueError: more than the allowed share of the rows is bad; with the first of them.
    """
    if len(bad) > allowed * rows:
        first = "".join(f"\n- {row['id']} ({row['source']}): {row['finding']}" for row in bad[:3])
        raise ValueError(
            f"{len(bad)} of {rows} rows cannot be used, more than the {allowed:.1%} allowed. The first:{first}\n"
            "Repair or remove them, or raise max_bad_share if the data is known to be so."
        )


def check_columns(data: Dataset, config: EvaluationConfig) -> None:
    """
    Refuses data without the columns that the task and the baselines need.

    Raises:
        ValueError: which, what is there, and the remedy.
    """
    found = set(data.column_names)
    needs = {
        "transcribe": [("text", "reference", "references", "messages")],
        "translate": [("reference", "references", "messages")],
        "question": [("reference", "references", "messages")],
        "classify": [("label",)],
        "instruct": [("instruction", "messages")],
    }[config.task]
    if config.task == "instruct" and config.instruction is not None:
        needs = []
    if config.text_bound:
        needs = [*needs, ("text",)]
    for options in needs:
        if not found.intersection(options):
            reason = "the text bound" if options == ("text",) else f"task {config.task!r}"
            wanted = " or ".join(map(repr, options))
            raise ValueError(
                f"{reason[0].upper()}{reason[1:]} needs the column {wanted}; the data have "
                f"{', '.join(data.column_names)}. If it has another name, say so: "
                f'--columns \'{{"its name": "{options[0]}"}}\'.'
            )


def with_class_names(data: Dataset) -> Dataset:
    """The data with the names of classes (`ClassLabel` of `datasets`) in place of their numbers; -1 is none."""
    for column, feature in data.features.items():
        if isinstance(feature, ClassLabel):
            names = [feature.names[n] if n is not None and n >= 0 else None for n in data[column][:]]
            data = data.remove_columns(column).add_column(column, names)
    return data


def make_items(data: Dataset, config: EvaluationConfig) -> Rows:
    """Questions of all rows; rows that lack what their task needs are set aside with the finding."""
    pool = _pool(config)
    given = data["label"][:] if "label" in data.column_names else []
    labels = sorted({label for label in given if label and isinstance(label, str)})
    items, bad, used = [], [], set()
    for number, row in enumerate(data):
        try:
            if not row["id"]:
                raise ValueError("its id is empty; give every row its own, or leave the column out")
            if row["id"] in used:
                raise ValueError("its id stands twice in the data; give every row its own")
            used.add(row["id"])
            items.append(make_item(number, row, config, pool, labels))
        except ValueError as error:
            bad.append({"id": row["id"], "source": source_name(row["audio"]), "finding": str(error)})
    return Rows(data, items, bad)


def make_item(number: int, row: dict[str, Any], config: EvaluationConfig, pool: list[Task], labels: list[str]) -> Item:
    """
    The question of one row.

    Args:
        number: the row's place in the data.
        row: the row, audio undecoded.
        config: settings.
        pool: the task's own prompts, or empty.
        labels: all labels of the data, for rows without `labels`.

    Raises:
        ValueError: what the row lacks, in a half-sentence.
    """
    _check_kinds(row)
    audio = row["audio"] if isinstance(row["audio"], list) else [row["audio"]]
    if not audio or None in audio:
        raise ValueError("it has no audio")
    texts = row.get("text")
    texts = texts if isinstance(texts, list) else None if texts is None else [texts]
    if config.text_bound and (texts is None or not all(text and text.strip() for text in texts)):
        raise ValueError("no transcript, which the text bound reads")
    if texts is not None and not all(texts):
        texts = None
    language = row.get("language")
    language = (language[0] if isinstance(language, list) and language else language) or None
    target = row.get("target_language") or config.target_language
    own_labels = list(row.get("labels") or labels) if config.task == "classify" else []
    chat, kind, name, answer = _chat(row, len(audio), config, pool, own_labels, target)
    check_audio_blocks(chat, len(audio), texts)
    if target is None and config.task in ("transcribe", "question"):
        target = language
    references = _references(row, answer, texts, config)
    if config.task == "classify" and row.get("label") not in own_labels:
        raise ValueError(f"the label {row.get('label')!r} is not among its labels ({', '.join(own_labels[:8])})")
    if same := confusable_labels(own_labels):
        raise ValueError(f"its labels {', '.join(map(repr, same))} differ in case or punctuation only")
    _check_references(references, target or language, config)
    return Item(
        id=row["id"],
        row=number,
        chat=chat,
        texts=texts,
        references=references,
        labels=own_labels,
        language=language,
        target_language=target,
        prompt_kind=kind,
        task=name,
        form=read_form(row.get("form")),
        recording=row.get("recording") or _recording(audio) or row["id"],
        seconds=row["duration"],
    )


def _check_kinds(row: dict[str, Any]) -> None:
    """Refuses values that are not of the kind of their column, as numbers in place of labels."""
    for name, value in row.items():
        if value is None or name not in (*TEXTS, *TEXTS_OR_LISTS, *LISTS):
            continue
        if name in LISTS and not isinstance(value, list):
            raise ValueError(f"{name} must be a list of texts, not {value!r}")
        parts = value if isinstance(value, list) and name not in TEXTS else [value]
        wrong = [part for part in parts if not isinstance(part, str) and (part is not None or name in LISTS)]
        if wrong:
            raise ValueError(f"{name} must be text, not {wrong[0]!r}")


def _recording(audio: list[Any]) -> str | None:
    """The paths of a row's audios, where they have one."""
    paths = [(part or {}).get("path") for part in audio]
    return "+".join(paths) if paths and all(paths) else None


def _references(
    row: dict[str, Any], answer: str | None, texts: list[str] | None, config: EvaluationConfig
) -> list[str]:
    if config.task == "classify":
        return [row["label"]] if row.get("label") else []
    given = list(row.get("references") or [])
    given += [row["reference"]] if row.get("reference") is not None else []
    given = given or ([answer] if answer is not None else [])
    if not given and config.task == "transcribe" and texts is not None:
        given = [" ".join(texts)]
    return given


def _check_references(references: list[str], language: str | None, config: EvaluationConfig) -> None:
    if config.task == "instruct":
        return
    if not references:
        raise ValueError("no reference")
    if not all(reference.strip() for reference in references):
        raise ValueError("an empty reference")
    if config.task == "transcribe" and not all(whisper_normalised(r, language) for r in references):
        raise ValueError(f"nothing is left of the reference {references[0]!r} after Whisper's normaliser")


def _chat(
    row: dict[str, Any],
    audios: int,
    config: EvaluationConfig,
    pool: list[Task],
    labels: list[str],
    target: str | None,
) -> tuple[list[dict], str | None, str, str | None]:
    """A row's chat, its kind of prompt, the name of its task, and the answer that its messages bring."""
    kind, name = row.get("prompt_kind"), row.get("task") or config.task
    if kind is not None and kind not in KINDS:
        raise ValueError(f"prompt_kind is {kind!r}, not one of {', '.join(KINDS)}")
    context = row.get("context")
    if row.get("messages"):
        chat, answer = without_answer(row["messages"])
        if context is not None:
            raise ValueError("it has messages and a context; put the context into a message")
        return chat, kind, name, answer
    instruction = row.get("instruction")
    if instruction is None:
        instruction = config.instruction
    if instruction is not None:
        if not instruction.strip():
            raise ValueError("an empty instruction")
        return instruction_chat([None] * audios, with_context(instruction, context)), kind, name, None
    if not pool:
        raise ValueError("no instruction")
    prompt = _draw(pool, row, config)
    if config.task == "translate" and (target is None or base_code(target) not in prompt.language_names):
        raise ValueError(
            f"no instruction, and the language to translate to is {target!r}; give target_language, one of "
            f"{', '.join(prompt.language_names)}, or an instruction"
        )
    wording = prompt.text.replace("{language}", prompt.language_names.get(base_code(target), ""))
    if labels:
        wording = f"{wording}\n{', '.join(labels)}"
    chat = user_turn(with_context(wording, context), audios)
    return chat, "unseen_prompt" if prompt.held_out else "seen", name, None


def _pool(config: EvaluationConfig) -> list[Task]:
    """The prompts of the task's own instructions."""
    if config.task not in OWN_TASKS:
        return []
    name = OWN_TASKS[config.task]
    tasks = [task for folder in (None, OWN_PROMPTS) for task in load_tasks(folder) if task.name == name]
    splits = {"all": ("train", "unseen_prompts"), "seen": ("train",), "unseen": ("unseen_prompts",)}[config.prompts]
    return [task for split in splits for task in select_prompts(tasks, split)]


def _draw(pool: list[Task], row: dict[str, Any], config: EvaluationConfig) -> Prompt:
    """A prompt of the pool for a row, by the seed and the row's id; English where its language has none."""
    prompts = [prompt for task in pool for prompt in task.prompts]
    spoken = row.get("language")
    spoken = spoken[0] if isinstance(spoken, list) else spoken
    wanted = base_code(spoken) if config.prompt_language == "row" else config.prompt_language
    known = {prompt.language for prompt in prompts}
    if config.prompt_language != "row" and wanted not in known:
        raise ValueError(f"prompt_language {wanted!r} has no instructions; known: {', '.join(sorted(known))}")
    language = wanted if wanted in known else "en"
    options = [prompt for prompt in prompts if prompt.language == language]
    return random.Random(f"{config.seed}|prompt|{row['id']}").choice(options)


def confusable_labels(labels: Sequence[str]) -> list[str]:
    """Labels that scoring cannot tell apart, for differing in case or punctuation at their ends only."""
    uses = Counter(loose(label) for label in labels)
    return [label for label in labels if uses[loose(label)] > 1]


__all__ = [
    "Item",
    "Rows",
    "check_bad_share",
    "check_columns",
    "confusable_labels",
    "load_evaluation_rows",
    "make_item",
    "make_items",
    "with_class_names",
]
