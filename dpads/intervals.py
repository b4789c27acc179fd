"""Confidence intervals of metrics: how much a figure owes to which rows happened to be tested.

Each is a large-sample interval of one model on rows drawn independently: rows of one user are not,
and the interval is then too narrow. It says nothing about another training run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

LEVEL: Final = 0.95
QUANTILE: Final = 1.959963984540054  # of the standard normal, at (1 + LEVEL) / 2


def binary_intervals(
    y: Vector, p: Vector, w: Vector, losses: Vector, values: Mapping[str, float | None]
) -> dict[str, Interval]:
    """95 % intervals of the metrics of probabilities.

    `auc` by DeLong's variance, on the scale of its logit; `pr_auc` by the logit interval of Boyd et
    al.; `log_loss`, `normalized_entropy` and `calibration` by the delta method, the last on the scale
    of its logarithm. `ece` has none: its bias is as large as its spread.

    Args:
        y: float64[n], 0 or 1.
        p: float64[n], probabilities.
        w: float64[n], weights of the rows.
        losses: float64[n], each row's log loss.
        values: the metrics.

    Returns:
        (low, high) by name; a metric without an interval is left out.

    References:
        DeLong, DeLong and Clarke-Pearson 1988 (AUC); Pepe 2003, section 5.2 (its logit); Boyd, Eng
        and Page 2013, "Area under the precision-recall curve: point estimates and confidence
        intervals".
    """
    found: dict[str, Interval] = {}
    loss, auc, precision = values["log_loss"], values["auc"], values["pr_auc"]
    if loss is not None and len(y) > 1:
        shift = w * (losses - loss) / w.sum()
        found["log_loss"] = _around(loss, _stddev(shift))
        rate = float(w @ y / w.sum())
        entropy_ratio = values["normalized_entropy"]
        if entropy_ratio is not None:
            entropy = loss / entropy_ratio
            slope = entropy_ratio * math.log((1.0 - rate) / rate)
            ratio_shift = (shift - slope * w * (y - rate) / w.sum()) / entropy
            found["normalized_entropy"] = _around(entropy_ratio, _stddev(ratio_shift))
    found.update(_calibration(y, p, w, values["calibration"]))
    positive = y == 1.0
    if auc is not None and 0.0 < auc < 1.0 and min(positive.sum(), (~positive).sum()) > 1:
        low, high = _on_logit_scale(auc, _auc_stddev(p, w, positive, auc))
        found["auc"], found["auc_loss"] = (low, high), (1.0 - high, 1.0 - low)
    if precision is not None and 0.0 < precision < 1.0:
        positives = float(w[positive].sum() ** 2 / np.square(w[positive]).sum())
        spread = math.sqrt(precision * (1.0 - precision) / positives)
        found["pr_auc"] = _on_logit_scale(precision, spread)
    return found


def count_intervals(
    y: Vector, p: Vector, w: Vector, losses: Vector, values: Mapping[str, float | None]
) -> dict[str, Interval]:
    """95 % intervals of the metrics of expected counts, by the delta method.

    Args:
        y: float64[n], counts.
        p: float64[n], expected counts.
        w: float64[n], weights of the rows.
        losses: float64[n], each row's Poisson log loss.
        values: the metrics.

    Returns:
        (low, high) by name; a metric without an interval is left out.
    """
    found = _calibration(y, p, w, values["calibration"])
    loss, rmse = values["poisson_log_loss"], values["rmse"]
    if len(y) < 2 or loss is None or rmse is None:
        return found
    found["poisson_log_loss"] = _around(loss, _stddev(w * (losses - loss) / w.sum()))
    squares = _stddev(w * (np.square(p - y) - rmse**2) / w.sum())
    low, high = _around(rmse**2, squares)
    found["rmse"] = (math.sqrt(max(0.0, low)), math.sqrt(high))
    return found


def _calibration(y: Vector, p: Vector, w: Vector, ratio: float | None) -> dict[str, Interval]:
    """Of the sum of predictions over the sum of labels, which is a ratio."""
    if ratio is None or ratio <= 0.0 or len(y) < 2:
        return {}
    relative = QUANTILE * _stddev(w * (p - ratio * y) / float(w @ y)) / ratio
    # Beyond, a few positives tell nothing, and the exponential overflows.
    relative = min(relative, 50.0)
    return {"calibration": (ratio * math.exp(-relative), ratio * math.exp(relative))}


def _auc_stddev(p: Vector, w: Vector, positive: NDArray[np.bool_], auc: float) -> float:
    """DeLong's standard error: how far each row's share of the pairs it wins is from the mean."""
    total = 0.0
    for own, other, wins_above in ((positive, ~positive, True), (~positive, positive, False)):
        order = np.argsort(p[other], kind="stable")
        sorted_p = p[other][order]
        below = np.concatenate([[0.0], np.cumsum(w[other][order])])
        first = below[np.searchsorted(sorted_p, p[own], side="left")]
        last = below[np.searchsorted(sorted_p, p[own], side="right")]
        share = (first + last) / (2.0 * below[-1])
        wins = share if wins_above else 1.0 - share
        total += _stddev(w[own] * (wins - auc) / w[own].sum()) ** 2
    return math.sqrt(total)


def _stddev(shifts: Vector) -> float:
    """Standard error of an estimate from what each row contributes to it."""
    return math.sqrt(float(shifts @ shifts) * len(shifts) / (len(shifts) - 1))


def _around(value: float, stddev: float) -> Interval:
    """A symmetric interval."""
    return value - QUANTILE * stddev, value + QUANTILE * stddev


def _on_logit_scale(value: float, stddev: float) -> Interval:
    """An interval inside (0, 1)."""
    logit = math.log(value / (1.0 - value))
    spread = min(QUANTILE * stddev / (value * (1.0 - value)), 50.0)
    return _expit(logit - spread), _expit(logit + spread)


def _expit(x: float) -> float:
    """The inverse of the logit, without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * x))
