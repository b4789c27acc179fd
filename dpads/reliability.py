"""The calibration table: what was predicted against what happened, in bins of equally many rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from dpads.intervals import QUANTILE, Interval, Vector

BINS: Final = 20


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows whose predictions are next to each other.

    Attributes:
        rows: how many.
        predicted: mean prediction: a probability, or an expected count.
        observed: mean label.
        low: lower end of the 95 % confidence interval of what is observed.
        high: upper end.
    """

    rows: int
    predicted: float
    observed: float
    low: float
    high: float

    @property
    def ratio(self) -> float | None:
        """Predictions over labels; None where nothing was observed."""
        return self.predicted / self.observed if self.observed > 0.0 else None

    @property
    def is_calibrated(self) -> bool:
        """Whether the prediction is inside the interval."""
        return self.low <= self.predicted <= self.high


def calibration_table(y: Vector, p: Vector, w: Vector, *, counts: bool) -> tuple[Bin, ...]:
    """Bins of equally many rows, from the lowest predictions to the highest.

    Equal predictions share a bin, so that there may be fewer than 20. Intervals are Wilson's, for counts
    those of a Poisson mean widened by how much more the counts vary; weights count by their effective
    number of rows.

    Args:
        y: float64[n], labels.
        p: float64[n], predictions.
        w: float64[n], weights of the rows.
        counts: whether labels are counts.

    Returns:
        The bins; one without rows of positive weight is left out.

    References:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    bins = assign_bins(p)
    found = []
    for number in np.unique(bins):
        inside = (bins == number) & (w > 0)
        if not inside.any():
            continue
        own, weights = y[inside], w[inside]
        total = float(weights.sum())
        observed = float(weights @ own) / total
        effective = total**2 / float(weights @ weights)
        interval = (_poisson if counts else _wilson)(own, observed, effective)
        found.append(
            Bin(
                rows=int(inside.sum()),
                predicted=float(weights @ p[inside]) / total,
                observed=observed,
                low=interval[0],
                high=interval[1],
            )
        )
    return tuple(found)


def assign_bins(p: Vector) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Each row's bin, int64[n]; a function of the multiset of predictions, never of their order."""
    edges = np.quantile(p, np.arange(1, BINS) / BINS, method="inverted_cdf")
    return np.searchsorted(edges, p, side="left").astype(np.int64)


def to_plain(bins: Sequence[Bin]) -> list[dict[str, Any]]:
    """Plain data for JSON; `from_plain` reads it back."""
    return [asdict(item) for item in bins]


def from_plain(values: Sequence[Mapping[str, Any]]) -> tuple[Bin, ...]:
    """Reads what `to_plain` wrote."""
    return tuple(Bin(**item) for item in values)


def _wilson(_: Vector, rate: float, rows: float) -> Interval:
    """Of a share."""
    square = QUANTILE**2
    middle = rate + square / (2.0 * rows)
    spread = QUANTILE * math.sqrt(rate * (1.0 - rate) / rows + square / (4.0 * rows**2))
    scale = 1.0 + square / rows
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _poisson(y: Vector, mean: float, rows: float) -> Interval:
    """Of a mean count: the score interval, with the variance that the counts have where it is larger."""
    excess = max(1.0, float(y.var()) / mean) if mean > 0.0 else 1.0
    square = QUANTILE**2 * excess
    middle = mean + square / (2.0 * rows)
    spread = math.sqrt(square * mean / rows + square**2 / (4.0 * rows**2))
    return max(0.0, middle - spread), middle + spread
