"""The card of a benchmark: what it holds, by whom it is spoken, what was left out; from the rows that were written."""

import importlib.metadata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from trainers.data.shards import write_text

from ..normalise import base_code

TASK_CATEGORIES = {
    "transcribe": "automatic-speech-recognition",
    "translate": "translation",
    "question": "question-answering",
    "classify": "text-classification",
    "instruct": "text-generation",
}
COUNTED = ("language", "task", "prompt_kind", "voice", "duration")


def write_card(plan: Any, out: Path, report: dict[str, Any], speech: str | None, command: str) -> None:
    """`README.md` of the folder, with the metadata that the Hub and `load_dataset` read."""
    rows = list(_rows(out))
    data = DatasetCardData(
        pretty_name=plan.title,
        license=plan.license or "unknown",
        language=sorted({base_code(row["language"]) for row in rows if row["language"]}),
        task_categories=[TASK_CATEGORIES[plan.task]],
        tags=["speech", "benchmark", "speechllm"],
        configs=[{"config_name": "default", "data_files": [{"split": "test", "path": "data/test-*.parquet"}]}],
    )
    parts = [
        f"# {plan.title}",
        plan.description,
        "## Rows",
        _table(("task", "language", "prompts", "rows", "minutes"), _counts(rows)),
        f"{report['rows']} rows, {report['seconds'] / 3600:.2f} hours of speech. Read them with "
        '`load_dataset(folder, split="test")`, or score a model:',
        f"```bash\nspeechllm evaluate --model MODEL --dataset FOLDER --dataset_split test --task {plan.task}\n```",
        "## Source",
        f"{plan.source}. Licence: {plan.license or 'not stated; see the source, before you pass this on'}.",
        *_speech(plan, rows, speech),
        "## Left out",
        _left_out(report),
        "## Made with",
        _table(("setting", "value"), sorted((name, _cell(value)) for name, value in plan.settings.items())),
        f"speechllm {importlib.metadata.version('speechllm')}.",
        *([f"```bash\n{command}\n```"] if command else []),
    ]
    write_text(out / "README.md", f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    DatasetCard.load(out / "README.md")  # it must be one


def _rows(out: Path) -> Iterable[dict[str, Any]]:
    """The rows' columns that are counted."""
    for path in sorted(out.glob("data/test-*.parquet")):
        names = [name for name in COUNTED if name in pq.read_schema(path).names]
        yield from pq.read_table(path, columns=names).to_pylist()


def _counts(rows: list[dict[str, Any]]) -> list[tuple]:
    counts, seconds = Counter(), Counter()
    for row in rows:
        key = (row["task"], row["language"], row["prompt_kind"].replace("_", " "))
        counts[key] += 1
        seconds[key] += row["duration"]
    return [(*key, counts[key], f"{seconds[key] / 60:.1f}") for key in sorted(counts)]


def _speech(plan: Any, rows: list[dict[str, Any]], speech: str | None) -> list[str]:
    if speech is None:
        return ["## Speech", "Recordings of the source, mixed to mono and resampled to 16 kHz, otherwise as they are."]
    used = Counter()
    for row in rows:
        voices = row["voice"] if isinstance(row["voice"], list) else [row["voice"]]
        used.update((row["language"], voice) for voice in voices if voice is not None)
    lines = [
        (language, voice.name, voice.gender or "not told", used[language, voice.name])
        for language, voices in sorted(plan.voices.items())
        for voice in voices
    ]
    return [
        "## Speech",
        f"Synthetic, by {speech}, at 16 kHz; one voice at random per utterance. It is cleaner and more even than "
        "people are: say so beside a figure.",
        _table(("language", "voice", "gender", "utterances"), lines),
    ]


def _left_out(report: dict[str, Any]) -> str:
    if not report["dropped"]:
        return "Nothing."
    lines = [(reason.replace("_", " "), count) for reason, count in report["dropped"].items()]
    return _table(("reason", "items"), lines) + "\n\nEach is in `dropped.jsonl`, by its id."


def _table(head: tuple, lines: Iterable[tuple]) -> str:
    rows = [head, tuple("---" for _ in head), *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
