"""Kaldi and ESPnet data folders: wav.scp, text, and if there utt2spk, utt2lang, segments.

Commands in wav.scp (`sox ... |`) are not run. Those that only decode a file (`flac -c -d -s FILE |`, `sph2pipe -f wav
FILE |`, `cat FILE |`) are read as the file; of `sph2pipe -c 1 FILE |` the channel is taken.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from .layout import Layout, Row, Rows, audio_at, from_rows, text_lines
from .segments import cut

DECODERS = {  # what they may be told, beside the file
    "flac": re.compile(r"-[cds]+|--(stdout|decode|silent|totally-silent)"),
    "sph2pipe": re.compile(r"-p|-f wav|-c [12]"),
    "cat": re.compile("(?!)"),
}
OF_TWO_WORDS = ("-f", "-c", "-t", "-s")  # options of sph2pipe
REMEDY = "Write the recordings to files (ESPnet: format_wav_scp.sh) and their paths to wav.scp."
COLUMNS = ("id", "text", "speaker", "language")


def splits(folder: Path) -> dict[str, list[Path]]:
    if (folder / "wav.scp").is_file():
        return {"train": [folder]}
    return {path.parent.name: [path.parent] for path in sorted(folder.glob("*/wav.scp"))}


def read_pairs(path: Path) -> dict[str, str]:
    """A file of lines `key value`; nothing if there is none.

    Raises:
        ValueError: a key that stands twice.
    """
    pairs: dict[str, str] = {}
    for line in text_lines(path) if path.is_file() else []:
        key, _, value = line.strip().partition(" ")
        if "\t" in key:
            key, _, value = line.strip().partition("\t")
        if key in pairs:
            raise ValueError(f"{path}: {key} stands twice. Remove one of the two.")
        if key:
            pairs[key] = value.strip()
    return pairs


def file_and_channel(folder: Path, value: str, key: str) -> tuple[Path, int | None]:
    """
    The file that an entry of wav.scp names, and which of its channels (from 1) if it names one; relative files start
    at the folder or at one above it, as recipes have it.

    Raises:
        ValueError: a command that does more than decode, or a place inside an archive.
    """
    entry, channel = _decoded(f"{folder / 'wav.scp'}: {key}", value) if value.endswith("|") else (value, None)
    if re.search(r"\.ark:\d+$", entry):
        raise ValueError(
            f"{folder / 'wav.scp'}: {key} lies inside the archive {entry}. Write the recordings to files (Kaldi: "
            "wav-copy; ESPnet: format_wav_scp.sh --audio-format flac) and their paths to wav.scp."
        )
    places = [folder, *list(folder.absolute().parents)[:3]]
    return next((place / entry for place in places if (place / entry).is_file()), folder / entry), channel


def _decoded(name: str, command: str) -> tuple[str, int | None]:
    """The file that a command decodes, and the channel that it takes."""
    try:
        program, *words = shlex.split(command[:-1])
    except ValueError:  # nothing, or an open quotation mark
        program, words = "", []
    known = DECODERS.get(Path(program).name)
    if known is None or "|" in command[:-1]:
        raise ValueError(f"{name} is the command {command!r}, and commands are not run. {REMEDY}")
    files, channel = [], None
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            files.append(word)
            continue
        if Path(program).name == "sph2pipe" and word in OF_TWO_WORDS and words:
            word += f" {words.pop(0)}"
        if not known.fullmatch(word) and word != "-":
            raise ValueError(f"{name} is {command!r}, and {word!r} of {Path(program).name} is not done here. {REMEDY}")
        channel = int(word[3:]) if word.startswith("-c ") else channel
    if len(files) != 1:
        raise ValueError(f"{name} is {command!r}, which names {', '.join(files) or 'no file'}, not one file. {REMEDY}")
    return files[0], channel


def rows_of(files: list[str], version: str) -> Iterator[Row]:
    for folder in map(Path, files):
        recordings, texts = read_pairs(folder / "wav.scp"), read_pairs(folder / "text")
        speakers, languages = read_pairs(folder / "utt2spk"), read_pairs(folder / "utt2lang")
        parts = read_pairs(folder / "segments")
        for name in parts or recordings:
            if (folder / "text").is_file() and name not in texts:
                raise ValueError(f"{folder}: {name} is not in text. Run utils/fix_data_dir.sh on the folder.")
            about = {"id": name, "text": texts.get(name), "speaker": speakers.get(name)}
            about["language"] = languages.get(name)
            if not parts:
                path, channel = file_and_channel(folder, recordings[name], name)
                yield {"audio": audio_at(path) if channel is None else cut(path, 0, None, name, channel), **about}
                continue
            fields = parts[name].split()
            if len(fields) != 3 or fields[0] not in recordings:
                raise ValueError(
                    f"{folder / 'segments'}: {name} is {parts[name]!r}, not a recording of wav.scp, start and end."
                )
            path, channel = file_and_channel(folder, recordings[fields[0]], fields[0])
            start, stop = map(float, fields[1:])
            yield {"audio": cut(path, start, stop if stop > 0 else None, name, channel), **about}


def load(folders: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    notes = ["cut by segments"] * any((folder / "segments").is_file() for folder in folders)
    notes += ["no transcripts"] * any(not (folder / "text").is_file() for folder in folders)
    recordings = [] if streaming else [path for folder in folders for path in _recordings(folder)]
    return from_rows(rows_of, folders, COLUMNS, streaming, recordings=recordings), notes


def _recordings(folder: Path) -> Iterator[Path]:
    """Those whose samples are in the rows, and those that were looked for in several places."""
    cut_up = (folder / "segments").is_file()
    for key, value in read_pairs(folder / "wav.scp").items():
        path, channel = file_and_channel(folder, value, key)
        if cut_up or channel is not None or not Path(value).is_absolute():
            yield path


KALDI = Layout("Kaldi folder", "wav.scp and text (utt2spk, utt2lang, segments), or folders of these", splits, load)
LAYOUTS = (KALDI,)

__all__ = ["LAYOUTS"]
