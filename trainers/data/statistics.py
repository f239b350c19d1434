"""What is in a data set, counted before anything is trained on it: lengths, languages, transcripts, findings."""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import soundfile
from datasets import Dataset
from tqdm.auto import tqdm

SPEAKERS = ("speaker", "speaker_id", "client_id", "spk", "utt2spk")
LICENCES = ("license", "licence", "source_license")
HEADERS = 2000  # files whose headers are read, spread evenly over the data
BINS = 12
FASTEST, SLOWEST = 30.0, 1.0  # characters per second that speech does not leave
MARKUP = re.compile(r"<[^>]*>|\[[^\]]*\]|\{[^}]*\}")
EXAMPLES = 3
BLOCK = 1000


@dataclass
class Findings:
    """Rows of one kind: how many, and the first few of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, row_id: str, detail: str = "") -> None:
        self.count += 1
        if len(self.first) < EXAMPLES:
            self.first.append(f"{row_id} {detail}".strip())


@dataclass
class DataStatistics:
    """
    Counts of a data set; a row with several utterances is one row.

    Attributes:
        rows (`int`), seconds (`float`): all of them.
        languages, speakers, licences (`dict[str, float]`): seconds of audio by value; empty without such a column.
        rates (`dict[str, int]`): files by sampling rate and channels, of the `headers_read` looked at.
        quantiles (`dict[str, float]`): seconds per row: `min`, `5%`, `median`, `95%`, `max`.
        histogram (`list[tuple[float, float, int]]`): from, to (seconds), rows.
        characters_per_second (`dict[str, float]`): `mean` (all characters by all seconds), `5%`, `median`, `95%`.
        findings (`dict[str, Findings]`): what a person should look at, by kind.
    """

    rows: int
    seconds: float
    languages: dict[str, float]
    speakers: dict[str, float]
    licences: dict[str, float]
    rates: dict[str, int]
    headers_read: int
    quantiles: dict[str, float]
    histogram: list[tuple[float, float, int]]
    characters_per_second: dict[str, float]
    findings: dict[str, Findings]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def unlabelled_rows(rows: Dataset, languages: Sequence[str] | int) -> str | None:
    """
    A line about the utterances that a loss on languages leaves out, None if it leaves out none.

    Args:
        rows: with or without a column `language`.
        languages: those of the connector, by name or how many they are.
    """
    labels: Counter = Counter({None: len(rows)})
    if "language" in rows.column_names:  # of several utterances a list
        labels = Counter(one for row in rows["language"] for one in (row if isinstance(row, list) else [row]))
    known = range(languages) if isinstance(languages, int) else languages
    found = {label: count for label, count in labels.most_common() if label not in known}
    if not found:
        return None
    kinds = ", ".join(f"{count} {'without one' if label is None else label}" for label, count in found.items())
    return (
        f"{sum(found.values())} of {labels.total()} training utterances have no language that the connector lists "
        f"({kinds}); the loss on languages leaves them out, the other losses do not. If they should have one, map the "
        "column language (columns), say it (dataset_language), or list it in the connector's languages."
    )


def describe_rows(rows: Dataset) -> DataStatistics:
    """
    Counts over all rows; nothing is decoded.

    Args:
        rows: of `load_rows` and `with_durations`: `audio` (undecoded), `text`, `id`, `duration`.

    Raises:
        ValueError: no rows.
    """
    if len(rows) == 0:
        raise ValueError("The data have no rows. Check dataset_split and the filters.")
    seconds = np.asarray(rows["duration"][:], dtype=float)
    texts = [_joined(text) for text in rows["text"][:]]
    ids = [str(one) for one in rows["id"][:]]
    findings = _odd_texts(ids, texts, seconds)
    findings |= _duplicates(rows, ids, texts)
    edges = np.linspace(0, float(seconds.max()) or 1.0, BINS + 1)
    counts, _ = np.histogram(seconds, edges)
    rates, read = _rates(rows)
    return DataStatistics(
        rows=len(rows),
        seconds=float(seconds.sum()),
        languages=_by_value(rows, ("language",), seconds),
        speakers=_by_value(rows, SPEAKERS, seconds),
        licences=_by_value(rows, LICENCES, seconds),
        rates=rates,
        headers_read=read,
        quantiles=_quantiles(seconds, {"min": 0, "5%": 5, "median": 50, "95%": 95, "max": 100}),
        histogram=[(float(a), float(b), int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)],
        characters_per_second=_pace(texts, seconds),
        findings={name: found for name, found in findings.items() if found.count},
    )


def _joined(text: Any) -> str:
    return " ".join(part for part in text if part) if isinstance(text, list) else (text or "")


def _quantiles(values: np.ndarray, wanted: dict[str, float]) -> dict[str, float]:
    return {name: float(np.percentile(values, place)) for name, place in wanted.items()}


def _pace(texts: Sequence[str], seconds: np.ndarray) -> dict[str, float]:
    told = np.array([bool(text.strip()) for text in texts]) & (seconds > 0)
    if not told.any():
        return {}
    lengths = np.array([len(text) for text in texts], dtype=float)[told]
    quantiles = _quantiles(lengths / seconds[told], {"5%": 5, "median": 50, "95%": 95})
    return {"mean": float(lengths.sum() / seconds[told].sum()), **quantiles}


def _by_value(rows: Dataset, names: Sequence[str], seconds: np.ndarray) -> dict[str, float]:
    """Seconds by the value of the first column of these names that is there; most first."""
    column = next((name for name in names if name in rows.column_names), None)
    if column is None:
        return {}
    totals: Counter = Counter()
    for value, length in zip(rows[column][:], seconds.tolist(), strict=True):
        told = {"not given" if one is None else str(one) for one in (value if isinstance(value, list) else [value])}
        totals["+".join(sorted(told))] += length
    return dict(totals.most_common())


def _odd_texts(ids: Sequence[str], texts: Sequence[str], seconds: np.ndarray) -> dict[str, Findings]:
    found = {name: Findings() for name in ("without transcript", "without a letter", "with markup")}
    found |= {f"faster than {FASTEST:g} characters per second": Findings()}
    found |= {f"slower than {SLOWEST:g} character per second": Findings(), "silent rows of 0 seconds": Findings()}
    fast, slow = list(found)[3:5]
    for row_id, text, length in zip(ids, texts, seconds.tolist(), strict=True):
        if length == 0:
            found["silent rows of 0 seconds"].add(row_id)
        if not text.strip():
            found["without transcript"].add(row_id)
            continue
        shown = f"“{text[:40]}{'…' * (len(text) > 40)}”"
        if not any(character.isalnum() for character in text):
            found["without a letter"].add(row_id, shown)
        if MARKUP.search(text):
            found["with markup"].add(row_id, shown)
        if length and len(text) > FASTEST * length:
            found[fast].add(row_id, f"{len(text)} characters in {length:.1f} s")
        if length and len(text) < SLOWEST * length:
            found[slow].add(row_id, f"{shown} in {length:.1f} s")
    return found


def _duplicates(rows: Dataset, ids: Sequence[str], texts: Sequence[str]) -> dict[str, Findings]:
    """Rows whose transcript, and rows whose recording (by path, or by embedded bytes), came before."""
    found = {"with a transcript that came before": Findings(), "with a recording that came before": Findings()}
    said: set[str] = set()
    heard: set[str] = set()
    for row_id, text in zip(ids, texts, strict=True):
        key = " ".join(text.casefold().split())
        if key in said:
            found["with a transcript that came before"].add(row_id, f"“{text[:40]}”")
        said.add(key or row_id)
    audios = rows.select_columns(["audio"])
    for start in range(0, len(rows), BLOCK):
        block = audios[start : min(start + BLOCK, len(rows))]["audio"]
        for row_id, audio in zip(ids[start:], block, strict=False):
            key = _audio_key(audio)
            if key is not None and key in heard:
                found["with a recording that came before"].add(row_id)
            heard.add(key or row_id)
    return found


def _audio_key(audio: Any) -> str | None:
    """What a recording is known by; None of rows without."""
    if isinstance(audio, list):
        keys = [_audio_key(part) for part in audio]
        return "+".join(keys) if keys and all(keys) else None
    if audio is None:
        return None
    content = audio.get("bytes")
    return hashlib.sha256(content).hexdigest() if content is not None else audio.get("path")


def _rates(rows: Dataset) -> tuple[dict[str, int], int]:
    """Files by `16000 Hz, 1 channel`, and how many were looked at; formats that need decoding are `other`."""
    step = max(len(rows) // HEADERS, 1)
    found: Counter = Counter()
    places = range(0, len(rows), step)
    for row in tqdm(rows.select_columns(["audio"]).select(places), desc="Reading headers", leave=False):
        for audio in row["audio"] if isinstance(row["audio"], list) else [row["audio"]]:
            if audio is None:
                continue
            content = audio.get("bytes")
            try:
                info = soundfile.info(io.BytesIO(content) if content is not None else audio["path"])
            except (soundfile.LibsndfileError, TypeError):
                found["other formats"] += 1
                continue
            found[f"{info.samplerate} Hz, {info.channels} channel{'s' * (info.channels > 1)}, {info.format}"] += 1
    return dict(found.most_common()), len(places)


__all__ = ["DataStatistics", "Findings", "describe_rows"]
