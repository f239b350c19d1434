"""What a layout is: how a folder of it is told, which splits it has, and how the rows of a split are read."""

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets import IterableDataset as Stream
from datasets.exceptions import DatasetGenerationError

Rows = Dataset | Stream
Row = dict[str, Any]
ENCODED = {"bytes": Value("binary"), "path": Value("string")}
FORMAT = 2  # of the rows that the readers here give; `datasets` keeps what an older one gave
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".aiff", ".aif", ".sph", ".wma")
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, or a byte of a file name that is not UTF-8
SPLIT_NAMES = {  # as people write them: as `datasets` does
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True)
class Layout:
    """
    One way in which speech data lie on a disk.

    Args:
        name: what it is called.
        needs: what a folder must hold to be one; for the message about a folder that is none.
        splits: folder -> files or folders by split, in reading order; nothing if the folder is not of this layout.
        load: those of the chosen split, and whether to stream -> the rows, with `audio` as {"bytes", "path"} and
            `text`, and what is to be said about them.
        takes_columns: whether `load` takes names of columns -> ours as well, and renames by itself.
    """

    name: str
    needs: str
    splits: Callable[[Path], dict[str, list[Path]]]
    load: Callable[..., tuple[Rows, list[str]]]
    takes_columns: bool = False


@dataclass
class Opened:
    """Rows of a source, the folder below which their audio lies, and what is said about them."""

    rows: Rows
    root: Path | None
    layout: str
    split: str
    notes: list[str] = field(default_factory=list)


def from_rows(
    function: Callable[..., Iterator[Row]],
    files: Iterable[Path],
    columns: Iterable[str],
    streaming: bool,
    together: bool = False,
    recordings: Iterable[Path] = (),
) -> Rows:
    """
    Rows that a generator function makes of files.

    They are kept by `datasets` and made anew when a file or recording has changed. Of a stream each file is a shard.

    Args:
        function: takes `files` (paths as text) and `version`, and yields rows.
        files: all that it reads; of a folder the files in it.
        columns: names of the columns beside `audio`; all are text but `duration`.
        streaming: give a stream.
        together: the files make rows only together.
        recordings: those that the rows hold a part of, and folders in which the function looks recordings up.
    """
    files = [path.absolute() for path in files]
    features = {name: Value("float64" if name == "duration" else "string") for name in columns}
    names = (tuple if together else list)(map(str, files))  # `datasets` takes a list for shards
    heard = (path for place in recordings for path in (audio_files(place) if os.path.isdir(place) else [place]))
    arguments = {"files": names, "version": "" if streaming else version_of([*files, *heard])}
    return generated(function, Features({"audio": ENCODED, **features}), arguments, streaming)


def generated(function: Callable[..., Iterator[Row]], features: Features, arguments: dict, streaming: bool) -> Rows:
    """Rows of a generator function; what is wrong with the data is raised as the function raised it."""
    if streaming:
        return Stream.from_generator(function, features=features, gen_kwargs=arguments)
    try:
        return Dataset.from_generator(function, features=features, gen_kwargs=arguments)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise


def patterns(files: Iterable[Path]) -> list[str]:
    """Paths for `datasets`, which takes them for patterns: a bracket in the name of a folder is one."""
    return [glob.escape(str(path)) for path in files]


def version_of(paths: Iterable[Path]) -> str:
    """Tells files, and the files in folders, that have come, gone, moved or changed, by path, size and time."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for path in dict.fromkeys(paths):
        for file in files_below(path) if os.path.isdir(path) else [path]:
            digest.update(os.fsencode(file) + file_state(file))
    return digest.hexdigest()[:16]


def file_state(file: Path | str) -> bytes:
    """Size and time of a file, or that it is not there."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # a NUL in the name
        return b" is not there\n"
    return f" {status.st_size} {status.st_mtime_ns}\n".encode()


def audio_at(path: Path | str) -> dict[str, Any]:
    """The `audio` of a row whose recording is a file."""
    return {"bytes": None, "path": str(path)}


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order, through links to folders too, each folder once; hidden ones are left out."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def audio_files(folder: Path) -> Iterator[Path]:
    """All recordings below a folder, as `files_below` gives them.

    Raises:
        ValueError: a name that is not UTF-8, which no column of text holds.
    """
    for path in files_below(folder):
        if path.name.lower().endswith(AUDIO_SUFFIXES):
            if SURROGATE.search(str(path)):
                raise ValueError(f"{os.fsencode(path)!r}: the name of the file is not UTF-8. Rename it.")
            yield path


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8, with or without a byte order mark. They end where a line feed stands: other
    characters that `str.splitlines` ends them at are text.

    Raises:
        ValueError: it is of another encoding; with file and line.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path, path.read_bytes(), error)) from error


def not_utf8(path: Path, content: bytes, error: UnicodeDecodeError) -> str:
    """What is said of a text file, of this content, that does not decode."""
    lines = enumerate(content.split(b"\n"), start=1)
    line = next((number for number, line in lines if line.decode(errors="ignore").encode() != line), 1)
    return f"{path}, line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8 (iconv -t UTF-8)."


def by_stem(folder: Path) -> dict[str, list[Path]]:
    """The recordings below a folder by their name without suffix."""
    found: dict[str, list[Path]] = {}
    for path in audio_files(folder):
        found.setdefault(path.stem, []).append(path)
    return found


def recording_of(name: str, recordings: dict[str, list[Path]], usual: Path) -> Path:
    """
    The recording that a table means: the usual place if there is one, else what has its name below the folder.

    Args:
        name: as the table has it, without the suffix of a sound format.
        recordings: of [`by_stem`].
        usual: where it lies by the corpus' own rules; given if there is none at all.

    Raises:
        ValueError: several have the name.
    """
    if usual.is_file():
        return usual
    parts = Path(name).parts
    found = recordings.get(parts[-1], []) if parts else []
    found = [path for path in found if path.with_suffix("").parts[-len(parts) :] == parts] or found
    if len({path.with_suffix("") for path in found}) > 1:
        raise ValueError(
            f"{name!r} may be {found[0]} or {found[1]}. Write in the table where each lies, or give each another name."
        )
    return found[-1] if found else usual


def split_word(name: str) -> str | None:
    """The first word of a file's or folder's name that is a split's: `test` of `cv-test-000`, None without one."""
    return next((word for word in re.split(r"[-_.\s]+", name.lower()) if word in SPLIT_NAMES), None)


def split_name(name: str) -> str | None:
    """The split that a file's or folder's name tells: the name itself if it begins with one (`train-clean-100`)."""
    word, name = split_word(name), name.lower()
    return name if word is not None and name.startswith(word) else word


def split_folders(folder: Path) -> dict[str, list[Path]]:
    """Folders whose names tell a split (`train`, `Dev`, `test-other`), by that split's name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (name := split_name(path.name)) is not None:
            found.setdefault(name, []).append(path)
    return found


def files_in(folders: dict[str, list[Path]], pattern: str) -> dict[str, list[Path]]:
    """The files of a pattern in folders of splits, without splits that have none."""
    found = {name: sorted(file for path in paths for file in path.glob(pattern)) for name, paths in folders.items()}
    return {name: files for name, files in found.items() if files}


def choose_split(splits: dict[str, list[Path]], wanted: str, source: str) -> tuple[str, list[Path]]:
    """
    The split that is wanted: by its name, by another word for it (`dev` for `validation`), or all whose names begin
    with it (`train` for `train-clean-100` and `train-clean-360`).

    Returns:
        the names as they are, and their files.

    Raises:
        ValueError: there is none; with those that there are.
    """
    words = [wanted, *(word for word, name in SPLIT_NAMES.items() if name == SPLIT_NAMES.get(wanted))]
    for word in words:
        if word in splits:
            return word, splits[word]
    for word in words:
        names = [name for name in splits if name.startswith(tuple(f"{word}{mark}" for mark in "-_."))]
        if names:
            return ", ".join(names), [path for name in names for path in splits[name]]
    raise ValueError(f"{source}: no split {wanted!r}; there is {', '.join(splits)}. Set dataset_split to one.")


__all__ = [
    "AUDIO_SUFFIXES",
    "ENCODED",
    "SPLIT_NAMES",
    "SURROGATE",
    "Layout",
    "Opened",
    "Row",
    "Rows",
    "audio_at",
    "audio_files",
    "by_stem",
    "choose_split",
    "file_state",
    "files_below",
    "files_in",
    "from_rows",
    "generated",
    "not_utf8",
    "patterns",
    "recording_of",
    "split_folders",
    "split_name",
    "split_word",
    "text_lines",
    "version_of",
]
