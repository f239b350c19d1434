"""Tensors by key in safetensors shards: written whole or not at all, read without loading.

    folder/index.json               {"parts": {...}, "shards": [names], "items": {key: [shard, frames, seconds]}}
    folder/000-00000.safetensors    tensors named "field:key"; metadata: the parts, seconds by key

The shards are the truth: the index is made from their headers, and a run that was killed goes on from them. A process
writes shards of its own (the first number), so several fill one folder.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .fingerprint import check_parts

INDEX_FILE = "index.json"
SUFFIX, PARTIAL = ".safetensors", ".partial"
OPEN_SHARDS = 256  # of one process: each holds its header in memory


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class ShardWriter:
    """Gathers items and writes them in shards of about `shard_bytes`.

    Args:
        folder: of the store.
        process: number of this process, whose shards no other writes.
        parts: fingerprint, written into each shard.
        shard_bytes: a shard is written when it holds this much,
        shard_seconds: or when its first item is so old.
    """

    def __init__(
        self, folder: Path, process: int, parts: dict[str, str], shard_bytes: int, shard_seconds: float = math.inf
    ):
        self.folder, self.process, self.parts = folder, process, parts
        self.shard_bytes, self.shard_seconds = shard_bytes, shard_seconds
        self._since = time.monotonic()
        self.written = 0  # bytes
        self._tensors: dict[str, torch.Tensor] = {}
        self._seconds: dict[str, float] = {}
        self._bytes = 0
        numbers = [int(path.stem.split("-")[1]) for path in folder.glob(f"{process:03d}-*{SUFFIX}")]
        self._number = max(numbers, default=-1) + 1

    def add(self, items: dict[str, dict[str, torch.Tensor]], seconds: dict[str, float]) -> None:
        """Adds `{key: {field: tensor}}`, all of which come to lie in one shard, and how long the audios are."""
        if not self._tensors:
            self._since = time.monotonic()
        self._seconds.update(seconds)
        for key, fields in items.items():
            for field, tensor in fields.items():
                self._tensors[f"{field}:{key}"] = tensor
                self._bytes += tensor.nbytes
        if self._bytes >= self.shard_bytes or time.monotonic() - self._since >= self.shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Writes what is held.

        Raises:
            OSError: it cannot be written, for example to a full disk; what was written before stays.
        """
        if not self._tensors:
            return
        path = self.folder / f"{self.process:03d}-{self._number:05d}{SUFFIX}"
        partial = path.with_name(path.name + PARTIAL)
        notes = {"format": "pt", "parts": json.dumps(self.parts), "seconds": json.dumps(self._seconds)}
        try:
            save_file(self._tensors, partial, metadata=notes)
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise OSError(
                f"{path}: {self._bytes} bytes cannot be written ({error}). The shards before it are kept: make room "
                "there and run the same command again."
            ) from error
        self.written += self._bytes
        self._tensors, self._seconds, self._bytes = {}, {}, 0
        self._number += 1


def read_shards(folder: Path, remedy: str, parts: dict[str, str] | None = None) -> dict[str, Any]:
    """The index of a store, from the headers of its shards.

    Args:
        folder: of the store.
        remedy: what to do if shards have another fingerprint.
        parts: fingerprint that every shard must have; by default that of the first.

    Raises:
        ValueError: a damaged shard, one with another fingerprint, or a key that two shards hold.
    """
    names = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    items: dict[str, list] = {}
    for number, name in enumerate(names):
        shard = open_shard(folder / name)
        cached, seconds = (json.loads(shard.metadata()[note]) for note in ("parts", "seconds"))
        parts = cached if parts is None else parts
        check_parts(str(folder), cached, parts, remedy)
        for tensor in shard.keys():  # noqa: SIM118 (no dict)
            key = tensor.split(":", 1)[1]
            length = shard.get_slice(tensor).get_shape()[0]
            if items.setdefault(key, [number, length, seconds.get(key)])[0] != number:
                raise ValueError(
                    f"{folder}: the shards {names[items[key][0]]} and {name} both hold {key!r}, so two rows have this "
                    "id. Give every row an id of its own, delete the folder and encode again."
                )
    return {"parts": parts, "shards": names, "items": items}


def write_index(folder: Path) -> None:
    """Writes the index of a store's shards, if it has any."""
    index = read_shards(folder, "Delete the folder and encode again.")
    if index["shards"]:
        write_text(folder / INDEX_FILE, json.dumps(index))


def open_shard(path: Path) -> Any:
    """A shard's `safe_open`.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({error}). Delete it if it is there and run the same `speechllm encode` "
            "again: what it held is encoded anew."
        ) from error


class ShardReader:
    """Items of a finished store, read when asked for.

    Shards are opened by the process that reads them, so it may be forked and pickled.

    Raises:
        ValueError: there is no index.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / INDEX_FILE
        if not path.is_file():
            state = "was not finished" if any(folder.glob(f"*{SUFFIX}")) else "is not there"
            raise ValueError(
                f"{folder}: the cache {state}: it has no {INDEX_FILE}. Run `speechllm encode` with this folder; what "
                "is encoded already is kept."
            )
        index = json.loads(path.read_text(encoding="utf-8"))
        self.parts: dict[str, str] = index["parts"]
        self.shards: list[str] = index["shards"]
        self.items: dict[str, list] = index["items"]
        self._opened: dict[int, Any] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def read(self, key: str, field: str) -> torch.Tensor:
        """The tensor `field` of `key`.

        Raises:
            KeyError: it is not in the cache.
        """
        number = self.location(key)[0]
        if self._process != os.getpid():
            self._opened, self._process = {}, os.getpid()
        if number not in self._opened:
            if len(self._opened) >= OPEN_SHARDS:
                self._opened.pop(next(iter(self._opened)))
            self._opened[number] = open_shard(self.folder / self.shards[number])
        return self._opened[number].get_tensor(f"{field}:{key}")

    def location(self, key: str) -> list:
        """Shard, length and seconds of `key`; raises as `read`."""
        if key not in self.items:
            raise KeyError(
                f"{key!r} is not in the cache {self.folder}, which holds {len(self.items)} others. Run `speechllm "
                "encode` on the rows of this training, with the same ids; what is encoded already is kept."
            )
        return self.items[key]


__all__ = ["ShardReader", "ShardWriter", "open_shard", "read_shards", "write_index", "write_text"]
