"""
`speechllm transcribe`: any ASR model of transformers writes `text` where a data set has none, and its word error rate
against the transcript where there is one, so that filters by WER (`max_wer`; LAD drops what exceeds 10 %) work on
anyone's data.

What is unusual here:
- As with targets, the unit of work is a shard: a fixed run of rows that becomes one parquet file, there whole or not
  at all. Process p of n writes every nth shard; a killed run loses the shards it had begun.
- Whisper keeps the half minute of silence that it was trained with: without it, it does not find the end.

    output_dir/manifest.json                        settings, source, recogniser; the report once all is done
    output_dir/dropped.jsonl                        rows whose audio could not be decoded, and why
    output_dir/data/train-00000-of-00042.parquet    the source's columns and those of `WRITTEN`
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from tqdm.auto import tqdm
from transformers.utils import logging

from processing_speechllm.audio import AudioError, load_audio
from trainers.commands.arguments import DataArguments, described
from trainers.commands.inputs import load_training_rows
from trainers.data.bad_rows import ROWS_BEFORE_JUDGING, BadRows
from trainers.data.loading import source_name
from trainers.data.shards import close_run, finished, open_run, write_shard
from trainers.targets.backends import identify
from trainers.targets.generate import process_state
from trainers.targets.sources import describe_source, prepare_source, read_groups

from .behaviour import word_errors
from .packages import need
from .recognisers import PipelineRecogniser

WRITTEN = Features(
    {
        "pseudo": Value("bool"),  # whether `text` is the recogniser's
        "recognised": Value("string"),  # what the recogniser heard, also where there is a transcript
        "wer": Value("float64"),  # of that against the transcript: 0.1 is 10 %; none where `text` is the recogniser's
        "language_detected": Value("bool"),  # whether `language` is what the recogniser heard
        "recogniser": Value("string"),
        "recogniser_revision": Value("string"),
    }
)
WORK = ("output_dir", "batch_size", "max_bad_share")  # settings that change no row


class Hears(Protocol):
    """What transcribes; see [`PipelineRecogniser`]."""

    sampling_rate: int
    tell_language: bool  # whether it is told languages

    def knows(self, language: str | None) -> bool: ...

    def detect_languages(self, audio: Sequence[np.ndarray]) -> list[str | None]: ...

    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[str]: ...


@dataclass
class TranscribeConfig:
    """
    Who transcribes, how, and where the rows go; see [`DataArguments`] for the data.

    Args:
        asr (`str`):
            Hub id or folder of an ASR model of transformers: Whisper and other encoder-decoders, CTC models.
        output_dir (`str`):
            Folder of the rows; an unfinished run in it goes on. `--out` is the same.
        tell_language (`bool`, *optional*, defaults to `True`):
            Tell Whisper the language of rows that say theirs (or `dataset_language`). It is asked for that of the
            others, which is kept in `language`.
        batch_size (`int`, *optional*, defaults to 16):
            Recordings per batch, of like length.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights; `"auto"` is float32 on a CPU, else that of the checkpoint.
        rows_per_shard (`int`, *optional*, defaults to 1000):
            Rows per file; what a killed process loses at most.
        max_bad_share (`float`, *optional*, defaults to 0.01):
            Share of rows whose audio may be unreadable.
    """

    asr: str | None = described("ASR model of transformers (Whisper, CTC, ...): Hub id or folder.")
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the rows; an unfinished run goes on.", "aliases": ["--out"]}
    )
    tell_language: bool = described("Tell Whisper the language of rows that say theirs.", True)
    batch_size: int = described("Recordings per batch, of like length.", 16)
    dtype: str = described("Precision of the weights: auto, float32, bfloat16, float16.", "auto")
    rows_per_shard: int = described("Rows per file; what a killed process loses at most.", 1000)
    max_bad_share: float = described("Share of rows whose audio may be unreadable.", 0.01)

    def __post_init__(self):
        for name, remedy in (("asr", "--asr openai/whisper-small, or a folder"), ("output_dir", "--out FOLDER")):
            if not getattr(self, name):
                raise ValueError(f"There is no {name}. Give it: {remedy}.")
        for name in ("batch_size", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


def transcribe_dataset(config: TranscribeConfig, dataset: Dataset, recogniser: Hears | None = None) -> dict[str, Any]:
    """
    Write the rows of a dataset with transcripts; resume what an earlier run with these settings left.

    Args:
        config: settings.
        dataset: as `load_rows` gives it, with `duration`: `audio`, `text` (may be None), optionally `language`.
        recogniser: one of your own, in place of the one that `config` names.

    Returns:
        the report: `utterances` in the source, `rows` written, `pseudo` of them transcribed, `compared` with a given
        transcript, of these `errors` and `words` (their corpus WER), `within_tenth` rows of at most 10 %, `empty`
        transcripts, `languages` (rows by language), `untold` (rows by a language that the recogniser does not know),
        `dropped`, `shards`, `shards_done`, `complete`.

    Raises:
        ImportError: jiwer is missing, with its pip line.
        ValueError: columns that are taken or missing, rows with several utterances, a recogniser that cannot be
            loaded, or a folder with a run of other settings, source or recogniser.
        RuntimeError: too many rows are unreadable.
    """
    need("jiwer", "speechllm transcribe")
    state = process_state()
    if dataset.features["text"] == Value("null"):
        dataset = dataset.cast_column("text", Value("string"))
    source = prepare_source(dataset, WRITTEN)
    if "language" not in source.column_names:
        source = source.add_column("language", [None] * len(source), feature=Value("string"))
    output = Path(config.output_dir)
    name, revision = identify(config.asr)
    settings = {key: value for key, value in vars(config).items() if key not in (*WORK, "asr")}
    fingerprint = {
        "command": "transcribe",
        "settings": settings,
        "source": describe_source(source),
        "recogniser": {"model": name, "revision": revision},
    }
    open_run(output, fingerprint)
    shards = math.ceil(len(source) / config.rows_per_shard)
    mine = range(state.process_index, shards, state.num_processes)
    todo = [shard for shard in mine if finished(output, shard, shards) is None]
    spans = [(s, s * config.rows_per_shard, min((s + 1) * config.rows_per_shard, len(source))) for s in todo]
    total = sum(stop - start for _, start, stop in spans)
    bad_rows = BadRows(output / "unreadable_rows", config.max_bad_share, ROWS_BEFORE_JUDGING)
    seen = bad = 0
    with tqdm(total=total, unit=" rows", desc="transcribe", disable=not state.is_local_main_process) as bar:
        for shard, start, stop in spans:
            recogniser = recogniser or PipelineRecogniser(config.asr, state.device, config.dtype, config.tell_language)
            table = read_groups(source, start, stop, 1)
            heard = hear(table, recogniser, config, bar.update)
            rows, counts = build_rows(table, heard, recogniser, {"recogniser": name, "recogniser_revision": revision})
            for entry in counts["dropped"]:
                bad_rows.record(entry["id"], entry["source"], entry["finding"])
            seen, bad = seen + len(table), bad + len(counts["dropped"])
            bad_rows.check(seen, bad)
            write_shard(output, shard, shards, rows, counts)
    return close_run(output, fingerprint, shards, partial(summary, len(source)))


# Hearing


@dataclass(frozen=True)
class Heard:
    """What came of a row: its text and language (given or detected), or a finding."""

    text: str = ""
    language: str | None = None
    is_detected: bool = False
    finding: str = ""


def hear(table: pa.Table, recogniser: Hears, config: TranscribeConfig, progress: Callable[[int], Any]) -> list[Heard]:
    """One result per row of the table, in its order; recordings of like length are heard together, no more of them
    than helps, so that progress is seen."""
    durations = table["duration"].to_pylist()
    order = sorted(range(len(table)), key=lambda row: (-durations[row], row))
    size = min(config.batch_size, getattr(recogniser, "at_a_time", None) or config.batch_size)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    languages = table["language"].to_pylist()
    results: list[Heard] = [Heard()] * len(table)
    for batch, decoded in _decoded(table, batches, recogniser.sampling_rate):
        for row, samples in zip(batch, decoded, strict=True):
            if isinstance(samples, AudioError):
                results[row] = Heard(finding=str(samples))
        usable = [
            (row, samples) for row, samples in zip(batch, decoded, strict=True) if not isinstance(samples, AudioError)
        ]
        unknown = [samples for row, samples in usable if not languages[row]]
        detected = iter(recogniser.detect_languages(unknown) if unknown else [])
        codes = [languages[row] or next(detected) for row, _ in usable]
        texts = recogniser.transcribe([samples for _, samples in usable], codes) if usable else []
        for (row, _), code, text in zip(usable, codes, texts, strict=True):
            results[row] = Heard(text.strip(), code, code is not None and not languages[row])
        progress(len(batch))
    return results


def _decoded(
    table: pa.Table, batches: list[list[int]], rate: int
) -> Iterator[tuple[list[int], list[np.ndarray | AudioError]]]:
    """Batches with their samples; the next one is decoded while one is heard."""

    def decode(batch: list[int]) -> list[np.ndarray | AudioError]:
        samples = []
        for audio in table["audio"].take(pa.array(batch, pa.int64())).to_pylist():
            try:
                samples.append(load_audio(audio, rate))
            except AudioError as error:
                samples.append(error)
        return samples

    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(decode, batches[0]) if batches else None
        for place, batch in enumerate(batches):
            decoded = waiting.result()
            if place + 1 < len(batches):
                waiting = executor.submit(decode, batches[place + 1])
            yield batch, decoded


# What is written


def build_rows(
    table: pa.Table, heard: list[Heard], recogniser: Hears, constants: dict[str, str | None]
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a shard with the columns of `WRITTEN`, and its counts."""
    counts: dict[str, Any] = dict.fromkeys(("rows", "pseudo", "compared", "errors", "words", "within_tenth"), 0)
    counts |= {"empty": 0, "languages": Counter(), "untold": Counter(), "dropped": []}
    kept, texts, languages = [], [], []
    columns: dict[str, list] = {name: [] for name in WRITTEN}
    given_texts, ids, given_languages = (table[name].to_pylist() for name in ("text", "id", "language"))
    for row, result in enumerate(heard):
        if result.finding:
            audio = table["audio"][row].as_py()
            counts["dropped"].append({"id": ids[row], "source": source_name(audio), "finding": result.finding})
            continue
        given = (given_texts[row] or "").strip()
        rate = None
        if given:
            errors, words = word_errors(given, result.text, result.language)
            if words:
                rate = errors / words
                counts["compared"] += 1
                counts["errors"] += errors
                counts["words"] += words
                counts["within_tenth"] += rate <= 0.1
        counts["pseudo"] += not given
        counts["empty"] += not given and not result.text
        counts["languages"][result.language] += 1
        if recogniser.tell_language and given_languages[row] and not recogniser.knows(given_languages[row]):
            counts["untold"][given_languages[row]] += 1
        kept.append(row)
        texts.append(given_texts[row] if given else result.text)
        languages.append(result.language)
        values = constants | {
            "pseudo": not given,
            "recognised": result.text,
            "wer": rate,
            "language_detected": result.is_detected,
        }
        for name, column in columns.items():
            column.append(values[name])
    counts["rows"] = len(kept)
    rows = table.take(pa.array(kept, pa.int64()))
    for name, column in (("text", texts), ("language", languages)):
        place = rows.column_names.index(name)
        rows = rows.set_column(place, rows.schema.field(name), pa.array(column, rows.schema.field(name).type))
    features = Features({**Features.from_arrow_schema(table.schema), **WRITTEN})
    for name, column in columns.items():
        kind = WRITTEN.arrow_schema.field(name)
        rows = rows.append_column(kind, pa.array(column, kind.type))
    return rows.cast(features.arrow_schema), counts


def summary(utterances: int, done: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> dict[str, Any]:
    """The report over finished shards."""
    names = ("rows", "pseudo", "compared", "errors", "words", "within_tenth", "empty")
    report: dict[str, Any] = {"utterances": utterances}
    report |= {name: sum(counts[name] for counts in done) for name in names}
    for name in ("languages", "untold"):
        report[name] = dict(sum((Counter(counts[name]) for counts in done), Counter()))
    return report | {"dropped": len(dropped)}


# The command


def transcribe(config: TranscribeConfig, data: DataArguments) -> None:
    """The command: reads the data, transcribes, and says what came of it.

    Raises:
        ValueError: streaming data; see [`transcribe_dataset`].
    """
    if data.streaming:
        raise ValueError("Shards are runs of numbered rows, and a stream has none. Set streaming false.")
    need("jiwer", "speechllm transcribe")
    logging.set_verbosity_error()  # Whisper's own `generate` is warned of how it calls itself
    state = process_state()
    bad_rows = BadRows(Path(config.output_dir) / "unreadable_rows", config.max_bad_share, ROWS_BEFORE_JUDGING)
    with state.main_process_first():
        rows, kept = load_training_rows(data.dataset, data, bad_rows, say=state.print, transcribed=False)
    state.print(f"Data: {kept}")
    report = transcribe_dataset(config, rows)
    if state.is_main_process or report["complete"]:
        print("\n".join(in_words(report, config.output_dir)), flush=True)


def in_words(report: dict[str, Any], output_dir: str) -> list[str]:
    """The report in lines."""
    lines = [f"{report['rows']} rows of {report['utterances']} utterances in {output_dir}"]
    if report["pseudo"]:
        empty = f", {report['empty']} of them empty" if report["empty"] else ""
        lines.append(f"  {report['pseudo']} transcribed (pseudo is true){empty}")
    if report["compared"]:
        share, rate = report["within_tenth"] / report["compared"], report["errors"] / report["words"]
        lines.append(
            f"  {report['compared']} compared with their transcripts: WER {rate:.1%} over all; {share:.0%} of rows "
            "have at most 10 % (--max_wer 0.1 keeps these)"
        )
    languages = sorted(report["languages"].items(), key=lambda item: -item[1])
    told = ", ".join(f"{'unknown' if code in (None, 'null') else code} {count}" for code, count in languages)
    lines.append(f"  languages: {told}")
    if report["untold"]:
        names = ", ".join(f"{code} {count}" for code, count in report["untold"].items())
        lines.append(f"  rows in languages that the recogniser cannot be told: {names}")
    if report["dropped"]:
        lines.append(f"  {report['dropped']} rows left out, their audio cannot be decoded: see dropped.jsonl")
    if not report["complete"]:
        lines.append(f"  {report['shards_done']} of {report['shards']} shards; other processes are still at work")
    return lines


__all__ = ["TranscribeConfig", "transcribe", "transcribe_dataset"]
