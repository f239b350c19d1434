"""Manifests: JSON Lines, CSV or TSV files with a row per utterance.

They are read here, not by the loaders of `datasets`, so that a column may first appear in the last line, text such as
"NA" or "007" stays as it is, and an error names file and line.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets import IterableDataset as Stream
from tqdm import tqdm

SEPARATORS = {".jsonl": None, ".csv": ",", ".tsv": "\t"}
ENCODED = {"bytes": Value("binary"), "path": Value("string")}
TEXT = ("string", "large_string", "null")
BLOCK_LINES = 1000


def read_manifest(path: Path, streaming: bool, columns: dict[str, str]) -> Dataset | Stream:
    """
    The rows of a manifest, with columns renamed and `audio` as {"bytes", "path"} with absolute paths.

    Args:
        path: a `.jsonl`, `.csv` or `.tsv` file.
        streaming: give a stream. The file is read once before that, to check it.
        columns: names in the file -> ours.

    Raises:
        ValueError: the file is no manifest; the message names the line.
    """
    if path.suffix not in SEPARATORS:
        raise ValueError(f"{path}: not a manifest ({', '.join(SEPARATORS)}). Convert it, or give its folder.")
    features = _manifest_features(path)
    check_renaming(columns, list(features), str(path))
    features = Features({columns.get(name, name): feature for name, feature in features.items()})
    if "audio" in features:
        features["audio"] = _encoded(features["audio"], path)
    status = path.stat()
    arguments = {
        "path": str(path.absolute()),
        "columns": columns,
        "version": f"{status.st_size}, {status.st_mtime_ns}",
    }
    build = Stream.from_generator if streaming else Dataset.from_generator
    return build(_manifest_rows, features=features, gen_kwargs=arguments)


def _encoded(feature: Any, path: Path) -> Any:
    inner = feature.feature if isinstance(feature, List) else feature
    if not (isinstance(inner, dict) and "path" in inner or isinstance(inner, Value) and inner.dtype in TEXT):
        raise ValueError(f"{path}: 'audio' holds {inner}, not paths. Write the path of a file, or a list of paths.")
    return List(ENCODED) if isinstance(feature, List) else ENCODED


def _manifest_rows(path: str, columns: dict[str, str], version: str) -> Iterator[dict[str, Any]]:
    """A manifest's rows, with audio paths made absolute; `version` makes `datasets` notice a changed file."""
    root = Path(path).parent
    for _, row in _manifest_lines(Path(path)):
        row = {columns.get(name, name): value for name, value in row.items()}
        if "audio" in row:
            audio = row["audio"]
            row["audio"] = [_below(root, part) for part in audio] if isinstance(audio, list) else _below(root, audio)
        yield row


def _below(root: Path, audio: Any) -> Any:
    path = audio.get("path") if isinstance(audio, dict) else audio
    if not path or "://" in path:
        return {"bytes": None, "path": path}
    return {"bytes": None, "path": str(root / Path(path).expanduser())}


def _manifest_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a JSON Lines, CSV or TSV file."""
    if SEPARATORS[path.suffix] is not None:
        yield from _table_lines(path)
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}). Write one object per line.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: a {type(row).__name__}, not an object. Write one per line.")
            yield number, row


def _table_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `_manifest_lines`; all cells are text but `duration`, and an empty cell there is none."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=SEPARATORS[path.suffix])
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: not as many cells as columns: {', '.join(reader.fieldnames)}. "
                    "Quote cells that hold the separator."
                )
            if "duration" in row:
                row["duration"] = _seconds(row["duration"], path, reader.line_num)
            yield reader.line_num, row


def _seconds(cell: str, path: Path, line: int) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: duration {cell!r} is not seconds. Write a number.") from error


def _manifest_features(path: Path) -> Features:
    """The types of all columns over all lines, whichever line they first appear in."""
    schema, block, first = pa.schema([]), [], 1
    for number, row in tqdm(_manifest_lines(path), desc=f"Checking {path.name}", unit=" rows"):
        block.append(row)
        if len(block) == BLOCK_LINES:
            schema, block, first = _widened(schema, block, path, first, number), [], number + 1
    schema = _widened(schema, block, path, first, first + len(block) - 1)
    if not len(schema):
        raise ValueError(f"{path}: holds no rows. Check that it was written to its end.")
    return Features.from_arrow_schema(schema)


def _widened(schema: pa.Schema, block: list[dict], path: Path, first: int, last: int) -> pa.Schema:
    for name in dict.fromkeys(name for row in block for name in row):
        try:
            found = pa.schema([(name, pa.array([row.get(name) for row in block]).type)])
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"{path}, lines {first} to {last}: the values of {name!r} are not of one kind ({error}). Write the "
                "same in every line; where some rows have several utterances, write lists in all."
            ) from error
    return schema


def check_renaming(columns: dict[str, str], found: list[str], name: str) -> None:
    """Refuse to rename what is not there, or to a name that is taken."""
    for old, new in columns.items():
        if old not in found:
            raise ValueError(f"{name}: no column {old!r} to rename; found {', '.join(found)}. Check `columns`.")
        if new in found and new not in columns:
            raise ValueError(
                f"{name}: column {old!r} cannot become {new!r}, which is there already. Take it out of `columns`, or "
                f'rename the other too: "{new}": "other_{new}".'
            )
