"""A transcribed set as the source of benchmark items: its rows by language, and those that cannot be used."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, Value

from trainers.data.loading import load_rows

from .rows import Dropped

TEXT_KINDS = ("string", "large_string", "string_view", "null")


@dataclass(frozen=True)
class Utterance:
    """A row of a transcribed set, by its place."""

    row: int
    id: str
    text: str
    language: str


def read_recordings(
    source: str,
    split: str = "test",
    name: str | None = None,
    columns: dict[str, str] | None = None,
    language: str | None = None,
    languages: Sequence[str] | None = None,
) -> tuple[Dataset, dict[str, list[Utterance]], list[Dropped]]:
    """
    The rows with audio and transcript.

    Args:
        source, split, name, columns: as in `load_rows`.
        language: code, if the rows do not say theirs.
        languages: only these; None is all.

    Returns:
        the dataset, the utterances by language, and what was dropped.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read, says no language, or has none of the wanted.
    """
    rows = load_rows(source, split=split, name=name, columns=columns)
    if not isinstance(rows["text"][0], str) and rows["text"][0] is not None:
        raise ValueError(f"{source}: rows have several utterances. Give a set with one transcript per row.")
    if language is None and "language" not in rows.column_names:
        raise ValueError(
            f"{source}: no column 'language'. Say which it is in (language), or which column has it (columns)."
        )
    codes = [language] * len(rows) if language is not None else rows["language"][:]
    utterances: dict[str, list[Utterance]] = {}
    dropped, seen = [], set()
    for place, (identity, text, code) in enumerate(zip(rows["id"][:], rows["text"][:], codes, strict=True)):
        if code is None:
            dropped.append(Dropped(identity, "", "no_language"))
        elif languages is not None and code not in languages:
            continue
        elif not any(character.isalnum() for character in text or ""):
            dropped.append(Dropped(identity, code, "no_transcript"))
        elif identity in seen:
            dropped.append(Dropped(identity, code, "id_stands_twice"))
        else:
            seen.add(identity)
            utterances.setdefault(code, []).append(Utterance(place, identity, text.strip(), code))
    absent = [code for code in languages or [] if code not in utterances]
    if absent:
        found = ", ".join(sorted({str(code) for code in codes}))
        raise ValueError(f"{source} has no usable rows in {', '.join(absent)}; it has {found}.")
    return rows, utterances, dropped


def text_cells(rows: Dataset, name: str, source: str) -> list[str]:
    """
    The cells of a column, stripped; those without a value are empty.

    Raises:
        ValueError: the column holds something else than text.
    """
    feature = rows.features[name]
    if not isinstance(feature, Value) or feature.dtype not in TEXT_KINDS:
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        raise ValueError(f"{source}: the column {name!r} holds {kind}, not text. Write text there, or name another.")
    return [(cell or "").strip() for cell in rows[name][:]]
