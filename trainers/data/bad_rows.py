"""Rows that cannot be used in training: set aside, listed in a file, and too many of them stop the run."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

ROWS_BEFORE_JUDGING = 100  # read by a process before it asks whether too many of them are bad


@dataclass
class BadRows:
    """
    The list of a run's bad rows.

    Every process and `DataLoader` worker appends to a file of its own, one JSON object per line with `id`, `source`
    and `finding`, so nothing is lost when one of them dies. A row is listed once, also when later epochs or a resumed
    run meet it again; two processes may both list it, and `read` then gives it once.

    Args:
        folder (`str | Path | None`): folder of the lists, made when the first row is recorded. With None the list is
            kept in memory, and those of workers and other processes are not seen.
        max_share (`float`): share of the rows seen that may be bad.
        minimum (`int`): rows to see before the share counts.
    """

    folder: str | Path | None
    max_share: float
    minimum: int
    _found: list[dict[str, str]] = field(default_factory=list, repr=False)
    _known: set[str] | None = field(default=None, repr=False)

    def record(self, row_id: str, source: str, finding: str) -> None:
        """List a row: its id, where its audio comes from (a path), and what is wrong with it."""
        if self._known is None:
            self._known = {row["id"] for row in self.read()}
        if row_id in self._known:
            return
        self._known.add(row_id)
        row = {"id": row_id, "source": source, "finding": finding}
        if self.folder is None:
            self._found.append(row)
            return
        path = Path(self.folder) / f"rank-{os.environ.get('RANK', '0')}-process-{os.getpid()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            file.write(b"\n" + line if _ends_in_half_a_line(file) else line)

    def check(self, seen: int, bad: int) -> None:
        """
        Stop the run when too many rows are bad.

        Args:
            seen: rows read so far, the bad ones among them.
            bad: how many of them were bad.

        Raises:
            RuntimeError: at least `minimum` rows were seen and more than `max_share` of them are bad.
        """
        if seen < self.minimum or bad <= self.max_share * seen:
            return
        first = "".join(f"\n- {row['id']} ({row['source']}): {row['finding']}" for row in self.read()[:3])
        place = f"listed in {self.folder}" if self.folder is not None else "not listed in a file: no folder was given"
        raise RuntimeError(
            f"{bad} of {seen} rows ({bad / seen:.1%}) cannot be used, more than the {self.max_share:.1%} allowed; "
            f"they are {place}. The first:{first}\nRepair or remove them and resume, or raise the share allowed "
            "(max_share) if the data is known to be so."
        )

    def read(self) -> list[dict[str, str]]:
        """All rows listed so far by all processes that share the folder, each once."""
        rows = list(self._found)
        for path in sorted(Path(self.folder).glob("rank-*.jsonl")) if self.folder is not None else []:
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:  # half a line, of a process that was killed; its row comes again
                    continue
        return list({row["id"]: row for row in reversed(rows)}.values())[::-1]


def _ends_in_half_a_line(file: BinaryIO) -> bool:
    """Whether a process was killed while it wrote to `file`; process numbers come again after a restart."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
