"""Filters remove what is beyond a limit and count it under its reason."""

from collections import Counter

import pytest
from datasets import Dataset

from trainers.data.filters import FilterReport, FilterSettings, filter_rows

COUNTED = Dataset.from_dict(
    {
        "id": list("abcdefg"),
        "text": ["four", "word " * 40, "four", "four", "four", "four", "four"],
        "duration": [1.0, 2.0, 0.1, 31.0, None, 1.0, 1.0],
        "wer": [0.1, 0.0, 0.0, 0.0, 0.0, 0.11, None],
    }
)
LIMITS = FilterSettings(min_seconds=0.2, max_seconds=30.0, max_characters_per_second=30.0, max_wer=0.1)
REASONS = {
    "min_seconds": 1,
    "max_seconds": 1,
    "max_characters_per_second": 1,
    "max_wer": 1,
    "no duration": 1,
    "no WER": 1,
}


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_every_filtered_row_is_counted_under_its_reason(streaming):
    rows, report = filter_rows(COUNTED.to_iterable_dataset() if streaming else COUNTED, LIMITS)
    assert [row["id"] for row in rows] == ["a"]
    assert report.rows == 7 and dict(report.removed) == REASONS
    assert str(report).startswith("1 of 7 rows kept, ") and "1 removed by max_wer" in str(report)


def test_chats_without_audio_are_neither_too_short_nor_too_fast():
    rows = Dataset.from_dict({"text": ["hello", "hello"], "duration": [0.0, 0.1]})
    kept, report = filter_rows(rows, FilterSettings(min_seconds=1.0, max_characters_per_second=30.0))
    assert kept["duration"][:] == [0.0] and dict(report.removed) == {"min_seconds": 1}


def test_no_limits_remove_nothing():
    rows, report = filter_rows(COUNTED, FilterSettings())
    assert len(rows) == report.rows == 7 and not report.removed


def test_a_missing_column_is_named_with_those_found_and_the_remedy():
    with pytest.raises(ValueError, match="'duration'; the rows have text. Add it with `with_durations`"):
        filter_rows(Dataset.from_dict({"text": ["x"]}), LIMITS)
    with pytest.raises(ValueError, match="'error_rate'; the rows have .*Name .*wer_column"):
        list(filter_rows(COUNTED.to_iterable_dataset(), FilterSettings(max_wer=0.1, wer_column="error_rate"))[0])


def capped(seed: int = 0, hours: float = 8.0) -> tuple[Dataset, FilterReport]:
    """An hour per row: German has 6 sentences, each thrice; French has 2 rows."""
    texts = [f"Satz {number % 6}" for number in range(18)] + ["un", "deux"]
    rows = Dataset.from_dict(
        {"row": range(20), "text": texts, "language": ["de"] * 18 + ["fr"] * 2, "duration": [3600.0] * 20}
    )
    return filter_rows(rows, FilterSettings(max_hours_per_language=hours, seed=seed))


def test_the_cap_holds_per_language_and_is_counted():
    rows, report = capped()
    assert report.hours == {"de": 8.0, "fr": 2.0}
    assert dict(report.capped) == {"de": 10} and dict(report.removed) == {"max_hours_per_language": 10}
    assert rows["language"][:] == ["de"] * 8 + ["fr"] * 2
    assert rows["row"][:] == sorted(rows["row"])


@pytest.mark.parametrize("hours", [5, 8, 12, 14])
def test_the_cap_goes_in_rounds_over_the_sentences(hours):
    for seed in range(5):
        rows, _ = capped(seed, hours)
        times = Counter(text for text in rows["text"] if text.startswith("Satz"))
        assert len(times) == min(hours, 6) and max(times.values()) - min(times.values()) <= 1
    assert capped(1)[0]["text"][:] == capped(1)[0]["text"][:] != capped(2)[0]["text"][:]


@pytest.mark.parametrize(("hours", "kept"), [(1.9999, 1), (2.0, 2), (2.0001, 2)])
def test_the_cap_is_met_and_never_passed(hours, kept):
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "language": ["de"] * 3, "duration": [3600.0] * 3})
    assert len(filter_rows(rows, FilterSettings(max_hours_per_language=hours))[0]) == kept


@pytest.mark.parametrize(("limit", "kept"), [(0.0999, 1), (0.1, 2), (0.11, 3)])
def test_a_word_error_rate_at_the_limit_is_kept(limit, kept):
    rows = Dataset.from_dict({"wer": [0.05, 0.1, 0.11]})
    assert len(filter_rows(rows, FilterSettings(max_wer=limit))[0]) == kept


def test_the_cap_counts_languages_that_are_numbers():
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "language": [3, 3, -1], "duration": [3600.0] * 3})
    rows, report = filter_rows(rows, FilterSettings(max_hours_per_language=1.0))
    assert report.hours == {"3": 1.0, "unknown": 1.0} and dict(report.capped) == {"3": 1}


def test_the_cap_knows_rows_of_several_and_of_unknown_languages():
    rows = Dataset.from_dict(
        {"text": [["a", "b"], ["c", "d"]], "language": [["en", "de"], [None, "de"]], "duration": [1.0, 1.0]}
    )
    assert set(filter_rows(rows, FilterSettings(max_hours_per_language=1.0))[1].hours) == {"de+en", "de+unknown"}


def test_a_stream_cannot_be_capped():
    with pytest.raises(ValueError, match="a stream is never seen as a whole"):
        filter_rows(COUNTED.to_iterable_dataset(), FilterSettings(max_hours_per_language=1.0))
