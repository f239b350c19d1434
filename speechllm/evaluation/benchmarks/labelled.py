"""Labelled texts as spoken classification, several texts in one prompt: GLUE and XNLI, or any table with a label.

STS-B of GLUE is left out: it is a regression. Wordings and label words are ours; BLOOMZMMS takes those that BLOOMZ was
trained with, from public prompt collections.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset

from trainers.data.layouts.manifests import SUFFIXES, read_manifest
from trainers.targets.prompts import nearest

SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class LabelledTask:
    """
    A classification.

    Args:
        prompt: with `{column}` where the speech of that column's text stands; the audios are in this order.
        labels: what the data say -> the word that is to be answered. Empty: the data's own words, all that occur.
        column: of the label.
        source, config, split: on the Hub; `{language}` in `config` is the code.
    """

    name: str
    prompt: str
    labels: Mapping[str, str] = field(default_factory=dict)
    column: str = "label"
    source: str = ""
    config: str = ""
    split: str = "validation"

    @property
    def fields(self) -> list[str]:
        """The columns that are spoken, in the order of the prompt."""
        return SLOT.findall(self.prompt)


def _glue(name: str, prompt: str, labels: Sequence[tuple[str, str]], split: str = "validation") -> LabelledTask:
    """A task of GLUE, whose labels are numbered in this order and named."""
    words = {key: word for number, (named, word) in enumerate(labels) for key in (str(number), named)}
    return LabelledTask(name, prompt, words, source="nyu-mll/glue", config=name, split=split)


ENTAILMENT = (("entailment", "Yes"), ("neutral", "Maybe"), ("contradiction", "No"))
TWO_WAY = (("entailment", "Yes"), ("not_entailment", "No"))
EQUIVALENT = (("not_equivalent", "No"), ("equivalent", "Yes"))
INFER = "Suppose this is true: {%s}\nDoes it follow that {%s}? Answer Yes, %s."

TASKS = {
    task.name: task
    for task in (
        LabelledTask(
            "xnli",
            INFER % ("premise", "hypothesis", "No, or Maybe"),
            {key: word for number, (name, word) in enumerate(ENTAILMENT) for key in (str(number), name)},
            source="facebook/xnli",
            config="{language}",
            split="test",
        ),
        _glue("mnli", INFER % ("premise", "hypothesis", "No, or Maybe"), ENTAILMENT, "validation_matched"),
        _glue("rte", INFER % ("sentence1", "sentence2", "or No"), TWO_WAY),
        _glue("wnli", INFER % ("sentence1", "sentence2", "or No"), (TWO_WAY[1], TWO_WAY[0])),
        _glue("qnli", "Question: {question}\nText: {sentence}\nDoes the text answer it? Answer Yes, or No.", TWO_WAY),
        _glue(
            "mrpc",
            "First sentence: {sentence1}\nSecond sentence: {sentence2}\nDo they mean the same? Answer Yes, or No.",
            EQUIVALENT,
        ),
        _glue(
            "qqp",
            "First question: {question1}\nSecond question: {question2}\nDo they ask the same? Answer Yes, or No.",
            (("not_duplicate", "No"), ("duplicate", "Yes")),
        ),
        _glue(
            "sst2",
            "{sentence}\nIs this review positive, or negative? Answer with one word.",
            (("negative", "negative"), ("positive", "positive")),
        ),
        _glue(
            "cola",
            "{sentence}\nIs this correct English? Answer Yes, or No.",
            (("unacceptable", "No"), ("acceptable", "Yes")),
        ),
    )
}


def find_task(name: str, prompt: str | None = None, column: str = "label") -> LabelledTask:
    """
    A task of `TASKS`, or with a prompt one of the user's own, which takes its labels from the data.

    Raises:
        ValueError: an unknown name without a prompt, a known one with a prompt, or a prompt that speaks no column.
    """
    if prompt is None:
        if name not in TASKS:
            raise ValueError(
                f"There is no labelled task {name!r}.{nearest(name, TASKS)} For one of your own give its prompt too "
                "(labelled_prompt)."
            )
        return TASKS[name]
    if name in TASKS:
        raise ValueError(f"The labelled task {name} has a prompt. Give another name to a task with your own prompt.")
    task = LabelledTask(name, prompt, column=column)
    if not task.fields or len(set(task.fields)) < len(task.fields):
        raise ValueError(f"The prompt {prompt!r} must say where the speech stands, each column once, as in {{text}}.")
    return task


@dataclass(frozen=True)
class LabelledText:
    """A row: the texts by column, and the label's word; None where the data have none."""

    id: str
    texts: dict[str, str]
    label: str | None


def read_labelled(
    task: LabelledTask, language: str, source: str | None = None, split: str | None = None
) -> tuple[list[LabelledText], list[str]]:
    """
    The rows of a labelled set, and all labels.

    Args:
        source: a file (`.jsonl`, `.csv`, `.tsv`, `.parquet`), a folder with `{task}.{language}.jsonl` or another of
            these endings, or a Hub dataset, in place of the task's own.
        split: of a Hub dataset, in place of the task's own.

    Raises:
        FileNotFoundError: no such source.
        ValueError: columns are missing, or a label is unknown.
    """
    rows = _open(task, language, source, split)
    missing = [name for name in (*task.fields, task.column) if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"{source or task.source}: {task.name} needs the column {missing[0]!r}; found "
            f"{', '.join(rows.column_names)}."
        )
    feature = rows.features[task.column]
    names = feature.names if isinstance(feature, ClassLabel) else None
    given = [_label_name(value, names) for value in rows[task.column][:]]
    words = dict(task.labels) or {value: value for value in sorted({value for value in given if value is not None})}
    unknown = sorted({value for value in given if value is not None and value not in words})
    if unknown:
        raise ValueError(
            f"{source or task.source}: {task.name} has the label {unknown[0]!r}; known are {', '.join(words)}."
        )
    identities = rows["id"][:] if "id" in rows.column_names else rows["idx"][:] if "idx" in rows.column_names else None
    columns = [rows[name][:] for name in task.fields]
    texts = [
        LabelledText(
            id=f"{task.name}-{language}-{place if identities is None else identities[place]}",
            texts={name: (column[place] or "").strip() for name, column in zip(task.fields, columns, strict=True)},
            label=None if value is None else words[value],
        )
        for place, value in enumerate(given)
    ]
    return texts, list(dict.fromkeys(words.values()))


def _label_name(value: Any, names: Sequence[str] | None) -> str | None:
    """A label as the data name it; -1, as in GLUE's test sets, and an empty cell are none."""
    if value is None or value == -1 or value == "":
        return None
    return names[value] if names is not None and isinstance(value, int) else str(value)


def _open(task: LabelledTask, language: str, source: str | None, split: str | None) -> Dataset:
    path = Path(source).expanduser() if source is not None else None
    if path is not None and path.is_dir():
        stems = (f"{task.name}.{language}", f"{task.name}-{language}", task.name)
        endings = (*SUFFIXES, ".parquet")
        found = [path / (stem + ending) for stem in stems for ending in endings if (path / (stem + ending)).is_file()]
        if not found:
            raise FileNotFoundError(f"{path}: no file {stems[0]} with the ending {', '.join(endings)}.")
        path = found[0]
    if path is not None and path.is_file():
        if path.suffix == ".parquet":
            return load_dataset("parquet", data_files=str(path), split="train")
        return read_manifest(path, streaming=False, columns={}, find_names=False)[0]
    name = source or task.source
    if not name:
        raise ValueError(f"The task {task.name} has no source of its own. Give one: a file, a folder or a Hub id.")
    config = task.config.replace("{language}", language) or None
    try:
        return load_dataset(name, config, split=split or task.split)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{name}: no such file or folder here, and the Hub could not be asked for a dataset of this name "
            f"({error}). Check the path, or the connection."
        ) from error


def spoken_chat(prompt: str) -> list[dict]:
    """A chat of one user turn: a bare audio block in place of each `{column}` of the prompt."""
    pieces = SLOT.split(prompt)  # text, name, text, name, ..., text
    content = []
    for place, piece in enumerate(pieces):
        block = {"type": "text", "text": piece} if place % 2 == 0 else {"type": "audio"}
        content += [block] if piece else []
    return [{"role": "user", "content": content}]
