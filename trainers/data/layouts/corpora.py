"""Corpora as they are published: Common Voice, VoxPopuli, FLEURS, LibriSpeech, MLS, LJSpeech.

Their tables are not quoted, so a quotation mark in a sentence is one.
"""

from collections.abc import Iterator
from pathlib import Path

from ..columns import KNOWN_NAMES
from .layout import AUDIO_SUFFIXES, Layout, Row, Rows, audio_at, by_stem, from_rows, recording_of, text_lines

HEADED = {"audio", "text", *KNOWN_NAMES["audio"], *KNOWN_NAMES["text"]}
FLEURS_COLUMNS = ("sentence_id", "file_name", "raw_transcription", "text", "characters", "samples", "gender")


def first_cells(path: Path, separator: str = "\t") -> list[str]:
    """The cells of a table's first line."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline().rstrip("\r\n").split(separator)


def table_rows(path: Path, separator: str = "\t", header: list[str] | None = None) -> Iterator[dict[str, str]]:
    """Rows of an unquoted table with (or given) its header.

    Raises:
        ValueError: a line with another number of cells, or not in UTF-8; with file and line.
    """
    for number, line in enumerate(text_lines(path), start=1):
        cells = line.split(separator)
        if header is None:
            header = cells
        elif line.strip():
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {number}: {len(cells)} cells, not {len(header)} as in the others. Repair it."
                )
            yield dict(zip(header, cells, strict=True))


def _headers(files: list[Path]) -> list[str]:
    return list(dict.fromkeys(name for path in files for name in first_cells(path)))


def _folders(files: list[Path]) -> list[Path]:
    """Those below which the recordings of tables are looked up."""
    return list(dict.fromkeys(path.parent for path in files))


# Common Voice: en/train.tsv beside en/clips/


def common_voice_splits(folder: Path) -> dict[str, list[Path]]:
    if not (folder / "clips").is_dir():
        return {}
    return {
        path.stem: [path] for path in sorted(folder.glob("*.tsv")) if {"path", "sentence"} <= set(first_cells(path))
    }


def common_voice_rows(files: list[str], version: str) -> Iterator[Row]:
    for path in map(Path, files):
        for row in table_rows(path):
            name, language = row.pop("path"), row.pop("locale", None) or path.parent.name
            name = name if Path(name).suffix else f"{name}.mp3"  # releases up to 2019 leave it out
            known = {"text": row.pop("sentence"), "language": language, "speaker": row.pop("client_id", None)}
            yield {"audio": audio_at(path.parent / "clips" / name), **known, **row}


def load_common_voice(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    known = ("path", "sentence", "locale", "client_id")
    rest = [name for name in _headers(files) if name not in known]
    return from_rows(common_voice_rows, files, ["text", "language", "speaker", *rest], streaming), []


# VoxPopuli: asr_train.tsv, recordings named by id anywhere below


def voxpopuli_splits(folder: Path) -> dict[str, list[Path]]:
    return {
        path.stem.removeprefix("asr_"): [path]
        for path in sorted(folder.glob("*.tsv"))
        if "normalized_text" in (cells := first_cells(path)) and {"id", "id_"} & set(cells)
    }


def voxpopuli_rows(files: list[str], version: str) -> Iterator[Row]:
    for path in map(Path, files):
        recordings = by_stem(path.parent)
        for row in table_rows(path):
            name = row.pop("id", None) or row.pop("id_", None)
            audio = recording_of(name, recordings, path.parent / f"{name}.ogg")
            known = {"id": name, "text": row.pop("normalized_text"), "speaker": row.pop("speaker_id", None)}
            yield {"audio": audio_at(audio), **known, **row}


def load_voxpopuli(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    rest = [name for name in _headers(files) if name not in ("id", "id_", "normalized_text", "speaker_id")]
    columns = ["id", "text", "speaker", *rest]
    rows = from_rows(voxpopuli_rows, files, columns, streaming, recordings=_folders(files))
    return rows, ["text from normalized_text"]


# FLEURS: train.tsv without header, recordings in audio/train/ or train/


def fleurs_splits(folder: Path) -> dict[str, list[Path]]:
    found = {}
    for path in sorted(folder.glob("*.tsv")):
        cells = first_cells(path)
        if len(cells) == len(FLEURS_COLUMNS) and cells[0].isdigit() and cells[1].endswith(".wav"):
            found[path.stem] = [path]
    return found


def fleurs_rows(files: list[str], version: str) -> Iterator[Row]:
    for path in map(Path, files):
        places = [path.parent / "audio" / path.stem, path.parent / path.stem, path.parent / "audio", path.parent]
        place = next((place for place in places if any(place.glob("*.wav"))), places[0])
        for row in table_rows(path, header=list(FLEURS_COLUMNS)):
            kept = {name: row[name] for name in ("text", "raw_transcription", "sentence_id", "gender")}
            yield {"audio": audio_at(place / row["file_name"]), **kept}


def load_fleurs(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    columns = ("text", "raw_transcription", "sentence_id", "gender")
    rows = from_rows(fleurs_rows, files, columns, streaming, recordings=_folders(files))
    return rows, ["text from transcription"]


# LibriSpeech: train-clean-100/84/121123/84-121123.trans.txt beside its recordings


def librispeech_splits(folder: Path) -> dict[str, list[Path]]:
    if next(folder.glob("*/*/*.trans.txt"), None) is not None:
        return {"train": [folder]}
    return {
        path.name: [path]
        for path in sorted(folder.iterdir())
        if path.is_dir() and next(path.glob("*/*/*.trans.txt"), None) is not None
    }


def librispeech_rows(files: list[str], version: str) -> Iterator[Row]:
    for path in map(Path, files):
        recordings = by_stem(path.parent)
        for line in text_lines(path):
            name, _, text = line.strip().partition(" ")
            if name:
                audio = recording_of(name, recordings, path.parent / f"{name}.flac")
                yield {"audio": audio_at(audio), "id": name, "text": text.strip(), "speaker": name.split("-")[0]}


def load_librispeech(folders: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    files = [path for folder in folders for path in sorted(folder.glob("*/*/*.trans.txt"))]
    columns = ("id", "text", "speaker")
    return from_rows(librispeech_rows, files, columns, streaming, recordings=_folders(files)), []


# MLS: train/transcripts.txt, recordings in train/audio/4800/10003/


def mls_splits(folder: Path) -> dict[str, list[Path]]:
    if (folder / "transcripts.txt").is_file() and (folder / "audio").is_dir():
        return {"train": [folder / "transcripts.txt"]}
    return {
        path.parent.name: [path]
        for path in sorted(folder.glob("*/transcripts.txt"))
        if (path.parent / "audio").is_dir()
    }


def mls_rows(files: list[str], version: str) -> Iterator[Row]:
    for path in map(Path, files):
        recordings = by_stem(path.parent / "audio")
        for row in table_rows(path, header=["id", "text"]):
            audio = recording_of(row["id"], recordings, path.parent / "audio" / f"{row['id']}.flac")
            yield {"audio": audio_at(audio), **row, "speaker": row["id"].split("_")[0]}


def load_mls(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    columns, places = ("id", "text", "speaker"), [path.parent / "audio" for path in files]
    return from_rows(mls_rows, files, columns, streaming, recordings=places), []


# LJSpeech: metadata.csv of `id|text` or `id|text|normalised text`, recordings in wavs/


def ljspeech_splits(folder: Path) -> dict[str, list[Path]]:
    path = folder / "metadata.csv"
    cells = first_cells(path, "|") if path.is_file() else []
    named = {cell.strip().lower() for cell in cells} & HEADED  # a table with a header is a manifest
    return {"train": [path]} if len(cells) > 1 and not named and "file_name" not in cells[0] else {}


def ljspeech_rows(files: list[str], version: str) -> Iterator[Row]:
    for path in map(Path, files):
        recordings = by_stem(path.parent)
        width = len(first_cells(path, "|"))
        header = ["id", "raw_text", "text", *(f"column {number}" for number in range(4, width + 1))][:width]
        for row in table_rows(path, "|", header if width > 2 else ["id", "text"]):
            name = row["id"]
            told = name.lower().endswith(AUDIO_SUFFIXES)
            name = name.rpartition(".")[0] if told else name
            usual = path.parent / row["id"] if told else path.parent / "wavs" / f"{name}.wav"
            audio = recording_of(name, recordings, usual)
            text = row["text"] or row.get("raw_text")
            yield {"audio": audio_at(audio), "id": name, "text": text, "raw_text": row.get("raw_text", text)}


def load_ljspeech(files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    notes = ["text from the third column"] * (len(first_cells(files[0], "|")) > 2)
    columns = ("id", "text", "raw_text")
    return from_rows(ljspeech_rows, files, columns, streaming, recordings=_folders(files)), notes


COMMON_VOICE = Layout(
    "Common Voice folder",
    "train.tsv, dev.tsv, ... with the columns path and sentence, beside clips/",
    common_voice_splits,
    load_common_voice,
)
VOXPOPULI = Layout(
    "VoxPopuli folder",
    "asr_train.tsv, ... with the columns id and normalized_text, recordings below",
    voxpopuli_splits,
    load_voxpopuli,
)
FLEURS = Layout(
    "FLEURS folder",
    "train.tsv, dev.tsv, ... of 7 columns without header, recordings in audio/train/, ... (unpacked)",
    fleurs_splits,
    load_fleurs,
)
LIBRISPEECH = Layout(
    "LibriSpeech folder",
    "train-clean-100/SPEAKER/CHAPTER/*.trans.txt beside the recordings",
    librispeech_splits,
    load_librispeech,
)
MLS = Layout("MLS folder", "train/transcripts.txt beside train/audio/", mls_splits, load_mls)
LJSPEECH = Layout(
    "LJSpeech folder",
    "metadata.csv of lines `id|text` or `id|text|normalised text`, recordings in wavs/",
    ljspeech_splits,
    load_ljspeech,
)
LAYOUTS = (COMMON_VOICE, VOXPOPULI, FLEURS, LIBRISPEECH, MLS, LJSPEECH)

__all__ = ["LAYOUTS", "table_rows"]
