"""95 % intervals and paired tests by resampling (Efron 1979; for systems on the same rows Koehn, EMNLP 2004).

A metric is a function of sums over rows, so a resample is a weight per row and one matrix product. Recordings are
resampled, not rows: several questions about one recording are not independent.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Value = Callable[[np.ndarray], np.ndarray]  # summed statistics (..., k) -> value (...)


class Estimate(NamedTuple):
    """A value, the ends of its 95 % interval, and how many rows it is from; NaN where there is nothing to score."""

    value: float
    low: float
    high: float
    rows: int


class Difference(NamedTuple):
    """A value less another's, the ends of its 95 % interval, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float


class Resamples:
    """
    The resamples of a run, the same for every metric and system, so that differences are paired.

    Args:
        units: the recording of each row.
        samples: how many resamples.
        seed: of the draws; the intervals are a function of it.
    """

    def __init__(self, units: Sequence[str], samples: int = 1000, seed: int = 0):
        _, self.unit = np.unique(np.asarray(units, dtype=str), return_inverse=True)
        self.count = int(self.unit.max()) + 1 if len(self.unit) else 0
        share = np.full(self.count, 1 / max(self.count, 1))
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(self.count, share, size=samples) if self.count else np.zeros((samples, 0))
        self.weights = drawn.astype(np.float32)  # (samples, units)

    def by_unit(self, statistics: np.ndarray) -> np.ndarray:
        """Statistics (rows, k) -> their sums in each recording (units, k)."""
        sums = np.zeros((self.count, statistics.shape[1]))
        np.add.at(sums, self.unit, statistics)
        return sums

    def sums(self, statistics: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Statistics (rows, k), of the rows of a mask (rows,) -> their sums in each resample (samples, k)."""
        kept = statistics if rows is None else np.where(rows[:, None], statistics, 0)
        return self.weights.astype(np.float64) @ self.by_unit(kept)

    def values(self, statistics: np.ndarray, value: Value, rows: np.ndarray | None = None) -> np.ndarray:
        """The metric in each resample (samples,); NaN where a resample has none of the rows."""
        return value(self.sums(statistics, rows))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of values (samples,), those that are NaN left out."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def interval_without_spread(value: float, units: int, is_share: bool) -> tuple[float, float]:
    """The 95 % interval of a value that is the same in all resamples: of a share of 0 or 100 per cent over so many
    units the exact one (Clopper and Pearson 1934), else NaN, as nothing is known of it."""
    if not is_share or value not in (0, 100) or not units:
        return float("nan"), float("nan")
    reach = 100 * (1 - 0.025 ** (1 / units))
    return (0.0, reach) if value == 0 else (100 - reach, 100.0)


def estimate(
    statistics: np.ndarray,
    value: Value,
    resamples: Resamples,
    rows: np.ndarray | None = None,
    is_share: bool = False,
) -> Estimate:
    """
    A metric over the rows of a mask (rows,), by default all, with its interval.

    Resamples of rows that are all alike are alike, too, which is no certainty: for shares of 0 or 100 per cent the
    interval is the exact binomial one over recordings; of other metrics and values it is not known (NaN).
    """
    kept = statistics if rows is None else statistics[rows]
    if not len(kept):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    found = float(value(kept.sum(0)))
    low, high = interval(resamples.values(statistics, value, rows))
    if low == high:
        units = resamples.unit if rows is None else resamples.unit[rows]
        low, high = interval_without_spread(found, len(np.unique(units[kept[:, 1] > 0])), is_share)
    counted = kept[:, 1] > 0 if statistics.shape[1] == 2 else np.ones(len(kept), dtype=bool)
    return Estimate(found, low, high, int(counted.sum()))


def difference(
    statistics: np.ndarray,
    others: np.ndarray,
    value: Value,
    resamples: Resamples,
    others_value: Value | None = None,
    is_share: bool = False,
) -> Difference:
    """
    A system's metric less another's on the same rows; `others_value` where the other's statistics are not of the same
    things, as of other labels.

    p is twice the smaller share of resamples in which the difference is not above, or not below, zero; with n
    resamples it is at least 2 / (n + 1), and with m recordings in which the two differ at least 2 * 0.5 ** m: what a
    sign test (an exact test by flipping signs) gives where all of them speak for one system. Of a single recording
    interval and p of a difference are not known (NaN). Where all resamples are alike, see
    [`difference_without_spread`].
    """
    others_value = others_value or value
    values = resamples.values(statistics, value) - resamples.values(others, others_value)
    values = values[~np.isnan(values)]
    observed = float(value(statistics.sum(0)) - others_value(others.sum(0)))
    if resamples.count < 2 and observed != 0:
        return Difference(observed, float("nan"), float("nan"), float("nan"))
    low, high = interval(values)
    if low == high:
        counted = len(np.unique(resamples.unit[(statistics[:, 1] > 0) & (others[:, 1] > 0)])) if is_share else 0
        low, high = difference_without_spread(observed, counted, is_share)
    tail = min((values <= 0).sum(), (values >= 0).sum())
    p = max(2 * (tail + 1) / (len(values) + 1), 2 * 0.5 ** units_that_differ(statistics, others, resamples))
    return Difference(observed, low, high, float(min(1.0, p)))


def units_that_differ(statistics: np.ndarray, others: np.ndarray, resamples: Resamples) -> int:
    """In how many recordings two systems differ; all of them where their statistics are not of the same things."""
    if statistics.shape != others.shape:
        return resamples.count
    return int((resamples.by_unit(statistics) != resamples.by_unit(others)).any(1).sum())


def difference_without_spread(value: float, units: int, is_share: bool) -> tuple[float, float]:
    """The 95 % interval of a difference that is the same in all resamples: of shares that differ by 0 or 100 points in
    all of so many units what is left when as many differ otherwise as [`interval_without_spread`] allows, else NaN."""
    low, high = interval_without_spread(abs(value), units, is_share)
    if value == 0:
        return -high, high
    low = 2 * low - 100  # the others may be the other way round
    return (low, high) if value > 0 else (-high, -low)


__all__ = [
    "Difference",
    "Estimate",
    "Resamples",
    "Value",
    "difference",
    "difference_without_spread",
    "estimate",
    "interval_without_spread",
    "interval",
    "units_that_differ",
]
