"""Which rows are trained on: limits on length, pace and recognition errors, and a cap of hours per language.

Every row left out is counted under the reason for it.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from datasets import IterableDataset as Stream
from tqdm import tqdm

READ_ROWS = 1000


@dataclass
class FilterSettings:
    """
    Limits on the rows; None is no limit. A row with several utterances is measured as a whole; one without audio, of 0
    seconds, is neither too short nor too fast.

    Args:
        min_seconds (`float`, *optional*): shortest audio.
        max_seconds (`float`, *optional*): longest audio; BLOOMZMMS has 30.
        max_characters_per_second (`float`, *optional*): fastest transcript; beyond about 30 it does not match
            its audio.
        max_wer (`float`, *optional*): highest word error rate of a recogniser against the transcript, in the unit of
            the column; LAD drops what exceeds 10 %. Rows without one are dropped too.
        wer_column (`str`, *optional*, defaults to `"wer"`): column of that rate.
        max_hours_per_language (`float`, *optional*): hours of each language, names or numbers. Sentences come in
            rounds, each once before any comes again, as BLOOMZMMS does with 25 hours of Common Voice. Not for streams.
        seed (`int`, *optional*, defaults to 0): seed of that choice.
    """

    min_seconds: float | None = None
    max_seconds: float | None = None
    max_characters_per_second: float | None = None
    max_wer: float | None = None
    wer_column: str = "wer"
    max_hours_per_language: float | None = None
    seed: int = 0

    def columns(self) -> list[str]:
        """The columns that these limits need."""
        pace = self.max_characters_per_second
        lengths = (self.min_seconds, self.max_seconds, pace, self.max_hours_per_language)
        needed = {
            "duration": any(limit is not None for limit in lengths),
            "text": pace is not None or self.max_hours_per_language is not None,
            "language": self.max_hours_per_language is not None,
            self.wer_column: self.max_wer is not None,
        }
        return [name for name, wanted in needed.items() if wanted]


@dataclass
class FilterReport:
    """
    What the filters did. Of a stream, it counts as the stream is read in this process.

    Attributes:
        rows (`int`): rows seen.
        removed (`Counter`): rows removed, by reason: the name of the limit, or "no duration" or "no WER".
        capped (`Counter`): rows removed by `max_hours_per_language`, by language.
        hours (`dict[str, float]`): hours kept, by language, where the cap is set.
    """

    rows: int = 0
    removed: Counter = field(default_factory=Counter)
    capped: Counter = field(default_factory=Counter)
    hours: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        gone = self.removed.total()
        parts = [f"{self.rows - gone} of {self.rows} rows kept"]
        parts += [f"{count} removed by {reason}" for reason, count in self.removed.items()]
        parts += [f"{hours:.1f} h of {language}" for language, hours in sorted(self.hours.items())]
        return ", ".join(parts)


def filter_rows(dataset: Dataset | Stream, settings: FilterSettings) -> tuple[Dataset | Stream, FilterReport]:
    """
    The rows within the limits, in their order, and a report of the others.

    Args:
        dataset: rows with the columns that the limits need; `duration` comes from `with_durations`.
        settings: the limits.

    Raises:
        ValueError: a column is missing, or a cap is asked for on a stream.
    """
    report = FilterReport()
    needed = settings.columns()
    if isinstance(dataset, Stream):
        if settings.max_hours_per_language is not None:
            raise ValueError(
                "max_hours_per_language chooses among all rows, and a stream is never seen as a whole. Load the "
                "dataset without streaming, or leave the cap out."
            )
        return dataset.filter(_Judge(settings, report)), report
    missing = [name for name in needed if name not in dataset.column_names]
    if missing:
        raise ValueError(_missing_column(missing[0], dataset.column_names))
    if not needed:
        report.rows = len(dataset)
        return dataset, report
    judge, kept, measures = _Judge(settings, report), [], []
    for index, row in enumerate(_rows(dataset.select_columns(needed), len(dataset))):
        if judge(row):
            kept.append(index)
            measures.append(row)
    if settings.max_hours_per_language is not None:
        kept = [kept[position] for position in _cap(measures, settings, report)]
    return dataset.select(kept), report


def _rows(dataset: Dataset, total: int) -> Iterable[dict[str, Any]]:
    with tqdm(total=total, desc="Filtering", unit=" rows") as progress:
        for batch in dataset.iter(READ_ROWS):
            values = list(zip(*batch.values(), strict=True))
            yield from (dict(zip(batch, row, strict=True)) for row in values)
            progress.update(len(values))


class _Judge:
    """Whether a row is within the limits that need no other row; counts those that are not."""

    def __init__(self, settings: FilterSettings, report: FilterReport):
        self.settings, self.report, self.columns = settings, report, settings.columns()

    def __call__(self, row: dict[str, Any]) -> bool:
        self.report.rows += 1
        reason = self._reason(row)
        if reason is not None:
            self.report.removed[reason] += 1
        return reason is None

    def _reason(self, row: dict[str, Any]) -> str | None:
        settings = self.settings
        for name in self.columns:
            if name not in row:
                raise ValueError(_missing_column(name, list(row)))
        if "duration" in self.columns:
            seconds = row["duration"]
            if seconds is None:
                return "no duration"
            if settings.min_seconds is not None and 0 < seconds < settings.min_seconds:
                return "min_seconds"
            if settings.max_seconds is not None and seconds > settings.max_seconds:
                return "max_seconds"
            pace = settings.max_characters_per_second
            if pace is not None and seconds and len(_text(row)) > pace * seconds:
                return "max_characters_per_second"
        if settings.max_wer is not None:
            rate = row[settings.wer_column]
            if rate in (None, ""):
                return "no WER"
            if not float(rate) <= settings.max_wer:
                return "max_wer"
        return None


def _cap(rows: list[dict[str, Any]], settings: FilterSettings, report: FilterReport) -> list[int]:
    """Positions of the rows to keep: per language in random order, in rounds over its sentences, up to the cap."""
    languages = defaultdict(list)
    for position, row in enumerate(rows):
        languages[_language(row)].append(position)
    kept = []
    for language, positions in languages.items():
        random.Random(f"{settings.seed}|{language}").shuffle(positions)
        times, rounds = Counter(), {}
        for position in positions:
            sentence = " ".join(_text(rows[position]).casefold().split())
            rounds[position] = times[sentence]
            times[sentence] += 1
        chosen, seconds = 0, 0.0
        for position in sorted(positions, key=rounds.__getitem__):
            if seconds + rows[position]["duration"] > 3600 * settings.max_hours_per_language:
                break
            seconds += rows[position]["duration"]
            kept.append(position)
            chosen += 1
        report.hours[language] = seconds / 3600
        if chosen < len(positions):
            report.capped[language] = len(positions) - chosen
    if report.capped:
        report.removed["max_hours_per_language"] = report.capped.total()
    return sorted(kept)


def _text(row: dict[str, Any]) -> str:
    text = row["text"]
    return text if isinstance(text, str) else " ".join(part for part in text or [] if part)


def _language(row: dict[str, Any]) -> str:
    """The language, a name or a number; those of several utterances joined by "+"; "unknown" without one."""
    language = row["language"]
    parts = {language} if not isinstance(language, list) else set(language)
    return "+".join(sorted("unknown" if part in (None, "", -1) else str(part) for part in parts)) or "unknown"


def _missing_column(name: str, found: list[str]) -> str:
    remedy = {
        "duration": "Add it with `with_durations`.",
        "text": "Name the transcripts' column in `columns` of `load_rows`.",
        "language": "Name the languages' column in `columns` of `load_rows`, or leave the cap out.",
    }.get(name, "Name the word error rates' column in wer_column, or leave max_wer out.")
    return f"The filters need a column {name!r}; the rows have {', '.join(found)}. {remedy}"
