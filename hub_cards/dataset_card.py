"""Data sets for the Hub: targets and benchmarks with their recordings inside, and a card of counted facts.

OUT/data/train-00000-of-00042.parquet    rows, audio as bytes
OUT/README.md, facts.json                the card, and what it is rendered from
OUT/manifest.json, dropped.jsonl         of `speechllm targets`: settings, and questions without a row
"""

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .facts import FACTS_FILE, merge_facts, read_facts, without_places, write_facts, write_text
from .findings import Finding
from .licenses import OTHER_LICENSE, read_license
from .model_card import fence
from .rows import ParquetRows, describe_rows, instructions, sample_rows
from .tables import MISSING, OVERLAP_TITLE, cell, duration, overlap_section, pairs

ROWS_PER_SHARD = 500
SIZES = [(1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M")]
Writer = Callable[[Path], None]


def export_dataset(
    folder: str | Path,
    out: str | Path,
    name: str | None = None,
    license: str | None = None,
    rows: Any = None,
    card: dict[str, Any] | None = None,
) -> Path:
    """
    Writes a Hub repository of a data set, whole or not at all: every recording is put into the files.

    Args:
        folder: of `speechllm targets`, or any with `data/*.parquet`; of a manifest, with `rows`.
        out: a folder that does not exist yet.
        name: for the card, by default the folder's.
        license: identifier of the data set's licence, by default the one that all its rows state.
        rows: a `datasets.Dataset` with undecoded `audio`, in place of the folder's parquet files.
        card: `summary`, `repository`, `languages`, `license_name`, `license_link`, in place of what the facts say.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: no rows, or a recording is not where its row says.
        ValueError: a data set that has not been written to its end, or words for a card that others made.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists. Give a folder that does not, or remove it.")
    files = parquet_files(folder)
    if rows is None and not files:
        raise FileNotFoundError(f"{folder} has no data/*.parquet. Give the folder of speechllm targets.")
    manifest = read_manifest(folder)
    if manifest and not (manifest.get("report") or {}).get("complete"):
        raise ValueError(f"{folder} is not finished. Give the same speechllm targets command again, then export.")
    stated = {"name": name, "license": license} | (card or {})
    stated = {key: value for key, value in stated.items() if value is not None}
    if stated and has_own_card(folder):
        raise ValueError(
            f"{folder / 'README.md'} was not made from facts and stays as it is, so {', '.join(stated)} would be "
            "lost. Write them into that card, or remove it."
        )
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        (partial / "data").mkdir(parents=True)
        if rows is None:
            for file in files:
                embed_file(file, partial / "data" / file.name)
        else:
            embed_rows(rows, partial / "data")
        if manifest:
            write_text(partial / "manifest.json", json.dumps(without_places(manifest), indent=2, ensure_ascii=False))
        if (folder / "dropped.jsonl").is_file():
            shutil.copyfile(folder / "dropped.jsonl", partial / "dropped.jsonl")
        if has_own_card(folder):
            shutil.copyfile(folder / "README.md", partial / "README.md")
        else:
            facts = merge_facts(read_facts(folder), dataset_facts(partial, name or folder.resolve().name))
            write_dataset_card(partial, merge_facts(facts, {"model": stated}))
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def has_own_card(folder: Path) -> bool:
    """Whether a card lies there that was not rendered from facts, as those of `speechllm benchmark`; it stays."""
    return (folder / "README.md").is_file() and not (folder / FACTS_FILE).is_file()


def parquet_files(folder: Path) -> list[Path]:
    """The files of rows; `speechllm targets` hides those without any."""
    return [path for path in sorted((folder / "data").glob("*.parquet")) if not path.name.startswith(".")]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `speechllm targets` noted of its run, {} for other data."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def embed_file(source: Path, target: Path) -> None:
    """A parquet file with its recordings as bytes; of their paths, the names stay."""
    import pyarrow.parquet as pq
    from datasets import Features

    file = pq.ParquetFile(source)
    features = Features.from_arrow_schema(file.schema_arrow)
    with pq.ParquetWriter(target, features.arrow_schema) as writer:
        for group in range(file.num_row_groups):
            writer.write_table(embed_table(file.read_row_group(group), features))


def embed_rows(rows: Any, folder: Path) -> None:
    """Rows of a `datasets.Dataset` as parquet files with their recordings as bytes."""
    import pyarrow.parquet as pq

    shards = max(1, -(-len(rows) // ROWS_PER_SHARD))
    for shard in range(shards):
        part = rows.select(range(shard * ROWS_PER_SHARD, min((shard + 1) * ROWS_PER_SHARD, len(rows))))
        table = embed_table(part.with_format("arrow")[:], rows.features)
        pq.write_table(table, folder / f"train-{shard:05d}-of-{shards:05d}.parquet")


def embed_table(table: Any, features: Any) -> Any:
    """
    A table whose audio is bytes.

    Raises:
        FileNotFoundError: a recording is not where its row says.
    """
    from datasets.table import embed_table_storage

    try:
        return embed_table_storage(table.cast(features.arrow_schema))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Run where the recordings lie as the rows name them.") from error


def dataset_facts(folder: str | Path, name: str, local_only: bool = False) -> dict[str, Any]:
    """The facts of a data set's folder, counted over its files; `local_only` asks the Hub for no licence."""
    folder = Path(folder)
    rows, manifest = ParquetRows(parquet_files(folder)), read_manifest(folder)
    entry = describe_rows(rows, name)
    entry["splits"] = sorted({file.name.partition("-")[0] for file in rows.files})
    for model in (entry.get("targets") or {}).get("models", []):
        model |= read_license(model["model"], model["revision"], local_only=local_only)
    facts: dict[str, Any] = {
        "model": {"name": name},
        "data": [entry],
        "sample": [_shorten(r) for r in sample_rows(rows)],
    }
    if entry.get("languages"):
        facts["model"]["languages"] = [code for code in entry["languages"] if code not in ("unknown", "several")]
    if re.fullmatch(r"[a-z0-9.+-]+", (entry.get("license") or "").lower()):
        facts["model"]["license"] = entry["license"].lower()
    if "messages" in rows.column_names:
        facts["prompt"] = {"instructions": instructions(rows)}
    return without_places(facts | ({"generation": manifest} if manifest else {}))


def _shorten(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None and not isinstance(value, bytes)}


def write_dataset_card(folder: str | Path, facts: dict[str, Any] | None = None) -> Path:
    """Writes `facts.json` and `README.md` of a data set's folder; by default from what its files hold."""
    folder = Path(folder)
    if facts is None:
        facts = merge_facts(read_facts(folder), dataset_facts(folder, folder.resolve().name, local_only=True))
    write_facts(folder, facts)
    write_text(folder / "README.md", render_dataset_card(facts))
    return folder / "README.md"


def write_overlap(folder: str | Path, entries: list[dict[str, Any]]) -> None:
    """Puts the overlap onto the card of a data set, whoever made the card."""
    folder = Path(folder)
    if not has_own_card(folder):
        write_dataset_card(folder, merge_facts(read_facts(folder), {"contamination": entries}))
        return
    text = (folder / "README.md").read_text(encoding="utf-8")
    before = re.sub(rf"\n*{re.escape(OVERLAP_TITLE)}\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    write_text(folder / "README.md", f"{before.rstrip()}\n\n{overlap_section(entries)}\n")


def render_dataset_card(facts: dict[str, Any]) -> str:
    """The card's text, metadata first."""
    from huggingface_hub import DatasetCard

    parts = (_head, _counts, _making, _dropped, _prompts, _sample, _overlap, _licence)
    body = "\n\n".join(text.strip() for part in parts if (text := part(facts)))
    return str(DatasetCard(f"---\n{card_data(facts).to_yaml()}\n---\n\n{body}\n"))


def card_data(facts: dict[str, Any]) -> Any:
    """The metadata, as huggingface_hub's own class."""
    from huggingface_hub import DatasetCardData

    model, entry = facts.get("model") or {}, facts["data"][0]
    generated = bool(entry.get("targets"))
    splits = entry.get("splits") or ["train"]
    optional = {
        "language": model.get("languages") or None,
        "license": model.get("license"),
        "license_name": model.get("license_name"),
        "license_link": model.get("license_link"),
        "annotations_creators": ["machine-generated"] if generated else None,
    }
    return DatasetCardData(
        pretty_name=model.get("name"),
        size_categories=[next((size for limit, size in SIZES if entry["rows"] < limit), "n>10M")],
        task_categories=["audio-text-to-text"] if generated else ["automatic-speech-recognition"],
        tags=["speechllm", "audio"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
        **{name: value for name, value in optional.items() if value is not None},
    )


def _head(facts: dict[str, Any]) -> str:
    model = facts.get("model") or {}
    summary = model.get("summary") or (
        "Recordings of speech, instructions about them, and an LLM's answers to these when it reads the transcript."
        if facts["data"][0].get("targets")
        else "Recordings of speech with transcripts."
    )
    name = model.get("repository") or "owner/name"
    return (
        f"# {model.get('name')}\n\n{summary}\n\n```python\nfrom datasets import Audio, load_dataset\n\n"
        f'rows = load_dataset("{name}", split="train").cast_column("audio", Audio(decode=False))\n```\n\n'
        f"Train on it: `speechllm imitate --dataset {name} ...`"
    )


def _counts(facts: dict[str, Any]) -> str:
    entry = facts["data"][0]
    targets = entry.get("targets") or {}
    lines = ["| | |", "|---|---|", f"| rows | {entry['rows']:,} |", f"| audio | {duration(entry.get('hours'))} |"]
    languages = {code: duration(hours) for code, hours in (entry.get("languages") or {}).items()}
    lines.append(f"| audio by language | {pairs(languages) or MISSING} |")
    for name, title in (("sets", "target set"), ("tasks", "task")):
        if targets.get(name):
            lines.append(f"| rows by {title} | {pairs(targets[name])} |")
    if targets.get("cut_at_limit"):
        lines.append(f"| answers cut at the limit of tokens (`finish_reason` is length) | {targets['cut_at_limit']} |")
    return "## Counts\n\n" + "\n".join(lines)


def _making(facts: dict[str, Any]) -> str:
    run = (facts.get("generation") or {}).get("run") or {}
    models = (facts["data"][0].get("targets") or {}).get("models") or []
    if not run and not models:
        return ""
    names = [f"{model['model']}, revision {model.get('revision') or 'unknown'}" for model in models]
    text = f"## How the answers were made\n\nBy {' and '.join(names) or 'no LLM: the answers are the transcripts'}."
    if run.get("settings"):
        settings = {name: value for name, value in run["settings"].items() if value is not None}
        text += f"\n\n{fence(json.dumps(settings, indent=2, ensure_ascii=False), 'json')}"
        text += f"\n\nDigest of the prompt pools: `{run.get('prompts')}`. Source: {run['source']['rows']:,} rows, "
        text += f"digest `{run['source']['content']}`."
    return text


def _dropped(facts: dict[str, Any]) -> str:
    report = (facts.get("generation") or {}).get("report")
    if report is None:
        return ""
    dropped = report.get("dropped") or {}
    reasons = ", ".join(f"{count} for {reason.replace('_', ' ')}" for reason, count in dropped.items()) or "none"
    return (
        f"## What was left out\n\nOf {report['asked']:,} questions about {report['utterances']:,} utterances "
        f"{report['rows']:,} became rows. Dropped: {reasons}. `dropped.jsonl` lists them."
    )


def _prompts(facts: dict[str, Any]) -> str:
    listed = (facts.get("prompt") or {}).get("instructions")
    if not listed:
        return ""
    return "## Instructions\n\n" + "\n".join(f"- {cell(line)}" for line in listed)


def _sample(facts: dict[str, Any]) -> str:
    rows = facts.get("sample") or []
    if not rows:
        return ""
    text = "\n".join(json.dumps(row, indent=1, ensure_ascii=False) for row in rows)
    return f"## Sample\n\nThe first rows, without their audio:\n\n{fence(text, 'json')}"


def _overlap(facts: dict[str, Any]) -> str:
    return overlap_section(facts.get("contamination"))


def _licence(facts: dict[str, Any]) -> str:
    model, entry = facts.get("model") or {}, facts["data"][0]
    text = f"## Licence\n\nThis data set: {model.get('license_name') or model.get('license') or 'not stated'}."
    text += f" Recordings and transcripts: {entry.get('license') or 'unknown'}."
    for writer in (entry.get("targets") or {}).get("models") or []:
        text += f" Answers by {writer['model']}: its licence is {writer.get('license') or 'unknown'}."
    return text


# Checks


def check_rows(folder: Path) -> Iterator[Finding]:
    """Rows can be read, and every recording is in them."""
    files = parquet_files(folder)
    if not files:
        yield Finding("FAIL", "rows", "there is no data/*.parquet", "export the targets: speechllm export")
        return
    rows = ParquetRows(files)
    if "audio" not in rows.column_names:
        yield Finding("FAIL", "rows", f"no column audio, only {', '.join(rows.column_names)}", "rename the column")
        return
    outside = _recordings_outside(files)
    if outside:
        remedy = f"put the recordings into the files: speechllm export {folder} OUT"
        yield Finding("FAIL", "rows", f"{outside} of {len(rows)} recordings are not in the files", remedy)
    else:
        yield Finding("ok", "rows", f"{len(rows)} rows in {len(files)} files, every recording in them")


def _recordings_outside(files: list[Path]) -> int:
    """Recordings without bytes, or with a path of some machine."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    outside = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(100, columns=["audio"]):
            audio = batch["audio"]
            audio = audio.flatten() if hasattr(audio, "offsets") else audio  # several utterances per row
            without = pc.is_null(pc.struct_field(audio, "bytes"))
            paths = pc.struct_field(audio, "path").cast("string")  # where all are null, it has no type
            placed = pc.fill_null(pc.match_substring_regex(paths, "^(/|[A-Za-z]:)"), False)
            outside += pc.sum(pc.or_(without, placed)).as_py() or 0
    return outside


def check_dataset_card(folder: Path) -> Iterator[Finding]:
    """The card's metadata, and whether it says what the facts say."""
    from huggingface_hub import DatasetCard

    path = folder / "README.md"
    if not path.is_file():
        yield Finding("FAIL", "card", "README.md is missing", "export the targets: speechllm export")
        return
    text = path.read_text(encoding="utf-8")
    found = DatasetCard(text).data.to_dict()
    if not found.get("license"):
        yield Finding("FAIL", "card", "no licence is stated", "speechllm export --license ID")
    if found.get("license") == "other" and not (found.get("license_name") and found.get("license_link")):
        yield Finding("FAIL", "card", OTHER_LICENSE, "export --license_name NAME --license_link URL")
    if not found.get("language"):
        yield Finding("note", "card", "no language is stated: the rows have none", "add a column language")
    if not has_own_card(folder) and text != render_dataset_card(read_facts(folder)):
        yield Finding("note", "card", "differs from what facts.json gives: edited by hand, or older", "export anew")
    yield Finding("ok", "card", f"metadata valid, {', '.join(found.get('language') or ['no language'])}")


__all__ = [
    "check_dataset_card",
    "check_rows",
    "dataset_facts",
    "export_dataset",
    "render_dataset_card",
    "write_overlap",
    "write_dataset_card",
]
