"""Manifests: JSON Lines, JSON, CSV or TSV files with a row per utterance (NeMo's too), or per chat.

They are read here, not by the loaders of `datasets`, so that a column may first appear in the last line, text such as
"NA" or "007" stays as it is, and an error names file and line.
"""

import csv
import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets import IterableDataset as Stream
from tqdm import tqdm

from ..chat_rows import CHAT_COLUMNS, chat_features, chat_row
from ..columns import CHATS, KNOWN_NAMES, renaming
from .layout import ENCODED, SURROGATE, Layout, Rows, generated, not_utf8, split_name, split_word, version_of
from .segments import cut

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
TEXT = ("string", "large_string", "null")
BLOCK_LINES = 1000


def kind_of(path: Path) -> str:
    """The suffix of a manifest, without `.gz`."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def read_manifest(
    path: Path, streaming: bool, columns: dict[str, str], find_names: bool = True
) -> tuple[Dataset | Stream, list[str]]:
    """
    The rows of a manifest, with columns renamed and `audio` as {"bytes", "path"} with absolute paths.

    Rows with NeMo's `offset` are cut out of their recordings. Rows with `messages` come in the form of `chat_row`.

    Args:
        path: a `.jsonl`, `.json`, `.csv` or `.tsv` file; `.gz` of it.
        streaming: give a stream. The file is read once before that, to check it.
        columns: names in the file -> ours.
        find_names: take usual names of columns for ours where these are missing.

    Returns:
        the rows, and what is to be said about them.

    Raises:
        ValueError: the file is no manifest; the message names the line.
    """
    if kind_of(path) not in SUFFIXES:
        raise ValueError(f"{path}: not a manifest ({', '.join(SUFFIXES)}). Convert it, or give its folder.")
    features, lists = _manifest_features(path)
    columns, notes = renaming(columns, list(features), str(path), find_names)
    features = Features({columns.get(name, name): feature for name, feature in features.items()})
    lists = {columns.get(name, name) for name in lists}
    several = "audios" in features or "audio" not in features or "audio" in lists
    if any(name in features for name in CHATS):
        features = _of_chats(features, several)
    elif "audio" in features:
        features["audio"] = _encoded(features["audio"], path)
        notes += ["cut by offset"] * ("offset" in features)
    arguments = {
        "path": str(path.absolute()),
        "columns": columns,
        "names": tuple(features),  # `datasets` takes lists for shards
        "several": several,
    }
    cut_from = _recordings_cut(**arguments) if "offset" in features and not streaming else []
    arguments["version"] = version_of([path, *cut_from])
    return generated(_manifest_rows, features, arguments, streaming), notes


def _of_chats(features: Features, several: bool) -> Features:
    """The columns, those of chats as `chat_row` gives them."""
    rest = {name: kind for name, kind in features.items() if name not in CHAT_COLUMNS}
    return Features({**rest, **chat_features(several)})


def _encoded(feature: Any, path: Path) -> Any:
    inner = feature.feature if isinstance(feature, List) else feature
    if not (isinstance(inner, dict) and "path" in inner or isinstance(inner, Value) and inner.dtype in TEXT):
        raise ValueError(f"{path}: 'audio' holds {inner}, not paths. Write the path of a file, or a list of paths.")
    return List(ENCODED) if isinstance(feature, List) else ENCODED


def _manifest_rows(
    path: str, columns: dict[str, str], names: tuple[str, ...], several: bool, version: str
) -> Iterator[dict[str, Any]]:
    """A manifest's rows, with parts cut out; `version` makes `datasets` notice a changed file."""
    for row, start, stop in _placed_rows(path, columns, names, several):
        if start is not None:
            whole = row["audio"]["path"]
            row["audio"] = cut(whole, start, stop, f"{Path(whole).stem}-{start:g}")
        yield row


def _recordings_cut(path: str, columns: dict[str, str], names: tuple[str, ...], several: bool) -> list[Path]:
    """The recordings that rows are parts of."""
    placed = _placed_rows(path, columns, names, several)
    return list(dict.fromkeys(Path(row["audio"]["path"]) for row, start, _ in placed if start is not None))


def _placed_rows(
    path: str, columns: dict[str, str], names: tuple[str, ...], several: bool
) -> Iterator[tuple[dict[str, Any], float | None, float | None]]:
    """A manifest's rows, with audio paths made absolute, and for parts of recordings where they start and stop."""
    root = Path(path).parent
    for number, row in _manifest_lines(Path(path)):
        row = {columns.get(name, name): value for name, value in row.items()}
        if "messages" in names:
            row = {**row, **chat_row(row, several, f"{path}, line {number}")}
            row = {name: row.get(name) for name in names}
        if "audio" in row:
            audio = row["audio"]
            row["audio"] = [_below(root, part) for part in audio] if isinstance(audio, list) else _below(root, audio)
        start = stop = None
        if isinstance(row.get("audio"), dict) and row["audio"]["path"]:
            start = _seconds(row.get("offset"), "offset", Path(path), number)
        if start is not None:
            seconds = _seconds(row.get("duration"), "duration", Path(path), number)
            stop = None if seconds is None else start + seconds
        yield row, start, stop


def _below(root: Path, audio: Any) -> Any:
    path = audio.get("path") if isinstance(audio, dict) else audio
    content = audio.get("bytes") if isinstance(audio, dict) else None
    if content is None and not path:  # an empty cell too
        return None
    if content is not None or "://" in path:
        return {"bytes": content, "path": path}
    return {"bytes": None, "path": str(root / Path(path).expanduser())}


def _opened(path: Path) -> TextIO:
    opened = gzip.open(path, "rt", encoding="utf-8-sig", newline="") if path.suffix == ".gz" else None
    return opened or path.open(encoding="utf-8-sig", newline="")


def _manifest_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a manifest; in a JSON list the number of the entry.

    Raises:
        ValueError: it is broken; with file and line.
    """
    try:
        for number, row in _parsed_lines(path):
            yield number, _checked(row, path, number)
    except UnicodeDecodeError as error:
        opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
        with opened as file:
            raise ValueError(not_utf8(path, file.read(), error)) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: cannot be unpacked ({error}). Check that it was written to its end.") from error


def _parsed_lines(path: Path) -> Iterator[tuple[int, Any]]:
    if kind_of(path) in (".csv", ".tsv"):
        yield from _table_lines(path)
        return
    if kind_of(path) == ".json" and (entries := _json_list(path)) is not None:
        yield from enumerate(entries, start=1)
        return
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}). Write one object per line.") from error


def _checked(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: a {type(row).__name__}, not an object. Write one per line.")
    if SURROGATE.search(json.dumps(row, ensure_ascii=False)):
        name = next(name for name in row if SURROGATE.search(json.dumps([name, row[name]], ensure_ascii=False)))
        raise ValueError(
            f"{path}, line {number}: {ascii(name)} holds half of a surrogate pair (\\ud800 to \\udfff), which is no "
            "character. Write the whole pair, or leave it out."
        )
    if isinstance(row.get("duration"), (str, int, float)):
        row["duration"] = _seconds(row["duration"], "duration", path, number)
    return row


def _json_list(path: Path) -> list | None:
    """The entries of a JSON file that is a list, or a mapping that holds one; None of JSON Lines (NeMo's .json)."""
    with _opened(path) as file:
        try:
            content = json.load(file)
        except json.JSONDecodeError:
            return None
    if isinstance(content, dict):
        lists = [
            value for value in content.values() if isinstance(value, list) and isinstance((value or [0])[0], dict)
        ]
        return lists[0] if len(lists) == 1 and not set(content) & set(CHAT_COLUMNS) else [content]
    return content if isinstance(content, list) else None


def _table_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `_manifest_lines`; all cells are text but `duration`, and an empty cell there is none."""
    with _opened(path) as file:
        first = file.readline()
        file.seek(0)
        others = [mark for mark in ";\t|" if mark in first]
        separator = others[0] if "," not in first and len(others) == 1 else ","
        reader = csv.DictReader(file, delimiter="\t" if kind_of(path) == ".tsv" else separator, strict=True)
        last = 0  # line of the row before
        try:
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if twice:
                raise ValueError(f"{path}: more than one column is named {', '.join(twice)}. Rename all but one.")
            last = reader.line_num
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}: not as many cells as columns: "
                        f"{', '.join(reader.fieldnames)}. Quote cells that hold the separator."
                    )
                last = reader.line_num
                yield last, row
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {last + 1}: {error}. A cell that begins with a quotation mark must end with one; write "
                'marks within it twice: """Yes"", he said". Or write JSON Lines.'
            ) from error


def _seconds(value: Any, name: str, path: Path, line: int) -> float | None:
    try:
        seconds = None if value in ("", None) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"{path}, line {line}: {name} {value!r} is not seconds. Write a number, or leave it out.")
    return seconds


def _manifest_features(path: Path) -> tuple[Features, set[str]]:
    """The types of all columns over all lines, whichever line they first appear in, and which hold lists. Chats and
    their audios are of any kind and given no type here."""
    schema, block, first, chats, lists = pa.schema([]), [], 1, {}, set()
    for number, row in tqdm(_manifest_lines(path), desc=f"Checking {path.name}", unit=" rows"):
        lists.update(name for name, value in row.items() if isinstance(value, list))
        untyped = [name for name in row if name in CHAT_COLUMNS or name in ("audio", "text") and chats]
        chats.update(dict.fromkeys(untyped))
        block.append({name: value for name, value in row.items() if name not in chats})
        if len(block) == BLOCK_LINES:
            schema, block, first = _widened(schema, block, path, first, number), [], number + 1
    schema = _widened(schema, block, path, first, first + len(block) - 1)
    if not len(schema) and not chats:
        raise ValueError(f"{path}: holds no rows. Check that it was written to its end.")
    return Features({**Features.from_arrow_schema(schema), **dict.fromkeys(chats, Value("string"))}), lists


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


# Folders of manifests


def folder_splits(folder: Path) -> dict[str, list[Path]]:
    """
    Manifests by split: `train.jsonl`, `train_manifest.json`, `dev.csv`, ...; one alone is `train`, whatever its name.
    Only files whose first row has a recording or a chat are manifests.
    """
    files = [path for kind in SUFFIXES for path in sorted([*folder.glob(f"*{kind}"), *folder.glob(f"*{kind}.gz")])]
    files = [path for path in files if path.is_file() and _is_manifest(path)]
    if len(files) == 1:
        return {split_word(files[0].name) or "train": files}
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(split_name(_stem(path)) or _stem(path), []).append(path)
    for name, several in found.items():
        if len(set(map(_stem, several))) < len(several):
            names = ", ".join(path.name for path in several)
            raise ValueError(
                f"{folder}: {names} may hold the same rows of split {name}. Give one of them by its path."
            )
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(kind_of(path))


def _is_manifest(path: Path) -> bool:
    try:
        row = next(_manifest_lines(path), (0, {}))[1]
    except (ValueError, OSError, csv.Error):
        return False
    return bool(set(row) & {"audio", *KNOWN_NAMES["audio"], *CHAT_COLUMNS})


def load_manifests(files: list[Path], streaming: bool, columns: dict[str, str]) -> tuple[Rows, list[str]]:
    """The rows of the manifests of one split, one after the other."""
    parts, notes = zip(*(read_manifest(path, streaming, columns) for path in files), strict=True)
    rows = parts[0] if len(parts) == 1 else concatenate_datasets(list(parts))
    return rows, list(dict.fromkeys(note for some in notes for note in some))


MANIFESTS = Layout(
    "manifest",
    "manifest.jsonl, or train.jsonl, dev.csv, test_manifest.json, ... with an audio path (audio, audio_filepath, ...) "
    "and a transcript (text, sentence, ...), or with messages and audios",
    folder_splits,
    load_manifests,
    takes_columns=True,
)

__all__ = ["MANIFESTS", "SUFFIXES", "kind_of", "read_manifest"]
