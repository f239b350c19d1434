"""Questions about texts in SQuAD's form: a JSON file, a folder of them by language (MLQA, XQuAD), or a Hub dataset."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HUB_CONFIGS = {  # where a Hub dataset has a configuration per language: its name, with {language}
    "facebook/mlqa": "mlqa.{language}.{language}",
    "google/xquad": "xquad.{language}",
    "google-research-datasets/xquad": "xquad.{language}",
}
HUB_LICENSES = {
    "facebook/mlqa": "cc-by-sa-3.0",
    "google/xquad": "cc-by-sa-4.0",
    "google-research-datasets/xquad": "cc-by-sa-4.0",
}


@dataclass(frozen=True)
class SquadQuestion:
    """A question, the text that it is about, and the spans of the text that answer it; none if nothing does."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]


def read_squad(
    source: str | Path, language: str, split: str = "test", config: str | None = None, revision: str | None = None
) -> list[SquadQuestion]:
    """
    The questions of a source in one language.

    Args:
        source: a JSON file; a folder with one per language, whose name holds the language's code and no other
            (`xquad.vi.json`, `test-context-vi-question-vi.json`); or a Hub dataset (or its local copy) with the
            columns `id`, `question`, `context`, `answers`.
        split: of a Hub dataset; in a folder it tells files apart (`dev-...`, `test-...`).
        config: of a Hub dataset, with `{language}` for the code; known for MLQA and XQuAD.
        revision: of a Hub dataset. Those that consist of a script are read from `refs/convert/parquet`.

    Raises:
        FileNotFoundError: no such file, folder, or file of that language.
        ValueError: not SQuAD's form; the message says what is there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path)
    if path.is_dir() and any(path.glob("*.json")):
        return _read_file(_file_of(path, language, split))
    return _read_dataset(str(source), language, split, config, revision)


def _file_of(folder: Path, language: str, split: str) -> Path:
    """The one JSON file whose name says this language, and the split if several do."""
    found = [file for file in sorted(folder.glob("*.json")) if _codes(file) == {language}]
    if len(found) > 1:
        found = [file for file in found if split in re.split(r"[^A-Za-z0-9]+", file.stem)]
    if len(found) != 1:
        names = ", ".join(file.name for file in sorted(folder.glob("*.json")))
        raise FileNotFoundError(
            f"{folder}: {len(found) or 'no'} files are of the language {language!r} and split {split!r}; there are "
            f"{names}. Name one file per language like xquad.vi.json, or set the split."
        )
    return found[0]


def _codes(file: Path) -> set[str]:
    """The two-letter words in a file's name: `test-context-vi-question-de` has vi and de."""
    return {word for word in re.split(r"[^A-Za-z]+", file.stem) if re.fullmatch("[a-z]{2}", word)}


def _read_file(file: Path) -> list[SquadQuestion]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return list(_questions(content))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error}).") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: not in SQuAD's form ({type(error).__name__}: {error}). It must be {{data: [{{paragraphs: "
            "[{context, qas: [{id, question, answers: [{text}]}]}]}]}}."
        ) from error


def _questions(content: dict) -> Iterator[SquadQuestion]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                answers = [] if entry.get("is_impossible") else [answer["text"] for answer in entry["answers"]]
                yield _question(entry["id"], entry["question"], paragraph["context"], answers)


def _question(identity: str, question: str, context: str, answers: list[str]) -> SquadQuestion:
    distinct = tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    return SquadQuestion(str(identity), question.strip(), context.strip(), distinct)


def _read_dataset(
    source: str, language: str, split: str, config: str | None, revision: str | None
) -> list[SquadQuestion]:
    from datasets import load_dataset

    template = config or HUB_CONFIGS.get(source)
    name = template.replace("{language}", language) if template else None
    try:
        rows = load_dataset(source, name, split=split, revision=revision)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{source}: no JSON file or folder of these here, and the Hub could not be asked for a dataset of this "
            f"name ({error}). Check the path, or the connection."
        ) from error
    except RuntimeError as error:  # "Dataset scripts are no longer supported"
        raise ValueError(f"{source}: {error}. Try revision refs/convert/parquet, or a folder of its files.") from error
    missing = [column for column in ("id", "question", "context", "answers") if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{source}: no column {missing[0]!r}; found {', '.join(rows.column_names)}. SQuAD's are id, question, "
            "context, answers."
        )
    return [_question(row["id"], row["question"], row["context"], row["answers"]["text"]) for row in rows]
