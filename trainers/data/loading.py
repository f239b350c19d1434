"""Training rows from a Hub dataset, a folder of audio, a manifest or generated targets, in one form.

A row has `audio` (undecoded: {"bytes", "path"}, or a list of these for several utterances), `text`, `id`, and whatever
else the data bring (`language`, `words`, `duration`, `messages`, ...).

What is unusual here:
- Audio stays undecoded until a batch is made, and embedded audio is never copied on the way.
"""

import hashlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.compute as pc
import soundfile
from datasets import Audio, Dataset, DatasetDict, Features, IterableDatasetDict, List, Value, load_dataset
from datasets import IterableDataset as Stream

from processing_speechllm.audio import AudioError, load_audio
from processing_speechllm.mp3_frames import walk

from .bad_rows import BadRows
from .manifests import ENCODED, SEPARATORS, check_renaming, read_manifest

logger = logging.getLogger(__name__)

UNDECODED = Audio(decode=False)
TEXT_OR_BYTES = ("string", "large_string", "binary", "large_binary")
BATCH_ROWS = 1000
FINGERPRINT_ROWS = 100  # of a stream
RATE = 16000


def load_rows(
    source: str | Path | Dataset | Stream,
    split: str = "train",
    streaming: bool = False,
    name: str | None = None,
    columns: dict[str, str] | None = None,
    transcribed: bool = True,
) -> Dataset | Stream:
    """
    Rows with `audio` (undecoded), `text` and `id`.

    Args:
        source: a Hub dataset id; a manifest (`.jsonl`, `.csv`, `.tsv`; relative audio paths start at its folder); a
            folder with `manifest.jsonl`, with `*.parquet` files (generated targets), or with audio files and their
            `metadata.csv` or `metadata.jsonl` (`audiofolder`); or a loaded dataset.
        split (`str`, *optional*, defaults to `"train"`): split of a Hub dataset or folder. A manifest has one only.
        streaming (`bool`, *optional*, defaults to `False`): read rows as they are needed.
        name (`str`, *optional*): configuration of a Hub dataset.
        columns (`dict[str, str]`, *optional*): names in the data -> ours, such as `{"sentence": "text"}`.
        transcribed (`bool`, *optional*, defaults to `True`): whether rows without `text` are an error.

    Returns:
        `Dataset | IterableDataset`: the rows. Where they have no `id`, it is the audio's path below the source or its
        file name (with the row number added where two rows share it), or else the row number. A stream has no fixed
        row numbers: there it is the path or file name alone, or else a hash of audio and text.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: columns are missing, a manifest is broken, or `audio` is not audio.
    """
    rows, root = _open(source, split, streaming, name, columns or {})
    found = _column_names(rows)
    missing = [column for column in ("audio", "text")[: 1 + transcribed] if column not in found]
    if missing:
        raise ValueError(
            f"{_name(source)}: no column {missing[0]!r}; found {', '.join(found)}. Say which column it is with "
            f'columns={{"its name": "{missing[0]}"}}.'
        )
    rows = _undecoded(rows, _name(source))
    return _with_text_ids(rows) if "id" in found else _with_ids(rows, root)


def with_durations(
    dataset: Dataset | Stream, bad_rows: BadRows | None = None, num_proc: int | None = None
) -> Dataset | Stream:
    """
    Add `duration`: seconds of audio, summed over a row's audios; from file headers, so nothing is decoded.

    Text-only rows (with `messages`, without audio) have 0. Rows whose audio cannot be read are left out, counted in a
    warning, and listed in `bad_rows`. MP3 frames are counted, as headers may be wrong; formats that soundfile does not
    know (M4A, WebM) are decoded. A duration that is there already is kept. `datasets` caches the result: a second run
    over the same rows does not read the files again.

    Args:
        dataset: rows of `load_rows`. Add durations before selecting or shuffling rows: afterwards embedded
            audio would be copied.
        bad_rows (`BadRows`, *optional*): where unreadable rows are listed.
        num_proc (`int`, *optional*): processes that read headers.

    Returns:
        `Dataset | IterableDataset`: the rows with `duration`.

    Raises:
        RuntimeError: too many rows are unreadable (see `BadRows.check`).
    """
    bad_rows = bad_rows or BadRows(None, max_share=1.0, minimum=1)
    if isinstance(dataset, Stream):
        measured = dataset.map(_measure).filter(_Readable(bad_rows))
        return measured.remove_columns("finding")
    if "duration" in dataset.column_names and None not in dataset["duration"][:]:
        return dataset
    measured = dataset.map(
        _measure,
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        features=Features({"duration": Value("float64"), "finding": Value("string")}),
        desc="Reading audio lengths",
    )
    findings = measured["finding"][:]
    bad = [index for index, finding in enumerate(findings) if finding is not None]
    names = dataset.select_columns(["id", "audio"]).select(bad)
    for index, row in zip(bad, names, strict=True):
        bad_rows.record(row["id"], source_name(row["audio"]), findings[index])
    if "duration" in dataset.column_names:
        dataset = dataset.remove_columns("duration")
    dataset = dataset.add_column("duration", measured["duration"][:])
    if bad:
        logger.warning("%d of %d rows have audio that cannot be read; they are left out.", len(bad), len(dataset))
        bad_rows.check(len(dataset), len(bad))
        gone = set(bad)
        dataset = dataset.select([index for index in range(len(dataset)) if index not in gone])
    return dataset


def dataset_fingerprint(dataset: Dataset | Stream) -> str:
    """
    A hash of all columns but `audio`, in order: tells that the data under a resumed run have changed.

    The audio itself is not read; `duration` stands for it. A stream is told by its columns and its first 100 rows.
    """
    digest = hashlib.sha256()
    columns = sorted(column for column in _column_names(dataset) if column != "audio")
    digest.update(json.dumps(columns).encode())
    rows = dataset.select_columns(columns)
    rows = rows.take(FINGERPRINT_ROWS) if isinstance(rows, Stream) else rows
    for batch in rows.iter(BATCH_ROWS):
        for row in zip(*(batch[column] for column in columns), strict=True):
            digest.update(json.dumps(row, ensure_ascii=False, default=str).encode())
    return digest.hexdigest()


def source_name(audio: Any) -> str:
    """Where a row's `audio` comes from, for messages: its path or paths."""
    if isinstance(audio, list):
        return ", ".join(source_name(part) for part in audio)
    if isinstance(audio, dict):
        return str(audio.get("path") or f"{len(audio.get('bytes') or b'')} embedded bytes")
    return str(audio) if isinstance(audio, (str, Path)) else f"a {type(audio).__name__}"


def audio_seconds(audio: Any) -> float:
    """
    Seconds of a row's undecoded audio ({"bytes", "path"} or a list), decoding only what no header tells.

    Raises:
        AudioError: the audio cannot be read.
    """
    if isinstance(audio, list):
        return sum(audio_seconds(part) for part in audio)
    if audio is None:
        raise AudioError("the row has no audio. Remove it, or give its path.")
    content = audio.get("bytes")
    try:
        info = soundfile.info(io.BytesIO(content) if content is not None else audio["path"])
    except (soundfile.LibsndfileError, TypeError):
        return len(load_audio(audio, RATE)) / RATE
    frames = info.frames
    if info.format == "MP3":
        _, count, samples, _ = walk(content if content is not None else Path(audio["path"]).read_bytes())
        frames = max(frames, (count - 2) * samples)  # an encoder pads with up to two frames
    if not 0 < frames < 2**62:  # empty, or of unknown length as written to a pipe
        return len(load_audio(audio, RATE)) / RATE
    return frames / info.samplerate


def _measure(row: dict[str, Any]) -> dict[str, Any]:
    seconds = row.get("duration")
    if row["audio"] is None and row.get("messages"):  # a text-only row
        seconds = 0.0
    try:
        return {"duration": audio_seconds(row["audio"]) if seconds is None else seconds, "finding": None}
    except AudioError as error:
        return {"duration": None, "finding": str(error)}


class _Readable:
    """Keeps the rows of a stream whose audio could be read, and records the others."""

    def __init__(self, bad_rows: BadRows):
        self.bad_rows, self.seen, self.bad = bad_rows, 0, 0

    def __call__(self, row: dict[str, Any]) -> bool:
        self.seen += 1
        if row["finding"] is None:
            return True
        self.bad += 1
        logger.warning("%s: %s The row is left out.", row["id"], row["finding"])
        self.bad_rows.record(row["id"], source_name(row["audio"]), row["finding"])
        self.bad_rows.check(self.seen, self.bad)
        return False


def _name(source: Any) -> str:
    return "the dataset" if isinstance(source, (Dataset, Stream)) else str(source)


def _column_names(rows: Dataset | Stream) -> list[str]:
    """Column names; those of a stream that does not tell are its first row's."""
    if rows.column_names is not None:
        return rows.column_names
    first = next(iter(rows), None)
    if first is None:
        raise ValueError("The stream has no rows. Check the split and the filters.")
    return list(first)


def _open(source, split, streaming, name, columns) -> tuple[Dataset | Stream, Path | None]:
    """The rows as they come, with columns renamed, and the folder below which their audio lies."""
    if isinstance(source, (DatasetDict, IterableDatasetDict)):
        raise ValueError(f"The dataset has splits ({', '.join(source)}). Give one, such as dataset[{split!r}].")
    if isinstance(source, (Dataset, Stream)):
        return _renamed(source, columns), None
    path = Path(source).expanduser()
    if path.is_dir() and (path / "manifest.jsonl").exists():
        path = path / "manifest.jsonl"
    if path.is_file():
        if split != "train":
            raise ValueError(f'{path}: a manifest is one split, "train", not {split!r}. Write one manifest per split.')
        return read_manifest(path, streaming, columns), path.parent
    if path.is_dir():
        return _renamed(_open_folder(path, split, streaming), columns), path
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or path.suffix in SEPARATORS:
        raise FileNotFoundError(
            f"{source}: no such file or folder, nor a Hub dataset id (owner/name). Check the path."
        )
    try:
        rows = load_dataset(str(source), name, split=split, streaming=streaming)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{source}: no such file or folder here, and the Hub could not be asked for a dataset of this name "
            f"({error}). Check the path, or the connection."
        ) from error
    return _renamed(rows, columns), None


def _open_folder(path: Path, split: str, streaming: bool) -> Dataset | Stream:
    if next(path.rglob("*.arrow"), None) is not None:
        raise ValueError(
            f"{path}: written by save_to_disk. Load it with datasets.load_from_disk and give the dataset."
        )
    if next(path.rglob("*.parquet"), None) is None:
        return load_dataset("audiofolder", data_dir=str(path), split=split, streaming=streaming)
    base = split.split("[")[0]
    patterns = (f"{base}/*.parquet", f"{base}-*.parquet", f"data/{base}-*.parquet")
    files = next((found for pattern in patterns if (found := sorted(path.glob(pattern)))), [])
    if not files and base == "train":
        files = sorted(path.glob("*.parquet"))
    if not files:
        raise ValueError(f"{path}: no split {base!r}, that is no {', '.join(patterns)}. Check `split`.")
    return load_dataset("parquet", data_files={base: list(map(str, files))}, split=split, streaming=streaming)


def _renamed(rows: Dataset | Stream, columns: dict[str, str]) -> Dataset | Stream:
    if not columns:
        return rows
    check_renaming(columns, _column_names(rows), "the dataset")
    return rows.rename_columns(columns)


def _undecoded(rows: Dataset | Stream, name: str) -> Dataset | Stream:
    feature = rows.features["audio"] if rows.features is not None else None
    if feature is not None:
        wanted = List(UNDECODED) if isinstance(feature, List) else UNDECODED
        inner = feature.feature if isinstance(feature, List) else feature
        text_or_bytes = isinstance(inner, Value) and inner.dtype in TEXT_OR_BYTES
        encoded = isinstance(inner, dict) and set(inner) <= set(ENCODED)
        if not (isinstance(inner, Audio) or text_or_bytes or encoded):
            raise ValueError(
                f"{name}: the column 'audio' holds {inner}, which is no audio. Give paths, the bytes of audio files, "
                "or an Audio column of `datasets`."
            )
        if feature != wanted and (isinstance(rows, Dataset) or isinstance(inner, Audio)):
            rows = rows.cast_column("audio", wanted)
    return rows.map(_fetched) if isinstance(rows, Stream) else rows


def _fetched(row: dict[str, Any]) -> dict[str, Any]:
    """A streamed row with its audio as {"bytes", "path"}, read where it lies inside a Hub repository or an archive."""
    audio = row["audio"]
    return {"audio": [_fetch(part) for part in audio] if isinstance(audio, list) else _fetch(audio)}


def _fetch(audio: Any) -> dict[str, Any] | None:
    if audio is None or isinstance(audio, bytes):
        return audio and {"bytes": audio, "path": None}
    audio = {"bytes": None, "path": audio} if isinstance(audio, str) else audio
    path = audio["path"] or ""
    if audio["bytes"] is not None or "://" not in path or path.startswith(("http://", "https://")):
        return audio  # web addresses are not fetched unasked; decoding says so
    with fsspec.open(path, "rb") as file:
        return audio | {"bytes": file.read()}


def _with_text_ids(rows: Dataset | Stream) -> Dataset | Stream:
    if isinstance(rows, Stream):
        return rows.map(lambda row: {"id": str(row["id"])})
    return rows if rows.features["id"] == Value("string") else rows.cast_column("id", Value("string"))


def _with_ids(rows: Dataset | Stream, root: Path | None) -> Dataset | Stream:
    if isinstance(rows, Stream):
        return rows.map(lambda row: {"id": _path_id(row["audio"], root) or _content_id(row)})
    ids = [_path_id(paths, root) or f"{index:08d}" for index, paths in enumerate(_paths(rows))]
    uses = Counter(ids)
    return rows.add_column("id", [f"{one}#{index}" if uses[one] > 1 else one for index, one in enumerate(ids)])


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
