"""Labelled texts as spoken classification, several texts in one prompt: GLUE and XNLI, or any table with a label.

STS-B of GLUE is left out: it is a regression. Wordings and label words are ours; BLOOMZMMS takes those that BLOOMZ was
trained with, from public prompt collections.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import ClassLabel, Dataset, load_dataset

from trainers.data.layouts.layout import SPLIT_NAMES
from trainers.data.layouts.manifests import SUFFIXES, read_manifest
from trainers.targets.prompts import nearest

from ..normalise import base_code
from ..rows import confusable_labels
from .recordings import text_cells

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
        language: of the texts at `source`, where that has only one.
    """

    name: str
    prompt: str
    labels: Mapping[str, str] = field(default_factory=dict)
    column: str = "label"
    source: str = ""
    config: str = ""
    split: str = "validation"
    language: str = ""

    @property
    def fields(self) -> list[str]:
        """The columns that are spoken, in the order of the prompt."""
        return SLOT.findall(self.prompt)


def _glue(name: str, prompt: str, labels: Sequence[tuple[str, str]], split: str = "validation") -> LabelledTask:
    """A task of GLUE, whose labels are numbered in this order and named."""
    words = {key: word for number, (named, word) in enumerate(labels) for key in (str(number), named)}
    return LabelledTask(name, prompt, words, source="nyu-mll/glue", config=name, split=split, language="en")


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
    """A row: the texts by column, the label's word and the language; None where the data have none."""

    id: str
    texts: dict[str, str]
    label: str | None
    language: str | None


def read_labelled(
    task: LabelledTask, language: str, source: str | None = None, split: str | None = None, alone: bool = True
) -> tuple[list[LabelledText], list[str]]:
    """
    The rows of a labelled set in a language, and all labels of the set.

    Args:
        language: code. Of a set with a column `language` these rows are taken, `de_DE` and `de` being one.
        source: a file (`.jsonl`, `.csv`, `.tsv`, `.parquet`), a folder with `{task}.{language}.jsonl` or another of
            these endings, or a Hub dataset, in place of the task's own.
        split: of a Hub dataset, in place of the task's own; of a file with a column `split` these rows.
        alone: no other language is read, so that a source that does not say its own is taken to be in this one.

    Raises:
        FileNotFoundError: no such source.
        ValueError: columns are missing or not text, a label is unknown or like another, or the source has no texts in
            this language, or none of this split.
    """
    rows, of_language = _open(task, language, source, split)
    name = source or task.source
    missing = [column for column in (*task.fields, task.column) if column not in rows.column_names]
    if missing:
        raise ValueError(f"{name}: {task.name} needs the column {missing[0]!r}; found {', '.join(rows.column_names)}.")
    places = range(len(rows))
    codes = [language] * len(rows)
    if "language" in rows.column_names:
        codes = _words(rows, "language")
        if base_code(language) not in map(base_code, codes):
            raise ValueError(
                f"{name}: no rows in {language}; the column 'language' has {_listed(codes)}. Write codes there, or "
                "set the languages to these."
            )
        places = [place for place, code in enumerate(codes) if base_code(code) in (None, base_code(language))]
    elif not (alone or of_language):
        raise ValueError(
            f"{name}: nothing says in which language the texts of {task.name} are, and several are asked for. Add a "
            f"column 'language', give a folder with a file per language ({task.name}.{language}.jsonl), or ask for "
            "one language."
        )
    given = _words(rows, task.column)
    if task.labels:  # -1 as in GLUE's test sets
        given = [None if value == "-1" else value for value in given]
    words = dict(task.labels) or {value: value for value in sorted({value for value in given if value is not None})}
    unknown = sorted({value for value in given if value is not None and value not in words})
    if unknown:
        raise ValueError(f"{name}: {task.name} has the label {unknown[0]!r}; known are {', '.join(words)}.")
    labels = list(dict.fromkeys(words.values()))
    if same := confusable_labels(labels):
        raise ValueError(
            f"{name}: the labels {', '.join(map(repr, same))} of {task.name} differ in case or punctuation only, "
            "which scoring does not see. Name them by other words."
        )
    column = next((column for column in ("id", "idx") if column in rows.column_names), None)
    identities = [None] * len(rows) if column is None else rows[column][:]
    columns = {column: text_cells(rows, column, name) for column in task.fields}
    texts = [
        LabelledText(
            id=f"{task.name}-{language}-{place if identities[place] in (None, '') else identities[place]}",
            texts={column: cells[place] for column, cells in columns.items()},
            label=None if given[place] is None else words[given[place]],
            language=None if codes[place] is None else language,
        )
        for place in places
    ]
    return texts, labels


def _words(rows: Dataset, column: str) -> list[str | None]:
    """The cells of a column as text, classes by their names; None for an empty one and for no class (-1)."""
    feature = rows.features[column]
    cells = rows[column][:]
    if isinstance(feature, ClassLabel):
        cells = [None if cell in (None, -1) else feature.names[cell] for cell in cells]
    return [None if cell is None else str(cell).strip() or None for cell in cells]


def _listed(words: Sequence[str | None]) -> str:
    return ", ".join(sorted({word for word in words if word is not None})) or "nothing"


def _open(task: LabelledTask, language: str, source: str | None, split: str | None) -> tuple[Dataset, bool]:
    """The rows, and whether the name of their file or configuration says that they are in the language."""
    path = Path(source).expanduser() if source is not None else None
    of_language = False
    if path is not None and path.is_dir():
        stems = (f"{task.name}.{language}", f"{task.name}-{language}", task.name)
        endings = (*SUFFIXES, ".parquet")
        found = [path / (stem + ending) for stem in stems for ending in endings if (path / (stem + ending)).is_file()]
        if not found:
            raise FileNotFoundError(f"{path}: no file {stems[0]} with the ending {', '.join(endings)}.")
        path = found[0]
        of_language = path.stem != task.name
    if path is not None and path.is_file():
        if path.suffix == ".parquet":
            rows = load_dataset("parquet", data_files=str(path), split="train")
        else:
            rows = read_manifest(path, streaming=False, columns={}, find_names=False)[0]
        return rows if split is None else _of_split(rows, split, path), of_language
    name = source or task.source
    if not name:
        raise ValueError(f"The task {task.name} has no source of its own. Give one: a file, a folder or a Hub id.")
    of_language = "{language}" in task.config
    if task.language and name == task.source:
        if base_code(language) != task.language:
            raise ValueError(
                f"{name}: the texts of {task.name} are in {task.language}, not in {language}. Set the languages to "
                f"{task.language}, or give texts in {language} (labelled_source)."
            )
        of_language = True
    config = task.config.replace("{language}", language) or None
    try:
        return load_dataset(name, config, split=split or task.split), of_language
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{name}: no such file or folder here, and the Hub could not be asked for a dataset of this name "
            f"({error}). Check the path, or the connection."
        ) from error


def _of_split(rows: Dataset, split: str, path: Path) -> Dataset:
    """The rows of a table whose column `split` says this one, or another usual word for it (`dev`, `validation`)."""
    if "split" not in rows.column_names:
        raise ValueError(
            f"{path}: labelled_split is for Hub datasets and for tables with a column 'split'; found "
            f"{', '.join(rows.column_names)}. Leave it out, or add the column."
        )
    words = _words(rows, "split")
    wanted = _split_name(split)
    places = [place for place, word in enumerate(words) if word is not None and _split_name(word) == wanted]
    if not places:
        raise ValueError(
            f"{path}: no rows of the split {split!r}; there is {_listed(words)}. Set labelled_split to one."
        )
    return rows.select(places)


def _split_name(word: str) -> str:
    return SPLIT_NAMES.get(word.lower(), word.lower())


def spoken_chat(prompt: str) -> list[dict]:
    """A chat of one user turn: a bare audio block in place of each `{column}` of the prompt."""
    pieces = SLOT.split(prompt)  # text, name, text, name, ..., text
    content = []
    for place, piece in enumerate(pieces):
        block = {"type": "text", "text": piece} if place % 2 == 0 else {"type": "audio"}
        content += [block] if piece else []
    return [{"role": "user", "content": content}]
