"""WebDataset shards, through the builder of `datasets`, and lhotse manifests, through lhotse."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile
from datasets import Audio, Features, load_dataset

from ..mapping import with_mapped
from .layout import Layout, Row, Rows, audio_at, files_in, from_rows, patterns, split_folders, split_word
from .segments import unreadable

SOURCE = re.compile(r'"source": *("[^"\\]*(?:\\.[^"\\]*)*")')  # of a recording
TEXT_FIELDS = ("txt", "text", "lab", "transcript")


# WebDataset


def webdataset_splits(folder: Path) -> dict[str, list[Path]]:
    """Shards by split: in folders of its name, or with names that have it as a word; otherwise all are `train`."""
    found = files_in(split_folders(folder), "*.tar")
    for path in sorted(folder.glob("*.tar")):
        found.setdefault(split_word(path.stem) or "train", []).append(path)
    return found


def load_webdataset(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    """
    The samples of shards: the field of a sound format is `audio`, `txt` is `text`, and what `json` holds are columns.

    Raises:
        ValueError: samples of no sound, or of several.
    """
    rows = load_dataset("webdataset", data_files={"train": patterns(files)}, split="train", streaming=streaming)
    features = rows.features
    sounds = [name for name, feature in features.items() if isinstance(feature, Audio)]
    if len(sounds) != 1:
        raise ValueError(
            f"{files[0]}: its samples hold {', '.join(features)}, that is {len(sounds) or 'no'} fields of sound. A "
            "sample needs one (`key.wav`, `key.flac`, ...) beside `key.txt` or `key.json`."
        )
    rows = rows.cast_column(sounds[0], Audio(decode=False))
    if "json" in features:
        inside = features["json"] if isinstance(features["json"], dict) else {}
        names = [name for name in inside if name not in features]
        kinds = Features({name: features["json"][name] for name in names})
        rows = with_mapped(rows, lambda row: {name: (row["json"] or {}).get(name) for name in names}, ["json"], kinds)
    rows = rows.remove_columns([name for name in ("__key__", "__url__") if name in features])
    text = next((name for name in TEXT_FIELDS if name in features), None)
    renamed = {sounds[0]: "audio"} | ({text: "text"} if text not in (None, "text") else {})
    taken = [new for new in renamed.values() if new in rows.column_names]
    if taken:
        raise ValueError(f"{files[0]}: {taken[0]} stands both in a field of its own and in json. Keep one of the two.")
    return rows.rename_columns(renamed), [f"audio from {sounds[0]}"]


# lhotse


def lhotse_splits(folder: Path) -> dict[str, list[Path]]:
    """Cuts, or where there are none recordings with supervisions; the file names may tell the split."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.jsonl.gz"), *folder.glob("*.jsonl")]):
        if lhotse_kind(path) is not None:
            found.setdefault(split_word(path.name) or "train", []).append(path)
    for split, files in found.items():
        found[split] = [path for path in files if lhotse_kind(path) == "cuts"] or files
    return found


def lhotse_kind(path: Path) -> str | None:
    """ "cuts", "recordings" or "supervisions" of lhotse, by the first line of a file, or None."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            first = json.loads(file.readline() or "{}")
    except (OSError, EOFError, zlib.error, ValueError):
        return None
    if not isinstance(first, dict):
        return None
    if str(first.get("type", "")).endswith("Cut"):
        return "cuts"
    if {"id", "sources", "sampling_rate"} <= set(first):
        return "recordings"
    return "supervisions" if {"id", "recording_id", "start", "duration"} <= set(first) else None


def lhotse_recordings(files: list[Path]) -> list[Path]:
    """The files that manifests name, as they stand there and below their folder."""
    found = set()
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                found.update(SOURCE.findall(line))
    names = sorted(json.loads(name) for name in found)
    return [place / name for name in names for place in dict.fromkeys([Path(), files[0].parent])]


def lhotse_rows(files: list[str], version: str) -> Iterator[Row]:
    """A row for every supervision of the cuts, or of the recordings."""
    from lhotse import CutSet, RecordingSet, SupervisionSet

    named = {lhotse_kind(Path(path)): path for path in files}
    if "cuts" in named:
        sets = [CutSet.from_file(path) for path in files]
    else:
        for kind in ("recordings", "supervisions"):
            if kind not in named:
                raise ValueError(f"{files[0]}: no {kind} beside it. Give the folder with recordings and supervisions.")
        recordings = RecordingSet.from_file(named["recordings"])
        sets = [CutSet.from_manifests(recordings, SupervisionSet.from_file(named["supervisions"]))]
    for cuts in sets:
        for cut in cuts:
            for part in cut.trim_to_supervisions(keep_overlapping=False):
                about = part.supervisions[0]
                yield {
                    "audio": lhotse_audio(part, Path(files[0]).parent, about.id),
                    "id": about.id,
                    "text": about.text,
                    "language": about.language,
                    "speaker": about.speaker,
                    "duration": float(part.duration),
                }


def lhotse_audio(part: Any, folder: Path, name: str) -> dict[str, Any]:
    """The file of a cut that is a whole recording of one file and channel, else the samples that lhotse gives."""
    recording, path = getattr(part, "recording", None), f"cut {part.id}"
    if recording is not None and [source.type for source in recording.sources] == ["file"]:
        path = Path(recording.sources[0].source)
        if (folder / path).is_file():  # else as lhotse has it: below the working directory
            path, part = folder / path, part.with_recording_path_prefix(folder)
        whole = part.start == 0 and abs(part.duration - recording.duration) < 1e-3
        if whole and not recording.transforms and recording.num_channels == 1:
            return audio_at(path)
    try:
        samples = part.load_audio()
    except Exception as error:  # those of lhotse and of whatever it reads with
        found = (str(error).strip() or type(error).__name__).splitlines()[0]
        return unreadable(f"{path}: lhotse cannot read it ({found}). Check the file and its manifest.", name)
    content = io.BytesIO()
    soundfile.write(content, samples.T, part.sampling_rate, format="WAV", subtype="FLOAT")
    return {"bytes": content.getvalue(), "path": f"{name}.wav"}


def load_lhotse(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    """
    Raises:
        ImportError: lhotse is not installed.
    """
    try:
        import lhotse  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{files[0]} is a manifest of lhotse, which is not installed: pip install lhotse") from error
    columns = ("id", "text", "language", "speaker", "duration")
    recordings = [] if streaming else lhotse_recordings(files)
    return from_rows(lhotse_rows, files, columns, streaming, together=True, recordings=recordings), []


WEBDATASET = Layout(
    "WebDataset shards",
    "*.tar with KEY.wav (or .flac, ...) and KEY.txt or KEY.json",
    webdataset_splits,
    load_webdataset,
)
LHOTSE = Layout(
    "lhotse manifests",
    "*cuts*.jsonl.gz, or *recordings*.jsonl.gz and *supervisions*.jsonl.gz (pip install lhotse)",
    lhotse_splits,
    load_lhotse,
)
LAYOUTS = (LHOTSE, WEBDATASET)

__all__ = ["LAYOUTS", "LHOTSE", "WEBDATASET", "lhotse_kind"]
