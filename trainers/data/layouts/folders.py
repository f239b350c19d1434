"""Folders of rows or recordings without a corpus' own form: `speechllm targets`, `save_to_disk`, Parquet,
`audiofolder`, recordings with a text file each, and recordings alone."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk

from .layout import (
    AUDIO_SUFFIXES,
    SPLIT_NAMES,
    Layout,
    Row,
    Rows,
    audio_at,
    audio_files,
    files_below,
    from_rows,
    patterns,
    split_folders,
    text_lines,
)

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
        ValueError: the run is not finished, or no row came of it.
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
    found = {name: files for name, path in split_folders(folder).items() if (files := sorted(path.glob("*.parquet")))}
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        word = SHARD_OF.sub("", path.stem)
        short = word.split("-")[0]
        of_shard = word if word != path.stem else "train"
        found.setdefault(short if short in SPLIT_NAMES else of_shard, []).append(path)
    return found


def load_parquet(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    """The rows; of some shards of a run of `speechllm targets` it is said how many there are."""
    total = SHARD_OF.search(files[0].stem)
    missing = total is not None and int(total[1]) != len(files)
    return _parquet(files, streaming), [f"{len(files)} of {int(total[1])} shards"] if missing else []


# `audiofolder` of `datasets`: recordings and metadata.csv or metadata.jsonl with file_name


def audiofolder_splits(folder: Path) -> dict[str, list[Path]]:
    metadata = [path for kind in ("csv", "jsonl", "parquet") for path in _metadata(folder, kind)]
    if not metadata:
        return {}
    names = [name for name in split_folders(folder) if next(audio_files(folder / name), None) is not None]
    return {name: [folder, folder / name] for name in names} or {"train": [folder]}


def _metadata(folder: Path, kind: str) -> Iterator[Path]:
    for path in (*folder.glob(f"metadata.{kind}"), *folder.glob(f"*/metadata.{kind}")):
        with path.open("rb") as file:
            if kind == "parquet" or b"file_name" in file.readline():
                yield path


def load_audiofolder(folders: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    split = SPLIT_NAMES[folders[1].name] if len(folders) > 1 else "train"
    rows = load_dataset("audiofolder", data_dir=patterns(folders[:1])[0], split=split, streaming=streaming)
    return rows, []


# Recordings, each with a text file of its name, beside it or in another folder


def pair_splits(folder: Path) -> dict[str, list[Path]]:
    return _splits_where(folder, lambda place: any(True for _ in _pairs(place)))


def _splits_where(folder: Path, holds: Callable[[Path], bool]) -> dict[str, list[Path]]:
    named = {name: [path] for name, path in split_folders(folder).items() if holds(path)}
    return named or ({"train": [folder]} if holds(folder) else {})


def _pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """(recording, its text); the text beside it goes first."""
    texts = {path.stem: path for path in files_below(folder) if path.suffix == ".txt"}
    for audio in audio_files(folder) if texts else ():
        beside = audio.with_suffix(".txt")
        text = beside if beside.is_file() else texts.get(audio.stem)
        if text is not None:
            yield audio, text


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
