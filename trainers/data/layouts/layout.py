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
FORMAT = 1  # of the rows that the readers here give; `datasets` keeps what an older one gave
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
) -> Rows:
    """
    Rows that a generator function makes of files.

    They are kept by `datasets` and made anew when a file has changed. Of a stream each file is a shard.

    Args:
        function: takes `files` (paths as text) and `version`, and yields rows.
        files: all that it reads; of a folder the files in it.
        columns: names of the columns beside `audio`; all are text but `duration`.
        streaming: give a stream.
        together: the files make rows only together.
    """
    files = [path.absolute() for path in files]
    features = {name: Value("float64" if name == "duration" else "string") for name in columns}
    names = (tuple if together else list)(map(str, files))  # `datasets` takes a list for shards
    arguments = {"files": names, "version": version_of(files)}
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
    """Tells files, and the files in folders, that have changed, by size and time."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for path in paths:
        for file in sorted(files_below(path)) if path.is_dir() else [path]:
            status = file.stat() if file.exists() else file.lstat()  # a link to nothing
            digest.update(os.fsencode(file.name) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


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


def by_stem(folder: Path) -> dict[str, Path]:
    """The recordings below a folder by their name without suffix."""
    return {path.stem: path for path in audio_files(folder)}


def split_folders(folder: Path) -> dict[str, Path]:
    """Folders named as a split (`train`, `dev`, ...), by the name they have."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and path.name in SPLIT_NAMES}


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
    "Layout",
    "Opened",
    "Row",
    "Rows",
    "SPLIT_NAMES",
    "SURROGATE",
    "audio_at",
    "audio_files",
    "by_stem",
    "choose_split",
    "files_below",
    "from_rows",
    "generated",
    "patterns",
    "not_utf8",
    "split_folders",
    "text_lines",
    "version_of",
]
