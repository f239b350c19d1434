"""Training rows from a Hub dataset, a folder of any known layout, a manifest or generated targets, in one form.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.compute as pc
import soundfile
from datasets import Audio, Dataset, DatasetDict, Features, IterableDatasetDict, List, Value, load_dataset
from datasets import IterableDataset as Stream
from datasets.exceptions import DatasetGenerationError

from processing_speechllm.audio import AudioError, load_audio
from processing_speechllm.mp3_frames import walk

from .bad_rows import BadRows
from .chat_rows import CHAT_COLUMNS, MESSAGES, chat_features, chat_row
from .ids import with_ids
from .layouts.layout import ENCODED, Opened, file_state
from .layouts.manifests import SUFFIXES, kind_of
from .layouts.recognition import column_names, open_layout, renamed
from .mapping import with_mapped

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
    revision: str | None = None,
    language: str | None = None,
    transcribed: bool = True,
    say: Callable[[str], None] = logger.info,
) -> Dataset | Stream:
    """
    Rows with `audio` (undecoded), `text` and `id`.

    Args:
        source: a Hub dataset id; a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.tar`, ...; relative audio
            paths start at its folder); a folder of any layout in `layouts.recognition`; or a loaded dataset.
        split (`str`, *optional*, defaults to `"train"`): split of a Hub dataset or folder, `train[:1000]` a slice of
            it. A manifest has one only.
        streaming (`bool`, *optional*, defaults to `False`): read rows as they are needed.
        name (`str`, *optional*): configuration of a Hub dataset.
        columns (`dict[str, str]`, *optional*): names in the data -> ours, such as `{"sentence": "text"}`. Usual names
            (`KNOWN_NAMES` of `columns`) are found without, which is said.
        revision (`str`, *optional*): branch, tag or commit of a Hub dataset.
        language (`str`, *optional*): of the rows that do not tell theirs.
        transcribed (`bool`, *optional*, defaults to `True`): whether data without transcripts are an error; otherwise
            rows may lack `text`.
        say (`Callable`, *optional*): told in one line what the source was taken for; by default the log.

    Returns:
        `Dataset | IterableDataset`: the rows. Where they have no `id`, it is the audio's path below the source or its
        file name (with the row number added where two rows share it), or else the row number. A stream has no fixed
        row numbers: there it is the path or file name alone, or else a hash of audio and text. Chats come with their
        audios in `audio`, see `chat_rows`; they need no `text`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a layout that is not known, columns that are missing, a broken manifest, or `audio` is not audio.
    """
    try:
        opened = _open(source, split, streaming, name, columns or {}, revision, transcribed)
    except DatasetGenerationError as error:  # a builder of `datasets`, whose own message says nothing
        raise ValueError(f"{_name(source)}: {error.__cause__ or error}") from error
    rows = _undecoded(_below_root(opened.rows, opened.root), _name(source))
    rows = _with_chats(rows, _name(source))
    found = column_names(rows)
    needed = ["audio", "text"] if transcribed and "messages" not in found else ["audio"]
    missing = [column for column in needed if column not in found]
    if missing:
        raise ValueError(
            f"{_name(source)}: no column {missing[0]!r}; found {', '.join(found)}. Say which column it is with "
            f'columns={{"its name": "{missing[0]}"}}.'
        )
    _check_text(rows, _name(source))
    if transcribed and "text" not in found:
        rows = _with_constant(rows, "text", None)
    if language is not None:
        rows = _in_language(rows, language)
    rows = with_ids(_fetched_rows(rows), opened.root, given="id" in found)
    _tell(opened, _name(source), rows, say)
    return rows


def with_durations(
    dataset: Dataset | Stream, bad_rows: BadRows | None = None, num_proc: int | None = None
) -> Dataset | Stream:
    """
    Add `duration`: seconds of audio, summed over a row's audios; from file headers, so nothing is decoded.

    Text-only rows (with `messages`, without audio) have 0. Rows whose audio cannot be read are left out, counted in a
    warning, and listed in `bad_rows`. MP3 frames are counted, as headers may be wrong; formats that soundfile does not
    know (M4A, WebM) are decoded. A duration that is there already is kept. `datasets` caches the result: a second run
    over the same rows reads files again only where one has come, gone or changed, or could not be read.

    Args:
        dataset: rows of `load_rows`. Add durations before selecting or shuffling rows: afterwards embedded
            audio would be copied.
        bad_rows (`BadRows`, *optional*): where unreadable rows are listed.
        num_proc (`int`, *optional*): processes that read headers.

    Returns:
        `Dataset | IterableDataset`: the rows with `duration`.

    Raises:
        ValueError: no row is readable.
        RuntimeError: too many rows are unreadable (see `BadRows.check`).
    """
    bad_rows = bad_rows or BadRows(None, max_share=1.0, minimum=1)
    if isinstance(dataset, Stream):
        measured = dataset.map(_measure).filter(_Readable(bad_rows))
        return measured.remove_columns("finding")
    if "duration" in dataset.column_names and None not in dataset["duration"][:]:
        return dataset
    settings = {
        "remove_columns": dataset.column_names,
        "num_proc": num_proc,
        "features": Features({"duration": Value("float64"), "finding": Value("string")}),
        "desc": "Reading audio lengths",
    }
    measured = dataset.map(_measure, fn_kwargs={"version": _files_version(dataset)}, **settings)
    durations, findings = measured["duration"][:], measured["finding"][:]
    bad = [index for index, finding in enumerate(findings) if finding is not None]
    if bad:  # a decoder or a permission may have come since
        again = dataset.select(bad).map(_measure, load_from_cache_file=False, **settings)
        for index, duration, finding in zip(bad, again["duration"][:], again["finding"][:], strict=True):
            durations[index], findings[index] = duration, finding
        bad = [index for index in bad if findings[index] is not None]
    if bad and len(bad) == len(dataset):
        first = dataset.select_columns(["audio"])[0]["audio"]
        raise ValueError(
            f"None of the {len(bad)} rows has audio that can be read. The first: {findings[0]} ({source_name(first)}) "
            "Relative paths start at the folder of the data. Correct them, or the columns that hold them."
        )
    names = dataset.select_columns(["id", "audio"]).select(bad)
    for index, row in zip(bad, names, strict=True):
        bad_rows.record(row["id"], source_name(row["audio"]), findings[index])
    if "duration" in dataset.column_names:
        dataset = dataset.remove_columns("duration")
    dataset = dataset.add_column("duration", durations)
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
    columns = sorted(column for column in column_names(dataset) if column != "audio")
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


def _files_version(dataset: Dataset) -> str:
    """Tells whether a file that rows name has come, gone or changed."""
    digest = hashlib.sha256()
    for batch in dataset.select_columns(["audio"]).with_format("arrow").iter(BATCH_ROWS):
        audios = batch.column("audio")
        audios = pc.list_flatten(audios) if isinstance(dataset.features["audio"], List) else audios
        for path in pc.struct_field(audios, "path").to_pylist():
            digest.update(file_state(path) if path else b"")
    return digest.hexdigest()


def _measure(row: dict[str, Any], version: str = "") -> dict[str, Any]:
    """`version` makes `datasets` notice changed files."""
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


def _tell(opened: Opened, name: str, rows: Dataset | Stream, say: Callable[[str], None]) -> None:
    """The line about a source; nothing about a dataset that was given as it is."""
    if not opened.layout:
        return
    kind = "rows" if "messages" in column_names(rows) else "clips"
    size = "streamed" if isinstance(rows, Stream) else f"{len(rows):,} {kind}"
    say(", ".join([f"{name}: {opened.layout}", f"split {opened.split}", size, *opened.notes]))


def _open(source, split, streaming, name, columns, revision, transcribed) -> Opened:
    """The rows as they come, with columns renamed."""
    if isinstance(source, (DatasetDict, IterableDatasetDict)):
        raise ValueError(f"The dataset has splits ({', '.join(source)}). Give one, such as dataset[{split!r}].")
    if isinstance(source, (Dataset, Stream)):
        rows, _ = renamed(source, columns, "the dataset")
        return Opened(rows, None, "", split)
    path = Path(source).expanduser()
    if path.exists():
        return open_layout(path, split, streaming, columns, transcribed)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or kind_of(path) in SUFFIXES:
        raise FileNotFoundError(
            f"{source}: no such file or folder, nor a Hub dataset id (owner/name). Check the path."
        )
    try:
        rows = load_dataset(str(source), name, split=split, streaming=streaming, revision=revision)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{source}: no such file or folder here, and the Hub could not be asked for a dataset of this name "
            f"({error}). Check the path, or the connection."
        ) from error
    except ValueError as error:  # a configuration or split that is not there; `datasets` lists those that are
        raise ValueError(f"{source}: {error} Set dataset_config and dataset_split.") from error
    rows, notes = renamed(rows, columns, str(source))
    return Opened(rows, None, "Hub dataset", split, notes)


def _below_root(rows: Dataset | Stream, root: Path | None) -> Dataset | Stream:
    """Rows of a local source whose `audio` is text: relative paths start at the source's folder if the file is there,
    else where the command was started."""
    feature = (rows.features or {}).get("audio")
    inner = feature.feature if isinstance(feature, List) else feature
    if root is None or not (isinstance(inner, Value) and inner.dtype in ("string", "large_string")):
        return rows

    def placed(path: Any) -> Any:
        if isinstance(path, list):
            return [placed(part) for part in path]
        below = None if path is None else root / path
        return str(below) if below is not None and below.exists() else path

    fresh = {} if isinstance(rows, Stream) else {"load_from_cache_file": False}  # a file may have come since
    return rows.map(lambda path: {"audio": placed(path)}, input_columns=["audio"], features=rows.features, **fresh)


def _undecoded(rows: Dataset | Stream, name: str) -> Dataset | Stream:
    """Rows whose `audio` is {"bytes", "path"} where its type is known."""
    feature = rows.features.get("audio") if rows.features is not None else None
    if feature is None:
        return rows
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
    return rows


def _check_text(rows: Dataset | Stream, name: str) -> None:
    """Raises a ValueError where the type of `text` is known and is no text."""
    kind = (rows.features or {}).get("text")
    inner = kind.feature if isinstance(kind, List) else kind
    if inner is not None and not (isinstance(inner, Value) and inner.dtype in ("string", "large_string", "null")):
        raise ValueError(
            f"{name}: the column 'text' holds {inner}, which is no transcript. Write it as text, numbers in quotation "
            'marks, or say which column holds the transcript with columns={"its name": "text"}.'
        )


def _with_chats(rows: Dataset | Stream, name: str) -> Dataset | Stream:
    """Rows whose chats, if they have any, are in our form; see `chat_rows`."""
    found, kinds = column_names(rows), rows.features or {}
    chats = [column for column in CHAT_COLUMNS if column in found]
    beside = "audio" in found and "audios" not in found  # then embedded audio is left where it is
    if not chats or (beside and kinds.get("messages") == MESSAGES):
        return rows
    several = not beside or isinstance(kinds.get("audio"), List)

    def read(row: dict[str, Any]) -> dict[str, Any]:
        return chat_row(row, several, name)

    def read_messages(row: dict[str, Any]) -> dict[str, Any]:
        given = row["audio"] if isinstance(row["audio"], list) else [row["audio"]] * (row["audio"] is not None)
        chat = chat_row({**row, "audio": given}, True, name)
        if len(chat["audio"]) != len(given):
            raise ValueError(f"{name}: a row has audio both in its messages and in its column. Keep one of the two.")
        return {"messages": chat["messages"]}

    if beside:
        return with_mapped(rows, read_messages, chats, Features({"messages": MESSAGES}), ("audio",))
    replaced = [*chats, *(column for column in ("audio", "text") if column in found)]
    return with_mapped(rows, read, replaced, chat_features(several))


def _with_constant(rows: Dataset | Stream, column: str, value: str | None) -> Dataset | Stream:
    if isinstance(rows, Stream):
        return rows.map(lambda row: {column: value})
    return rows.add_column(column, [value] * len(rows), feature=Value("string"))


def _in_language(rows: Dataset | Stream, language: str) -> Dataset | Stream:
    """Rows of which those without a language have this one."""
    if "language" not in column_names(rows):
        return _with_constant(rows, "language", language)
    if isinstance(rows, Stream):
        return rows.map(lambda row: {"language": row["language"] or language})
    told = [one or language for one in rows["language"][:]]
    return rows.remove_columns("language").add_column("language", told)


def _fetched_rows(rows: Dataset | Stream) -> Dataset | Stream:
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
