"""Metrics of predictions against labels, the ones that ads teams and the DP-SGD ads paper report.

These are exact reads of the rows they are computed on: no noise is added, so they are never part of
a guarantee. Whoever publishes them publishes facts about those rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpads.errors import DataError
from dpads.hosts import hosts_of
from dpads.intervals import Interval, binary_intervals, count_intervals
from dpads.reliability import Bin, assign_bins, calibration_table, to_plain
from dpads.schema import Task

if TYPE_CHECKING:
    from dpads.models.base import Model
    from dpads.models.output import Output
    from dpads.store import ExampleStore

BINARY_METRICS: Final = (
    "auc",
    "auc_loss",
    "pr_auc",
    "log_loss",
    "normalized_entropy",
    "calibration",
    "ece",
)
COUNT_METRICS: Final = ("poisson_log_loss", "rmse", "calibration")
# The loss that the paper compares by, per task.
HEADLINE_LOSS: Final[Mapping[Task, str]] = {
    "ctr": "auc_loss",
    "cvr": "auc_loss",
    "count": "poisson_log_loss",
}
# What metrics.json holds beside the model's own metrics.
BESIDE_METRICS: Final = frozenset(
    {
        "undefined",
        "intervals",
        "calibration_table",
        "reference",
        "relative_increase",
        "before_recalibration",
    }
)
# Rows that are predicted at a time.
READ_ROWS: Final = 65_536
# A float32 probability cannot be nearer to 1 than this; a logarithm of 0 is cut there.
PROBABILITY_FLOOR: Final = float(np.finfo(np.float32).eps)
# An expected count below this is cut before its logarithm is taken.
COUNT_FLOOR: Final = 1e-7


class Metrics(dict[str, float | None]):
    """Metrics by name; one that the rows do not define is None, and `undefined` says why.

    Attributes:
        undefined: the reason for every metric that is None.
        intervals: 95 % confidence intervals, (low, high), of those that have one.
        calibration_table: what was predicted against what happened, in bins of equally many rows.
    """

    def __init__(
        self,
        values: Mapping[str, float | None],
        undefined: Mapping[str, str] | None = None,
        intervals: Mapping[str, Interval] | None = None,
        calibration_table: Sequence[Bin] = (),
    ) -> None:
        super().__init__(values)
        self.undefined: dict[str, str] = dict(undefined or {})
        self.intervals: dict[str, Interval] = dict(intervals or {})
        self.calibration_table: tuple[Bin, ...] = tuple(calibration_table)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the metrics, what belongs to them, and `undefined` where one is null."""
        result: dict[str, Any] = {**self}
        if self.intervals:
            result["intervals"] = {name: list(ends) for name, ends in self.intervals.items()}
        if self.calibration_table:
            result["calibration_table"] = to_plain(self.calibration_table)
        if self.undefined:
            result["undefined"] = dict(self.undefined)
        return result


def metrics(
    task: Task,
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    weights: ArrayLike | None = None,
) -> Metrics:
    """Computes every metric of a task.

    For "ctr" and "cvr", with p the predicted probability: `auc` (area under the ROC curve),
    `auc_loss` (1 - auc), `pr_auc` (average precision), `log_loss` (natural logarithm, p cut at
    2^-23 from 0 and 1), `normalized_entropy` (log loss over that of always predicting the rows' own
    rate), `calibration` (sum of predictions over sum of labels) and `ece` (expected calibration
    error: |mean prediction - mean label|, averaged over 20 bins of equal numbers of rows; equal
    predictions share a bin).

    For "count", with m the expected count: `poisson_log_loss` (mean of m - y log m, without the
    log(y!) that no model changes), `rmse` and `calibration`.

    Args:
        task: "ctr", "cvr" or "count".
        labels: float[n], 0 or 1; for counts non-negative.
        predictions: float[n], probabilities; for counts expected counts over each row's exposure.
        weights: float[n], non-negative factors of the rows, or None.

    Returns:
        Every metric of the task, 95 % confidence intervals in `intervals`, and the calibration table. A
        metric that the rows do not define (one class only, no rows, a prediction that is not finite) is
        None and its reason is in `undefined`.

    Raises:
        DataError: lengths differ, or labels, probabilities or weights are out of range.

    Examples:
        >>> result = metrics("ctr", [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        >>> result["auc"], round(result["log_loss"], 3)
        (0.75, 0.472)
        >>> metrics("ctr", [0, 0], [0.1, 0.4]).undefined["auc"]
        'the rows hold one class only'

    References:
        He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook" (normalized
        entropy); Nixon et al. 2019, arXiv 1904.01685 (bins of equal mass); Denison et al. 2022,
        arXiv 2211.11896 (AUC loss and Poisson log loss).
    """
    y = _vector(labels, "labels")
    p = _vector(predictions, "predictions")
    w = np.ones(len(y)) if weights is None else _vector(weights, "weights")
    for what, array in (("predictions", p), ("weights", w)):
        if len(array) != len(y):
            raise DataError(f"{what}: expected {len(y)} values, one per label, got {len(array)}.")
    if not np.isfinite(w).all() or (w < 0).any():
        raise DataError("weights: expected finite numbers >= 0.")
    binary = task != "count"
    if not np.isfinite(y).all() or (y < 0).any() or (binary and not np.isin(y, (0.0, 1.0)).all()):
        raise DataError(f"labels: expected {'0 or 1' if binary else 'finite numbers >= 0'}.")
    if not np.isfinite(p).all():
        return no_metrics(task, "the model's predictions are not all finite numbers")
    if (p < 0).any() or (binary and (p > 1).any()):
        raise DataError(f"predictions: expected {'[0, 1]' if binary else 'numbers >= 0'}.")
    if not w.sum() > 0:
        return no_metrics(task, "there are no rows of positive weight")
    return _binary(y, p, w) if binary else _count(y, p, w)


def relative_increase(
    task: Task, values: Mapping[str, float | None], reference: Mapping[str, float | None]
) -> float | None:
    """By how much a model's loss exceeds the reference's, as a fraction of the reference's.

    The loss is the one that the paper compares by: `auc_loss` for "ctr" and "cvr",
    `poisson_log_loss` for "count" (which may be negative: the divisor is its magnitude).

    Returns:
        The fraction; None where one of the losses is not defined or the reference's is zero.

    Examples:
        >>> relative_increase("ctr", {"auc_loss": 0.22}, {"auc_loss": 0.20})
        0.1
    """
    name = HEADLINE_LOSS[task]
    mine, theirs = values.get(name), reference.get(name)
    if mine is None or theirs is None or theirs == 0.0:
        return None
    return round((mine - theirs) / abs(theirs), 12)


def no_metrics(task: Task, reason: str) -> Metrics:
    """Every metric of a task as undefined, for one reason."""
    names = COUNT_METRICS if task == "count" else BINARY_METRICS
    return Metrics(dict.fromkeys(names), dict.fromkeys(names, reason))


def read_predictions(
    model: Model, data: ExampleStore
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
    """Predicts every row of a store.

    Returns:
        Predictions float32[n], labels float32[n] and weights float32[n] or None, all in stored
        order.
    """
    (predictions,), labels, weights = _read(model, data, [model.output])
    return predictions, labels, weights


def _read(
    model: Model, data: ExampleStore, outputs: Sequence[Output]
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32], NDArray[np.float32] | None]:
    """One pass over a store: predictions by each output, labels and weights, in stored order."""
    predictions = [np.empty(data.num_examples, np.float32) for _ in outputs]
    labels = np.empty(data.num_examples, np.float32)
    weights = None if data.schema.weight is None else np.empty(data.num_examples, np.float32)
    start = 0
    for batch in data.scan(READ_ROWS):
        rows = slice(start, start + batch.num_examples)
        logits = model.tower.logits(model.features(batch)).astype(np.float64)
        for output, predicted in zip(outputs, predictions, strict=True):
            predicted[rows] = output.predict(model.schema.task, logits, batch.exposure)
        labels[rows] = batch.labels
        if weights is not None and batch.weights is not None:
            weights[rows] = batch.weights
        start = rows.stop
    return predictions, labels, weights


def _of_all(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Columns [k, n] of all processes' rows, in the order of their parts."""
    hosts = hosts_of("jax")
    return np.concatenate(hosts.gather_each(np.ascontiguousarray(columns.T))).T


def evaluate_model(model: Model, data: ExampleStore) -> Metrics:
    """Exact metrics of a model on the rows of a store, weighted by the schema's weight column.

    Of a part of a store, all parts' rows count, and every process has to call this. Where negatives were left
    out of the log, each that stayed also stands for those: the metrics estimate
    what they would be on the log that it was taken from.
    """
    return evaluate_outputs(model, data, [model.output])[0]


def evaluate_outputs(model: Model, data: ExampleStore, outputs: Sequence[Output]) -> list[Metrics]:
    """As `evaluate_model`, with each of several outputs in place of the model's, in one pass.

    Args:
        model: whose logits.
        data: the rows.
        outputs: what becomes of the logits.
    """
    predictions, labels, weights = _read(model, data, outputs)
    if data.part[1] > 1:
        *predictions, labels = _of_all(np.stack([*predictions, labels]))
        weights = None if weights is None else _of_all(weights[None])[0]
    kept = data.schema.negatives_kept
    if kept < 1.0:
        stands_for = np.where(labels > 0, 1.0, 1.0 / kept).astype(np.float32)
        weights = stands_for if weights is None else weights * stands_for
    return [metrics(data.schema.task, labels, own, weights=weights) for own in predictions]


def _binary(y: NDArray[np.float64], p: NDArray[np.float64], w: NDArray[np.float64]) -> Metrics:
    """Metrics of probabilities against 0 and 1."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    undefined: dict[str, str] = {}
    cut = np.clip(p, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    losses = -np.where(y == 1.0, np.log(cut), np.log1p(-cut))
    loss = float(w @ losses / w.sum())
    rate = float(w @ y / w.sum())
    values: dict[str, float | None] = dict.fromkeys(BINARY_METRICS)
    values["log_loss"] = loss
    values["ece"] = _expected_calibration_error(y, p, w)
    values["calibration"] = _calibration(y, p, w, undefined)
    if 0.0 < rate < 1.0:
        auc = float(roc_auc_score(y, p, sample_weight=w))
        values["auc"] = auc
        values["auc_loss"] = 1.0 - auc
        values["pr_auc"] = float(average_precision_score(y, p, sample_weight=w))
        values["normalized_entropy"] = loss / _entropy(rate)
    else:
        for name in ("auc", "auc_loss", "pr_auc", "normalized_entropy"):
            undefined[name] = "the rows hold one class only"
    intervals = binary_intervals(y, p, w, losses, values)
    return Metrics(values, undefined, intervals, calibration_table(y, p, w, counts=False))


def _count(y: NDArray[np.float64], p: NDArray[np.float64], w: NDArray[np.float64]) -> Metrics:
    """Metrics of expected counts against counts."""
    from sklearn.metrics import root_mean_squared_error

    undefined: dict[str, str] = {}
    losses = p - y * np.log(np.maximum(p, COUNT_FLOOR))
    values = {
        "poisson_log_loss": float(w @ losses / w.sum()),
        "rmse": float(root_mean_squared_error(y, p, sample_weight=w)),
        "calibration": _calibration(y, p, w, undefined),
    }
    intervals = count_intervals(y, p, w, losses, values)
    return Metrics(values, undefined, intervals, calibration_table(y, p, w, counts=True))


def _calibration(
    y: NDArray[np.float64],
    p: NDArray[np.float64],
    w: NDArray[np.float64],
    undefined: dict[str, str],
) -> float | None:
    """Sum of predictions over sum of labels."""
    total = float(w @ y)
    if total > 0.0:
        return float(w @ p) / total
    undefined["calibration"] = "the labels sum to zero"
    return None


def _expected_calibration_error(
    y: NDArray[np.float64], p: NDArray[np.float64], w: NDArray[np.float64]
) -> float:
    """Mean over bins of equal mass; a function of the multiset of rows, never of their order."""
    gaps = np.bincount(assign_bins(p), weights=w * (p - y))
    return float(np.abs(gaps).sum() / w.sum())


def _entropy(rate: float) -> float:
    """Entropy of a coin, natural logarithm."""
    return -(rate * math.log(rate) + (1.0 - rate) * math.log1p(-rate))


def _vector(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """A float64 vector."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise DataError(f"{what}: expected one dimension, got {array.ndim}.")
    return array
