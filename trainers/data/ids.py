"""The `id` of every row: its own, or one made of where its audio lies."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, List, Value
from datasets import IterableDataset as Stream

BATCH_ROWS = 1000


def with_ids(rows: Dataset | Stream, root: Path | None, given: bool) -> Dataset | Stream:
    """
    Rows with `id` as text.

    Where it is missing it is the audio's path below `root`, or its file name (with the row number where two rows share
    it), or else the row number; in a stream the path or file name alone, or else a hash of audio and text.

    Args:
        rows: with undecoded `audio` and `text`.
        root: folder below which the audio lies.
        given: whether there is a column `id`; rows may still lack one.
    """
    if isinstance(rows, Stream):
        return rows.map(lambda row: {"id": _stream_id(row, root)})
    if given:
        if rows.features["id"] != Value("string"):
            rows = rows.cast_column("id", Value("string"))
        ids = rows["id"][:]
        if all(ids):
            return rows
        made = _made_ids(rows, root)
        return rows.remove_columns("id").add_column("id", [own or other for own, other in zip(ids, made, strict=True)])
    return rows.add_column("id", _made_ids(rows, root))


def _made_ids(rows: Dataset, root: Path | None) -> list[str]:
    ids = [_path_id(paths, root) or f"{index:08d}" for index, paths in enumerate(_paths(rows))]
    uses = Counter(ids)
    return [f"{one}#{index}" if uses[one] > 1 else one for index, one in enumerate(ids)]


def _stream_id(row: dict[str, Any], root: Path | None) -> str:
    own = row.get("id")
    return str(own) if own not in (None, "") else _path_id(row["audio"], root) or _content_id(row)


def _paths(rows: Dataset) -> Iterator[Any]:
    """The path of every row's audio, or a list of these, without touching embedded audio where Arrow allows it."""
    rows = rows.select_columns(["audio"])
    if isinstance(rows.features["audio"], List):
        yield from ([part["path"] for part in row["audio"] or []] for row in rows)
        return
    for batch in rows.with_format("arrow").iter(BATCH_ROWS):
        yield from pc.struct_field(batch.column("audio"), "path").to_pylist()


def _path_id(audio: Any, root: Path | None) -> str | None:
    """The id of a row from its audio (a path, {"path"}, or a list of these), if that has a path."""
    parts = audio if isinstance(audio, list) else [audio]
    paths = [part.get("path") if isinstance(part, dict) else part for part in parts]
    if not paths or not all(paths):
        return None
    return "+".join(_short_path(Path(path), root) for path in paths)


def _short_path(path: Path, root: Path | None) -> str:
    if root is not None and path.is_relative_to(root.absolute()):
        return path.relative_to(root.absolute()).as_posix()
    return path.name


def _content_id(row: dict[str, Any]) -> str:
    parts = row["audio"] if isinstance(row["audio"], list) else [row["audio"]]
    digest = hashlib.sha256(json.dumps(row.get("text")).encode())
    for part in parts:
        digest.update((part or {}).get("bytes") or b"")
    return digest.hexdigest()[:16]


__all__ = ["with_ids"]
