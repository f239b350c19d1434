"""Intervals and paired tests of evaluation against distributions that are known."""

import math

import numpy as np
import pytest

from speechllm.evaluation import pictures
from speechllm.evaluation.bootstrap import Estimate, Resamples, difference, estimate
from speechllm.evaluation.metrics import ratio, share
from speechllm.evaluation.tables import Row, Table, cell_in_full, cell_in_short


def flags(right: int, rows: int) -> np.ndarray:
    return share("x", "x", [place < right for place in range(rows)]).statistics


def test_the_interval_of_a_share_is_the_binomial_s():
    # 300 right of 1,000: standard error sqrt(0.3 * 0.7 / 1000) = 1.449 %, 95 % within 1.96 of it
    found = estimate(flags(300, 1000), ratio(), Resamples(map_names(1000), 4000))
    error = 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert found.value == 30 and found.rows == 1000
    assert found.low == pytest.approx(30 - 1.96 * error, abs=0.2)  # of 4,000 resamples
    assert found.high == pytest.approx(30 + 1.96 * error, abs=0.2)


def map_names(rows: int, per_recording: int = 1) -> list[str]:
    return [f"recording-{row // per_recording}" for row in range(rows)]


def test_rows_of_one_recording_are_no_evidence_of_their_own():
    # Ten equal rows per recording: the error is that of 100 recordings, sqrt(10) times that of 1,000 rows.
    statistics = flags(300, 1000)
    alone = estimate(statistics, ratio(), Resamples(map_names(1000), 2000))
    together = estimate(statistics, ratio(), Resamples(map_names(1000, 10), 2000))
    assert together.value == alone.value
    widths = [found.high - found.low for found in (together, alone)]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(10), rel=0.08)


def test_intervals_cover_the_truth_as_often_as_they_say():
    # 300 samples of 100 normal numbers with mean 5: about 95 % of the intervals hold it (percentile intervals 94).
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        numbers = rng.normal(5, 2, 100)
        statistics = np.stack([numbers, np.ones(100)], axis=1)
        found = estimate(statistics, ratio(1.0), Resamples(map_names(100), 400))
        held += found.low <= 5 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_the_seed_gives_the_interval():
    statistics = flags(30, 100)
    first, again, other = (estimate(statistics, ratio(), Resamples(map_names(100), 200, seed)) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high) or first.value == other.value


def test_rows_that_are_all_alike_have_the_exact_binomial_interval():
    # Clopper and Pearson: with 20 of 20 right the low end p solves p ** 20 = 0.025.
    found = estimate(flags(20, 20), ratio(), Resamples(map_names(20), 50), is_share=True)
    assert (found.value, found.high) == (100, 100) and (found.low / 100) ** 20 == pytest.approx(0.025)
    none = estimate(flags(0, 20), ratio(), Resamples(map_names(20, 2), 50), is_share=True)  # ten recordings
    assert (none.value, none.low) == (0, 0) and (1 - none.high / 100) ** 10 == pytest.approx(0.025)


def test_without_spread_nothing_is_known_of_other_values():
    alike = np.array([[1.0, 4.0]] * 5)
    found = estimate(alike, ratio(), Resamples(map_names(5)), is_share=True)
    assert found.value == 25 and np.isnan([found.low, found.high]).all()
    single = np.array([[3.0, 4.0]])
    found = difference(single, single - [2.0, 0.0], ratio(), Resamples(map_names(1)))
    assert found.value == 50 and np.isnan([found.low, found.high, found.p]).all()
    assert cell_in_full(found, "%") == "50.0" == cell_in_short(found, "%")


def test_a_picture_of_zeros_has_an_axis_that_can_be_read(monkeypatch, tmp_path):
    axes = []
    original = pictures._draw_panel
    monkeypatch.setattr(pictures, "_draw_panel", lambda axis, *given: (original(axis, *given), axes.append(axis)))
    zero = Estimate(0.0, float("nan"), float("nan"), 3)
    pictures.draw(Table("zeros", "Zeros", ("speech",), (Row("error rate", "%", (zero,)),)), tmp_path)
    (axis,) = axes
    assert axis.get_ylim() == (0, 1) and not any(len(line.get_xdata()) for line in axis.lines[1:-1])


def test_a_mask_scores_its_rows_alone():
    statistics = flags(30, 100)
    mask = np.arange(100) < 60
    found = estimate(statistics, ratio(), Resamples(map_names(100), 500), mask)
    assert (found.value, found.rows) == (50, 60)
    assert found.low < 50 < found.high
    nothing = estimate(statistics, ratio(), Resamples(map_names(100), 10), np.zeros(100, dtype=bool))
    assert math.isnan(nothing.value) and nothing.rows == 0


def test_a_paired_difference_is_narrower_than_two_intervals_side_by_side():
    # b is a with five rows of 200 turned wrong: nearly all of the spread is common.
    a, b = flags(120, 200), flags(115, 200)
    resamples = Resamples(map_names(200), 2000)
    found = difference(a, b, ratio(), resamples)
    assert found.value == pytest.approx(2.5)
    # five of 200 differ: standard error 100 * sqrt(0.025 * 0.975 / 200) = 1.10
    assert found.low == pytest.approx(2.5 - 1.96 * 1.10, abs=0.45)
    assert found.high == pytest.approx(2.5 + 1.96 * 1.10, abs=0.45)
    assert found.p == 2 * 0.5**5  # the sign test's of five that speak for one system, the bootstrap's is 0.01
    single = estimate(a, ratio(), resamples)
    assert found.high - found.low < (single.high - single.low) / 2


def test_equal_systems_do_not_differ_as_far_as_is_known():
    rows = flags(50, 100), flags(50, 100), ratio(), Resamples(map_names(100), 100)
    found = difference(*rows)
    assert (found.value, found.p) == (0, 1) and np.isnan([found.low, found.high]).all()
    found = difference(*rows, is_share=True)  # 95 % sure that not more than 1 - 0.025 ** (1 / 100) differ
    assert (found.value, found.p) == (0, 1) and -found.low == found.high == pytest.approx(3.62, abs=0.01)


@pytest.mark.parametrize("count", [2, 5, 6])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_few_recordings_that_all_differ_are_as_much_evidence_as_of_a_sign_test(count, sign):
    pair = [flags(count, count), flags(0, count)][::sign]
    found = difference(*pair, ratio(), Resamples(map_names(count), 1000), is_share=True)
    assert found.value == sign * 100 and found.p == 2 * 0.5**count
    assert (found.low <= 0 <= found.high) == (found.p >= 0.05) == (count < 6)
    assert sign * 100 in (found.low, found.high) and max(abs(found.low), abs(found.high)) <= 100


def test_recordings_that_are_alike_are_no_evidence_for_a_difference():
    statistics = np.array([[2.0, 4.0]] * 30)
    others = statistics - np.array([[1.0, 0.0]] * 3 + [[0.0, 0.0]] * 27)
    found = difference(statistics, others, ratio(), Resamples(map_names(30), 1000))
    assert found.p == 2 * 0.5**3
    in_one = difference(statistics, others, ratio(), Resamples(["a"] * 15 + ["b"] * 15, 1000))
    assert in_one.p == 1  # one recording of two


def test_a_difference_by_chance_alone_is_rarely_significant():
    # Two systems with the same chance of being right: p below 0.05 in about one of twenty cases.
    rng = np.random.default_rng(3)
    low = 0
    for _ in range(200):
        pair = [np.stack([rng.random(150) < 0.5, np.ones(150)], axis=1).astype(float) for _ in range(2)]
        low += difference(*pair, ratio(), Resamples(map_names(150), 400)).p < 0.05
    assert 0.01 <= low / 200 <= 0.11
