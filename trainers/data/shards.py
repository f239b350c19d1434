"""A dataset that is made in shards: parquet files, each there whole or not at all, so that a killed run goes on.

    output/manifest.json                        what the run was asked; a run with other settings is refused
    output/data/train-00000-of-00042.parquet    rows; the shard's counts stand in the footer of its file, so that one
                                                `os.replace` puts both in place

This layout is what `load_dataset` of `datasets` and `load_rows` read, and what can be pushed to the Hub as it stands.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FOOTER = b"speechllm_targets"
GROUP_ROWS = 100


def shard_path(output: Path, shard: int, shards: int, split: str = "train", empty: bool = False) -> Path:
    """A shard without rows is hidden: `datasets` cannot read a parquet file that holds none."""
    return output / "data" / f"{'.' * empty}{split}-{shard:05d}-of-{shards:05d}.parquet"


def finished(output: Path, shard: int, shards: int, split: str = "train") -> dict[str, Any] | None:
    """The counts of a shard that is written, else None."""
    for empty in (False, True):
        path = shard_path(output, shard, shards, split, empty)
        if path.exists():
            return json.loads(pq.read_metadata(path).metadata[FOOTER])
    return None


def write_shard(
    output: Path, shard: int, shards: int, rows: pa.Table, counts: dict[str, Any], split: str = "train"
) -> None:
    """Rows and counts as one file, which is there whole or not at all."""
    rows = rows.replace_schema_metadata({**rows.schema.metadata, FOOTER: json.dumps(counts).encode()})
    path = shard_path(output, shard, shards, split, empty=len(rows) == 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.partial")  # hidden from `datasets`
    with partial.open("wb") as stream:
        pq.write_table(rows, stream, row_group_size=GROUP_ROWS)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def open_run(output: Path, fingerprint: dict[str, Any]) -> None:
    """Begin a run in an empty folder, or check that the one in it is the same.

    Raises:
        ValueError: it is not, by name of what changed; or shards without a manifest.
    """
    manifest = output / "manifest.json"
    if manifest.exists():
        changes = _changes(json.loads(manifest.read_text(encoding="utf-8"))["run"], _as_json(fingerprint))
        if changes:
            raise ValueError(
                f"{output} holds a run that differs: {'; '.join(changes)}. Resume it with its own settings and "
                "source (its content are the rows' ids, texts, languages and audios: dataset, dataset_split, "
                "dataset_language, filters), or give another folder."
            )
        return
    if any(output.glob("data/*.parquet")):
        raise ValueError(f"{output} holds data but no manifest.json, so it cannot be resumed. Give another folder.")
    output.mkdir(parents=True, exist_ok=True)
    write_text(manifest, json.dumps({"run": fingerprint}, indent=2, ensure_ascii=False))


def close_run(
    output: Path, fingerprint: dict[str, Any], shards: int, summary: Callable[[list[dict], list[dict]], dict[str, Any]]
) -> dict[str, Any]:
    """
    The report over all finished shards. Once they are all, it goes into the manifest, and what was dropped into
    `dropped.jsonl`; processes that finish at once write the same.

    Args:
        output, fingerprint: as for `open_run`.
        shards: how many there are to be.
        summary: (counts of the finished shards, what they dropped) -> report.

    Returns:
        the report with `shards`, `shards_done` and `complete`.
    """
    done = [counts for shard in range(shards) if (counts := finished(output, shard, shards)) is not None]
    dropped = [entry for counts in done for entry in counts["dropped"]]
    report = summary(done, dropped)
    report |= {"shards": shards, "shards_done": len(done), "complete": len(done) == shards}
    if report["complete"]:
        for litter in output.glob("data/.*.partial"):  # of killed processes
            litter.unlink(missing_ok=True)
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in dropped)
        write_text(output / "dropped.jsonl", lines)
        manifest = json.dumps({"run": fingerprint, "report": report}, indent=2, ensure_ascii=False)
        write_text(output / "manifest.json", manifest)
    return report


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # every process may write it, with the same text
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _changes(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two nested dicts differ, as `settings.seed was 0 and is 1`."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{name} was {old!r} and is {new!r}"]
    keys = dict.fromkeys([*old, *new])
    return [line for key in keys for line in _changes(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))]
