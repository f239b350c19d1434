"""Folders of rows or recordings without a corpus' own form: `speechllm targets`, `save_to_disk`, Parquet,
`audiofolder`, recordings with a text file each, and recordings alone."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk

from .layout import (
    AUDIO_SUFFIXES,
    SPLIT_NAMES,
    Layout,
    Row,
    Rows,
    audio_at,
    audio_files,
    files_below,
    files_in,
    from_rows,
    patterns,
    split_folders,
    split_word,
    text_lines,
)
from .manifests import read_manifest

SHARD_OF = re.compile(r"-\d+-of-(\d+)$")
MOSTLY_CUT = 0.05  # share of answers at the limit from which a remedy is said


# What `speechllm targets` and `speechllm benchmark` write: manifest.json with the report, data/*.parquet


def made_splits(part: str) -> Callable[[Path], dict[str, list[Path]]]:
    """What tells the splits of a folder that one of our commands made; `part` is of the run in its manifest."""

    def splits(folder: Path) -> dict[str, list[Path]]:
        manifest = _made_manifest(folder)
        return {} if manifest is None or part not in manifest["run"] else parquet_splits(folder) or {"train": [folder]}

    return splits


def _made_manifest(folder: Path) -> dict | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "settings" in (manifest.get("run") or {}) else None


def load_made(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    """
    Raises:
        ValueError: the run is not finished, no row came of it, or some are missing.
    """
    folder = files[0] if files[0].is_dir() else files[0].parent.parent
    files = [path for path in files if path.is_file()]
    report = _made_manifest(folder).get("report")
    if report is None:
        wanted = SHARD_OF.search(files[0].stem)[1].lstrip("0") if files else "several"
        raise ValueError(
            f"{folder}: an unfinished run: {len(files)} of {wanted} shards are written. Give the command that makes "
            "it again, it goes on; or name its folder data/ to take what is there."
        )
    if not files:
        raise ValueError(f"{folder}: no row came of the run; see {folder / 'dropped.jsonl'}.")
    there = sum(pq.read_metadata(path).num_rows for path in folder.glob("data/*.parquet"))
    if there != report["rows"]:
        raise ValueError(
            f"{folder}: its files hold {there:,} rows, the run wrote {report['rows']:,}. Copy all of data/ again, or "
            "name its folder data/ to take what is there."
        )
    return _parquet(files, streaming), cut_notes(report.get("cut_at_limit", 0), report["rows"])


def cut_notes(cut: int, rows: int) -> list[str]:
    """What is said of answers that were cut at the limit of new tokens."""
    if not cut:
        return []
    remedy = "; raise max_new_tokens and make them anew" if cut > MOSTLY_CUT * rows else ""
    return [f"{cut:,} answers ({cut / rows:.0%}) cut at their length limit, their ends not taught{remedy}"]


def _parquet(files: list[Path], streaming: bool) -> Rows:
    return load_dataset("parquet", data_files={"train": patterns(files)}, split="train", streaming=streaming)


# `Dataset.save_to_disk`


def saved_splits(folder: Path) -> dict[str, list[Path]]:
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return {name: [folder / name] for name in names}
    return {"train": [folder]} if (folder / "state.json").is_file() and any(folder.glob("*.arrow")) else {}


def load_saved(folders: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    rows: Dataset = load_from_disk(str(folders[0]))
    return (rows.to_iterable_dataset() if streaming else rows), []


# Parquet: train/0.parquet, train-00000-of-00004.parquet, data/train-...parquet, or files of any name


def parquet_splits(folder: Path) -> dict[str, list[Path]]:
    found = files_in(split_folders(folder), "*.parquet")
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        name = SHARD_OF.sub("", path.stem)
        of_shard = name if name != path.stem else "train"
        found.setdefault(split_word(name) or of_shard, []).append(path)
    return found


def load_parquet(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    """The rows; of some shards of a run of `speechllm targets` it is said how many there are."""
    total = SHARD_OF.search(files[0].stem)
    missing = total is not None and int(total[1]) != len(files)
    return _parquet(files, streaming), [f"{len(files)} of {int(total[1])} shards"] if missing else []


# `audiofolder` of `datasets`: recordings and metadata.csv or metadata.jsonl with file_name, read as manifests: the
# builder takes `null` and `nan` for nothing, digits for numbers, and names of recordings for those of splits.


def audiofolder_splits(folder: Path) -> dict[str, list[Path]]:
    """Folders of splits, each after the folder of all; the first alone where there are none."""
    if not _metadata(folder):
        return {}
    named = split_folders(folder)
    held = {name: [path for path in paths if next(audio_files(path), None)] for name, paths in named.items()}
    return {name: [folder, *paths] for name, paths in held.items() if paths} or {"train": [folder]}


def _metadata(folder: Path) -> list[Path]:
    """The tables of a folder and of those in it."""
    found = []
    for kind in ("csv", "jsonl", "parquet"):
        for path in sorted([*folder.glob(f"metadata.{kind}"), *folder.glob(f"*/metadata.{kind}")]):
            with path.open("rb") as file:
                if kind == "parquet" or b"file_name" in file.readline():
                    found.append(path)
    return found


def load_audiofolder(folders: list[Path], streaming: bool, columns: dict[str, str]) -> tuple[Rows, list[str]]:
    """The rows whose recordings lie below a split's folders, or all."""
    root, *places = folders
    tables = _metadata(root)
    own = [path for path in tables if path.parent in places]
    if any(path.suffix == ".parquet" for path in own or tables):
        split = SPLIT_NAMES[split_word(places[0].name)] if places else "train"
        rows = load_dataset("audiofolder", data_dir=patterns([root])[0], split=split, streaming=streaming)
        return rows.rename_columns(columns), []
    parts, notes = zip(*(read_manifest(path, streaming, columns) for path in own or tables), strict=True)
    rows = parts[0] if len(parts) == 1 else concatenate_datasets(list(parts))
    if places and not own:
        rows = rows.filter(
            lambda audio: any(Path(audio["path"]).is_relative_to(place) for place in places), input_columns=["audio"]
        )
    return rows, [note for note in dict.fromkeys(sum(notes, [])) if note != "audio from file_name"]


# Recordings, each with a text file of its name, beside it or in another folder


def pair_splits(folder: Path) -> dict[str, list[Path]]:
    return _splits_where(folder, lambda place: any(True for _ in _pairs(place)))


def _splits_where(folder: Path, holds: Callable[[Path], bool]) -> dict[str, list[Path]]:
    held = {name: [path for path in paths if holds(path)] for name, paths in split_folders(folder).items()}
    named = {name: paths for name, paths in held.items() if paths}
    return named or ({"train": [folder]} if holds(folder) else {})


def _pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """
    (recording, its text): the one beside it, else the one that shares the most of the end of its path (`s1/001`), if
    no other recording shares more of that.

    Raises:
        ValueError: several texts share as much.
    """
    texts, audios = defaultdict(list), set()
    for path in files_below(folder):
        if path.suffix == ".txt":
            for end in _endings(path, folder):
                texts[end].append(path)
    for audio in audio_files(folder) if texts else ():
        audios.update(_endings(audio, folder))
    for audio in audio_files(folder) if texts else ():
        beside = audio.with_suffix(".txt")
        if beside.is_file():
            yield audio, beside
            continue
        shared = next((end for end in _endings(audio, folder) if end in texts), None)
        found = texts[shared] if shared is not None else []
        found = [text for text in found if next(end for end in _endings(text, folder) if end in audios) == shared]
        if len(found) > 1:
            raise ValueError(f"{audio}: its text may be {found[0]} or {found[1]}. Put each text beside its recording.")
        if found:
            yield audio, found[0]


def _endings(path: Path, folder: Path) -> list[tuple[str, ...]]:
    """The ends of a path below a folder without its suffix, the longest first."""
    parts = path.relative_to(folder).with_suffix("").parts
    return [parts[start:] for start in range(len(parts))]


def pair_rows(files: list[str], version: str) -> Iterator[Row]:
    for folder in map(Path, files):
        for audio, text in _pairs(folder):
            yield {"audio": audio_at(audio), "text": "\n".join(text_lines(text)).strip()}


def load_pairs(folders: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    recordings, paired = (sum(1 for place in folders for _ in read(place)) for read in (audio_files, _pairs))
    notes = [f"{recordings - paired:,} recordings without a .txt left out"] * (recordings > paired)
    return from_rows(pair_rows, folders, ["text"], streaming), notes


def recording_splits(folder: Path) -> dict[str, list[Path]]:
    return _splits_where(folder, lambda place: next(audio_files(place), None) is not None)


def recording_rows(files: list[str], version: str) -> Iterator[Row]:
    for folder in map(Path, files):
        for audio in audio_files(folder):
            yield {"audio": audio_at(audio)}


def load_recordings(folders: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    return from_rows(recording_rows, folders, [], streaming), ["no transcripts"]


TARGETS = Layout(
    "targets", "manifest.json and data/*.parquet, as `speechllm targets` writes", made_splits("llm"), load_made
)
BENCHMARK = Layout(
    "benchmark",
    "manifest.json and data/*.parquet, as `speechllm benchmark` writes",
    made_splits("benchmark"),
    load_made,
)
TRANSCRIBED = Layout(
    "transcribed data",
    "manifest.json and data/*.parquet, as `speechllm transcribe` writes",
    made_splits("recogniser"),
    load_made,
)
SAVED = Layout("saved dataset", "what `Dataset.save_to_disk` writes", saved_splits, load_saved)
PARQUET = Layout(
    "Parquet folder",
    "*.parquet, data/*.parquet, or train/*.parquet, test/*.parquet, ...",
    parquet_splits,
    load_parquet,
)
AUDIOFOLDER = Layout(
    "audiofolder",
    "recordings, and metadata.csv or metadata.jsonl with file_name and text",
    audiofolder_splits,
    load_audiofolder,
    takes_columns=True,
)
PAIRS = Layout(
    "recordings with text files", "NAME.wav and NAME.txt, beside it or in another folder", pair_splits, load_pairs
)
RECORDINGS = Layout(
    "recordings without transcripts", f"files of {', '.join(AUDIO_SUFFIXES)}", recording_splits, load_recordings
)

__all__ = [
    "AUDIOFOLDER",
    "BENCHMARK",
    "PAIRS",
    "PARQUET",
    "RECORDINGS",
    "SAVED",
    "TARGETS",
    "TRANSCRIBED",
    "cut_notes",
]
