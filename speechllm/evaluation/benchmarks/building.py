"""From planned items to the folder of a benchmark, shard by shard; a run that was stopped goes on when started again.

    out/README.md                             the card
    out/manifest.json                         what was asked for; the counts once all is done
    out/dropped.jsonl                         what is no row, and why
    out/data/test-00000-of-00025.parquet      rows (`rows`), audio as FLAC bytes

It reads with `load_dataset(out)` and goes to the Hub as it stands.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm

from speechllm.speech_synthesis import Synthesizer, Voice
from trainers.data.loading import dataset_fingerprint
from trainers.data.shards import finished, open_run, write_shard, write_text

from .card import write_card
from .rows import Dropped, Item, make_row, row_features

SPLIT = "test"
ROWS_PER_SHARD = 50
READERS = 2  # threads that decode recordings


@dataclass(frozen=True)
class Plan:
    """All that a benchmark will hold, before any sound is made."""

    name: str
    task: str  # of `speechllm evaluate`, for all rows
    title: str
    description: str  # Markdown: what is asked, how the rows came about
    source: str
    license: str | None
    items: Sequence[Item]
    dropped: Sequence[Dropped]
    settings: dict[str, Any]
    several: bool = False  # rows have lists of audios
    recordings: Dataset | None = None
    voices: dict[str, list[Voice]] = field(default_factory=dict)  # by language


def build(plan: Plan, out: str | Path, synthesizer: Synthesizer | None = None, command: str = "") -> dict[str, Any]:
    """
    Write the benchmark; go on with what an earlier run of the same plan left.

    Args:
        out: the folder.
        synthesizer: for items that are to be spoken.
        command: that makes the folder again, for the card.

    Returns:
        the report: `rows`, `seconds` of speech, `dropped` (counts by reason).

    Raises:
        ValueError: nothing to write, or the folder holds another run, by name of what changed.
        BackendError: the speech endpoint does not answer; finished shards stay.
    """
    if not plan.items:
        reasons = Counter(entry.reason for entry in plan.dropped)
        raise ValueError(
            f"No item is left for {plan.name} from {plan.source} ({reasons_line(reasons) or 'the source is empty'}). "
            "Check source, languages and limits."
        )
    out = Path(out)
    features = row_features(plan.items, plan.several)
    speech = synthesizer.name if synthesizer is not None else None
    open_run(out, _fingerprint(plan, speech))
    pieces = [plan.items[start : start + ROWS_PER_SHARD] for start in range(0, len(plan.items), ROWS_PER_SHARD)]
    shards = len(pieces)
    todo = [shard for shard in range(shards) if finished(out, shard, shards, SPLIT) is None]
    done = len(plan.items) - sum(len(pieces[shard]) for shard in todo)
    executor = ThreadPoolExecutor(synthesizer.concurrency if synthesizer is not None else READERS)
    try:
        with tqdm(total=len(plan.items), initial=done, unit=" rows", desc=plan.name) as bar:
            for shard in todo:

                def make(item: Item) -> dict[str, Any] | Dropped:
                    return make_row(item, synthesizer, plan.recordings, plan.several)

                results = []
                for result in executor.map(make, pieces[shard]):
                    results.append(result)
                    bar.update()
                rows = [result for result in results if not isinstance(result, Dropped)]
                lost = [asdict(result) for result in results if isinstance(result, Dropped)]
                columns = {name: [row.get(name) for row in rows] for name in features}
                table = _table(Dataset.from_dict(columns, features=features))
                counts = {"rows": len(rows), "seconds": sum(columns["duration"]), "dropped": lost}
                write_shard(out, shard, shards, table, counts, SPLIT)
    finally:
        executor.shutdown(cancel_futures=True)
    return _close(plan, out, shards, speech, command)


def reasons_line(reasons: dict[str, int]) -> str:
    """`3 context too long, 1 no answer`."""
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(reasons.items()))


def _table(dataset: Dataset) -> pa.Table:
    """The rows as Arrow data, with the features in its metadata, where `load_dataset` finds them."""
    return dataset.data.table.cast(dataset.features.arrow_schema)


def _fingerprint(plan: Plan, speech: str | None) -> dict[str, Any]:
    digest = hashlib.sha256()
    for item in plan.items:
        digest.update(json.dumps(asdict(item), ensure_ascii=False, sort_keys=True).encode())
    return {
        "benchmark": plan.name,
        "task": plan.task,
        "settings": plan.settings,
        "speech": speech,
        "items": {"count": len(plan.items), "digest": digest.hexdigest()[:16]},
        "recordings": dataset_fingerprint(plan.recordings)[:16] if plan.recordings is not None else None,
    }


def _close(plan: Plan, out: Path, shards: int, speech: str | None, command: str) -> dict[str, Any]:
    counts = [finished(out, shard, shards, SPLIT) for shard in range(shards)]
    dropped = [asdict(entry) for entry in plan.dropped] + [entry for count in counts for entry in count["dropped"]]
    report = {
        "rows": sum(count["rows"] for count in counts),
        "seconds": round(sum(count["seconds"] for count in counts), 1),
        "dropped": dict(sorted(Counter(entry["reason"] for entry in dropped).items())),
    }
    if report["rows"] == 0:
        raise ValueError(
            f"No row could be made of {len(plan.items)} items ({reasons_line(report['dropped'])}), the first because: "
            f"{dropped[-1]['detail']}. See the detail, remove {out} and try again."
        )
    for litter in out.glob("data/.*.partial"):  # of killed processes
        litter.unlink(missing_ok=True)
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in dropped)
    write_text(out / "dropped.jsonl", lines)
    write_card(plan, out, report, speech, command)
    run = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["run"]
    write_text(out / "manifest.json", json.dumps({"run": run, "report": report}, indent=2, ensure_ascii=False))
    return report
