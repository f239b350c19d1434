"""Encoder frames on disk: one flat float16 file and an index; appended to, so a killed run goes on where it was."""

import json
from pathlib import Path

import numpy as np
import torch


class FrameStore:
    """`frames.bin`, frames of all recordings one after the other, and `index.jsonl`, one row per recording.

    Args:
        folder: where both lie.
        size: width of a frame.
        write: what a killed writer left unfinished is cut off. One writer at a time.
    """

    def __init__(self, folder: Path, size: int, write: bool = False):
        self.folder, self.size = folder, size
        folder.mkdir(parents=True, exist_ok=True)
        index = folder / "index.jsonl"
        lines = index.read_text(encoding="utf-8").split("\n")[:-1] if index.exists() else []  # a cut line is dropped
        self.rows: dict[str, dict] = {row["id"]: row for row in map(json.loads, lines)}
        self.count = max((row["start"] + row["frames"] for row in self.rows.values()), default=0)
        if write and index.exists():
            index.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            with (folder / "frames.bin").open("r+b") as stream:
                stream.truncate(self.count * size * 2)
        self.stored: torch.Tensor | None = None

    def append(self, rows: list[dict], frames: list[torch.Tensor]) -> None:
        """Adds recordings: rows with an `id`, frames (frames, size)."""
        with (self.folder / "frames.bin").open("ab") as stream:
            for row, part in zip(rows, frames, strict=True):
                stream.write(part.to(torch.float16).contiguous().numpy().tobytes())
                row |= {"start": self.count, "frames": len(part)}
                self.count += len(part)
        with (self.folder / "index.jsonl").open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.rows |= {row["id"]: row for row in rows}
        self.stored = None

    def load(self, device: str = "cpu") -> None:
        """Opens the frames: mapped from disk, or all of them on another device."""
        mapped = np.memmap(self.folder / "frames.bin", np.float16, "c").reshape(-1, self.size)
        self.stored = torch.from_numpy(mapped[: self.count]).to(device)

    def frames(self, id: str) -> torch.Tensor:
        """Frames of a recording, (frames, size), float16."""
        if self.stored is None:
            self.load()
        row = self.rows[id]
        return self.stored[row["start"] : row["start"] + row["frames"]]
