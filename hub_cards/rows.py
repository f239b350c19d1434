"""What a data set of speech holds, counted over its columns: rows, hours by language, targets, licences."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH = 10_000  # rows at a time
LISTED_INSTRUCTIONS = 50
COUNTED = ("duration", "language", "target", "task", "model", "revision", "source_license", "finish_reason")


def describe_rows(rows: Any, name: str) -> dict[str, Any]:
    """
    An entry of the section `data` of the facts.

    Args:
        rows: a `datasets.Dataset` or [`ParquetRows`] with any of the columns `duration` (seconds), `language`, and
            those of `speechllm targets`. Audio is not read.
        name: how the card calls it.

    Returns:
        `dict`: `name`, `rows`, and as far as the columns tell `hours`, `languages` (hours of each), `license`,
        `targets` (rows by set and task, the models that wrote them).
    """
    names = [column for column in COUNTED if column in rows.column_names]
    counts: dict[str, Counter] = {column: Counter() for column in names}
    seconds: dict[str, float] = defaultdict(float)
    writers: Counter = Counter()
    unknown = 0
    for batch in column_batches(rows, names):
        size = len(next(iter(batch.values()))) if batch else 0
        languages = [_language(code) for code in batch.get("language", [None] * size)]
        for code, value in zip(languages, batch.get("duration", []), strict=False):
            unknown += value is None
            seconds[code] += value or 0.0
        for column in ("target", "task", "source_license", "finish_reason"):
            counts.get(column, Counter()).update(batch.get(column, []))
        writers.update(zip(batch.get("model", []), batch.get("revision", []), strict=False))
    entry: dict[str, Any] = {"name": name, "rows": len(rows)}
    if "duration" in names and not unknown:
        entry["hours"] = sum(seconds.values()) / 3600
        if "language" in names:
            entry["languages"] = {code: value / 3600 for code, value in sorted(seconds.items())}
    licenses = [text for text in counts.get("source_license", {}) if text]
    if licenses:
        entry["license"] = ", ".join(sorted(licenses))
    targets: dict[str, Any] = {}
    if counts.get("target"):
        targets["sets"] = _by_count(counts["target"])
    if counts.get("task"):
        targets["tasks"] = _by_count(counts["task"])
    if counts.get("finish_reason", {}).get("length"):
        targets["cut_at_limit"] = counts["finish_reason"]["length"]
    models = [{"model": model, "revision": revision} for (model, revision), _ in writers.most_common() if model]
    if models:
        targets["models"] = models
    return entry | ({"targets": targets} if targets else {})


class ParquetRows:
    """The rows of parquet files, read some columns and rows at a time: audio is never copied to be counted."""

    def __init__(self, files: list[Path]):
        import pyarrow.parquet as pq

        self.files = files
        self.column_names = pq.read_schema(files[0]).names
        self.length = sum(pq.read_metadata(file).num_rows for file in files)

    def __len__(self) -> int:
        return self.length

    def batches(self, names: list[str], size: int = BATCH) -> Iterator[dict[str, list]]:
        """Columns as lists, a batch of rows at a time."""
        import pyarrow.parquet as pq

        for file in self.files:
            for batch in pq.ParquetFile(file).iter_batches(size, columns=names):
                yield {name: batch[name].to_pylist() for name in names}


def column_batches(rows: Any, names: list[str]) -> Iterator[dict[str, list]]:
    """Some columns of a data set as lists, a batch of rows at a time; audio is not decoded."""
    if not names:
        return
    if isinstance(rows, ParquetRows):
        yield from rows.batches(names)
        return
    for batch in rows.select_columns(names).with_format("arrow").iter(batch_size=BATCH):
        yield {name: batch[name].to_pylist() for name in names}


def _language(code: Any) -> str:
    """A row's language; of a row with several utterances, theirs if it is one. A number, a label of some connector, is
    no language that a card could state."""
    spoken = code if isinstance(code, list) else [code]
    codes = {one if isinstance(one, str) and one else "unknown" for one in spoken}
    return "several" if len(codes) > 1 else codes.pop() if codes else "unknown"


def cached_commit(name: str) -> str | None:
    """The commit of a Hub data set that was loaded, from the cached copy of its card; None if it is not known."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(name, "README.md", repo_type="dataset", local_files_only=True)).parent.name
    except (OSError, HFValidationError, ValueError):
        return None


def _by_count(counts: Counter) -> dict[str, int]:
    return {str(name): count for name, count in counts.most_common()}


def instructions(rows: Any) -> list[str]:
    """What the user's turns of `messages` say beside the audio, the commonest first, each once; at most
    `LISTED_INSTRUCTIONS`, and then a line that says how many more there are."""
    if "messages" not in rows.column_names:
        return []
    counts: Counter = Counter()
    for batch in column_batches(rows, ["messages"]):
        for chat in batch["messages"]:
            for message in chat or []:  # None of rows that have transcripts alone, beside others
                if message["role"] == "user" and isinstance(message["content"], list):
                    text = "".join(block.get("text") or "" for block in message["content"] if block["type"] == "text")
                    counts[text.strip()] += 1
    listed = [text or "(none: the audio alone)" for text, _ in counts.most_common(LISTED_INSTRUCTIONS)]
    more = len(counts) - len(listed)
    return listed + ([f"(and {more} more, in the data)"] if more else [])


def sample_rows(rows: Any, count: int = 3) -> list[dict[str, Any]]:
    """The first rows without their audio, as a card shows them."""
    names = [name for name in rows.column_names if name != "audio"]
    if isinstance(rows, ParquetRows):
        columns = next(rows.batches(names, count))
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return rows.select_columns(names).select(range(min(count, len(rows)))).to_list()


__all__ = ["ParquetRows", "cached_commit", "column_batches", "describe_rows", "instructions", "sample_rows"]
