"""Lines of JSON that a run writes as it goes and finds again after a kill: none lost, none twice.

Every process appends to a file of its own, a whole batch at a time, flushed to the disk. At the end all become one
file in the order of the data, in one `os.replace`. A line is known by its key, so that what stands in several files
counts once.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from trainers.data.shards import write_text

Key = tuple[str, str]  # system, id


class Lines:
    """
    The lines of one kind of a run.

    Args:
        folder: of the run.
        name: of the final file, without `.jsonl`.
        rank: of this process.
    """

    def __init__(self, folder: Path, name: str, rank: int = 0):
        self.folder, self.name, self.rank = folder, name, rank
        self.lines: dict[Key, dict[str, Any]] = {}
        self.read()

    @property
    def path(self) -> Path:
        """The file that all lines come to in the end."""
        return self.folder / f"{self.name}.jsonl"

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}.part-*.jsonl"))

    def read(self) -> None:
        """Takes in what all processes have written. A line cut short by a kill is not there: it is made again."""
        for path in [self.path, *self._parts()]:
            if path.exists():
                for line in path.read_bytes().split(b"\n"):
                    try:
                        row = json.loads(line)
                        self.lines.setdefault((row["system"], row["id"]), row)
                    except (json.JSONDecodeError, UnicodeDecodeError):
                        continue

    def __contains__(self, key: Key) -> bool:
        return key in self.lines

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends those rows that are not there yet, and waits until they are on the disk."""
        new = [row for row in rows if (row["system"], row["id"]) not in self.lines]
        if not new:
            return
        self.lines |= {(row["system"], row["id"]): row for row in new}
        path = self.folder / f"{self.name}.part-{self.rank:05d}.jsonl"
        with path.open("a+b") as file:
            _end_half_a_line(file)
            file.write(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in new))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, systems: Sequence[str], ids: Sequence[str]) -> None:
        """Writes all lines into one file, by system and in the order of ids, and removes the parts. For one process,
        when the others have ended."""
        self.read()
        systems, ids = ({name: place for place, name in enumerate(names)} for names in (systems, ids))
        order = sorted(self.lines, key=lambda key: (systems.get(key[0], len(systems)), ids.get(key[1], len(ids))))
        text = "".join(json.dumps(self.lines[key], ensure_ascii=False) + "\n" for key in order)
        write_text(self.path, text)
        for part in self._parts():
            part.unlink()


def _end_half_a_line(file: BinaryIO) -> None:
    """After a kill in the middle of one."""
    if file.seek(0, os.SEEK_END) > 0:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


__all__ = ["Lines"]
