"""Which layout a file or folder has: the first that fits, from those with files of their own to any recordings.

What it is taken for is said; what fits none is refused with what was found and what each layout needs.
"""

import re
from collections import Counter
from functools import partial
from pathlib import Path

from datasets import Audio, List, ReadInstruction, load_dataset

from ..columns import renaming
from . import archives, corpora, folders, kaldi, manifests
from .layout import AUDIO_SUFFIXES, Layout, Opened, Rows, choose_split, patterns

LAYOUTS = (
    folders.TARGETS,
    folders.BENCHMARK,
    folders.TRANSCRIBED,
    folders.SAVED,
    *corpora.LAYOUTS,
    *kaldi.LAYOUTS,
    *archives.LAYOUTS,
    folders.PARQUET,
    folders.AUDIOFOLDER,
    manifests.MANIFESTS,
    folders.PAIRS,
)
BUILDERS = {".parquet": ("parquet", "Parquet file"), ".arrow": ("arrow", "Arrow file")}
UNDECODED = Audio(decode=False)
LISTED = 5  # kinds of files, and folders, in a message


def find_layout(path: Path, transcribed: bool = True) -> tuple[Layout, dict[str, list[Path]]]:
    """
    The layout of a folder, and its files by split.

    Args:
        path: a folder.
        transcribed: whether recordings without transcripts are no layout.

    Raises:
        ValueError: it is of none.
    """
    if (path / "manifest.jsonl").is_file():
        return manifests.MANIFESTS, {"train": [path / "manifest.jsonl"]}
    for layout in LAYOUTS:
        splits = layout.splits(path)
        if splits:
            return layout, splits
    if not transcribed and not _layouts_below(path):  # whose transcripts would be lost
        splits = folders.RECORDINGS.splits(path)
        if splits:
            return folders.RECORDINGS, splits
    raise ValueError(_not_recognised(path))


def open_layout(path: Path, split: str, streaming: bool, columns: dict[str, str], transcribed: bool = True) -> Opened:
    """
    The rows of a file or folder, with columns renamed.

    Args:
        path: a file of rows, a shard, a table of a corpus, or a folder.
        split: which, by any usual name; with a slice as `datasets` has it, `train[:1000]`.
        streaming: read rows as they are needed.
        columns: names in the data -> ours.
        transcribed: whether transcripts are needed.

    Raises:
        ValueError: no known layout, no such split, or data that are not as their layout has them.
    """
    base, part = re.fullmatch(r"([^\[]*)(\[.*\])?", split).groups()
    if path.is_file():
        layout, name, files = _layout_of_file(path, base)
    else:
        layout, splits = find_layout(path, transcribed)
        if list(splits) == ["train"] and base != "train":
            raise ValueError(f"{path}: no split {base!r}; it is a {layout.name} of one split, train.")
        name, files = choose_split(splits, base, str(path))
    if layout.takes_columns:
        rows, notes = layout.load(files, streaming, columns)
    else:
        rows, notes = layout.load(files, streaming)
        rows, more = renamed(rows, columns, str(path))
        notes = [*notes, *more]
    if part is not None:
        if streaming:
            raise ValueError(f"{path}: {split} is a slice, and a stream has none. Leave streaming out.")
        (piece,) = ReadInstruction.from_spec(f"x{part}").to_absolute({"x": len(rows)})
        rows, name = rows.select(range(piece.from_, piece.to)), name + part
    return Opened(rows, path.parent if path.is_file() else path, layout.name, name, notes)


def _layout_of_file(path: Path, split: str) -> tuple[Layout, str, list[Path]]:
    """The layout of a single file: a table of a corpus lies in its folder, any other is one split."""
    for layout in corpora.LAYOUTS:
        for name, files in layout.splits(path.parent).items():
            if path in files:
                return layout, name, [path]
    if split != "train":
        raise ValueError(f'{path}: a manifest is one split, "train", not {split!r}. Write one manifest per split.')
    if manifests.kind_of(path) == ".jsonl" and archives.lhotse_kind(path) is not None:
        return archives.LHOTSE, "train", [path]
    if path.suffix == ".tar":
        return archives.WEBDATASET, "train", [path]
    if path.suffix in BUILDERS:
        builder, name = BUILDERS[path.suffix]
        return Layout(name, "", lambda folder: {}, partial(_built, builder)), "train", [path]
    return manifests.MANIFESTS, "train", [path]


def _built(builder: str, files: list[Path], streaming: bool) -> tuple[Rows, list[str]]:
    return load_dataset(builder, data_files={"train": patterns(files)}, split="train", streaming=streaming), []


def renamed(rows: Rows, columns: dict[str, str], name: str) -> tuple[Rows, list[str]]:
    """Rows with columns renamed, by settings and by names that are known, audio undecoded, and what is to be said."""
    for column, kind in (rows.features or {}).items():
        inner = kind.feature if isinstance(kind, List) else kind
        if isinstance(inner, Audio) and inner.decode:  # renaming a stream would decode it
            rows = rows.cast_column(column, List(UNDECODED) if isinstance(kind, List) else UNDECODED)
    whole, notes = renaming(columns, column_names(rows), name)
    return (rows.rename_columns(whole) if whole else rows), notes


def column_names(rows: Rows) -> list[str]:
    """Column names; those of a stream that does not tell are its first row's."""
    if rows.column_names is not None:
        return rows.column_names
    first = next(iter(rows), None)
    if first is None:
        raise ValueError("The stream has no rows. Check the split and the filters.")
    return list(first)


def local_splits(source: str | Path, transcribed: bool = True) -> list[str]:
    """Names of the splits of a local source."""
    path = Path(source).expanduser()
    return ["train"] if path.is_file() else list(find_layout(path, transcribed)[1])


def _layouts_below(path: Path) -> dict[str, list[str]]:
    """Names of layouts -> the folders directly below that are of them."""
    told: dict[str, list[str]] = {}
    for place in sorted(path.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            layout = next((layout for layout in LAYOUTS if layout.splits(place)), None)
            if layout is not None:
                told.setdefault(layout.name, []).append(place.name)
    return told


def _not_recognised(path: Path) -> str:
    inside = sorted(path.iterdir())
    below = [place for place in inside if place.is_dir() and not place.name.startswith(".")]
    kinds = Counter(file.suffix.lower() or file.name for file in path.rglob("*") if file.is_file())
    found = [f"{count:,} {kind}" for kind, count in kinds.most_common(LISTED)]
    names = ", ".join(place.name for place in below[:LISTED]) + ", ..." * (len(below) > LISTED)
    found += [f"folders {names}"] * bool(below)
    told = _layouts_below(path)
    hints = [f"\n{', '.join(names)}: each a {name}. Give these." for name, names in told.items()]
    if any(kind in AUDIO_SUFFIXES for kind in kinds) and not told:
        hints.append("\nThere are recordings, but nothing that says what is spoken in them.")
    needed = "".join(f"\n- {layout.name}: {layout.needs}" for layout in LAYOUTS)
    return (
        f"{path}: its layout is not recognised. Found: {'; '.join(found) or 'nothing'}.{''.join(hints)}\n"
        f"One of these is needed:{needed}"
    )


__all__ = ["column_names", "find_layout", "local_splits", "open_layout", "renamed"]
