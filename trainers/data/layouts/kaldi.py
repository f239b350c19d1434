"""Kaldi and ESPnet data folders: wav.scp, text, and if there utt2spk, utt2lang, segments.

Commands in wav.scp (`sox ... |`) are not run. Those that only decode a file (`flac -c -d -s FILE |`, `sph2pipe -f wav
FILE |`, `cat FILE |`) are read as the file.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from .layout import Layout, Row, Rows, audio_at, from_rows, text_lines
from .segments import cut

DECODERS = {"flac", "sph2pipe", "cat"}
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


def recording_path(folder: Path, value: str, key: str) -> Path:
    """
    The file that an entry of wav.scp names; relative ones start at the folder or at one above it, as recipes have it.

    Raises:
        ValueError: a command, or a place inside an archive.
    """
    entry = value
    if value.endswith("|"):
        words = shlex.split(value[:-1])
        if Path(words[0]).name not in DECODERS or "|" in words:
            raise ValueError(
                f"{folder / 'wav.scp'}: {key} is the command {value!r}, and commands are not run. Write the "
                "recordings to files (ESPnet: format_wav_scp.sh) and their paths to wav.scp."
            )
        entry = next(word for word in reversed(words) if word != "-")
    if re.search(r"\.ark:\d+$", entry):
        raise ValueError(
            f"{folder / 'wav.scp'}: {key} lies inside the archive {entry}. Write the recordings to files (Kaldi: "
            "wav-copy; ESPnet: format_wav_scp.sh --audio-format flac) and their paths to wav.scp."
        )
    places = [folder, *list(folder.absolute().parents)[:3]]
    return next((place / entry for place in places if (place / entry).is_file()), folder / entry)


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
                yield {"audio": audio_at(recording_path(folder, recordings[name], name)), **about}
                continue
            fields = parts[name].split()
            if len(fields) != 3 or fields[0] not in recordings:
                raise ValueError(
                    f"{folder / 'segments'}: {name} is {parts[name]!r}, not a recording of wav.scp, start and end."
                )
            path = recording_path(folder, recordings[fields[0]], fields[0])
            start, stop = map(float, fields[1:])
            yield {"audio": cut(path, start, stop if stop > 0 else None, name), **about}


def load(folders: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    notes = ["cut by segments"] * any((folder / "segments").is_file() for folder in folders)
    notes += ["no transcripts"] * any(not (folder / "text").is_file() for folder in folders)
    return from_rows(rows_of, folders, COLUMNS, streaming), notes


KALDI = Layout("Kaldi folder", "wav.scp and text (utt2spk, utt2lang, segments), or folders of these", splits, load)
LAYOUTS = (KALDI,)

__all__ = ["LAYOUTS"]
