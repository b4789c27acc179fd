"""A calibration fitted to noisy sums along the logit: post-processing, it sees no row.

At node b of the logit, with the hat function h_b (1 at its node, 0 at the next), the sums are

    residuals[b] = sum_i h_b(z_i) * (y_i - f(z_b))      labels less what the model predicts at the node
    rows[b]      = sum_i h_b(z_i) * exposure_i          1 a row where the schema has no exposure
    total        = sum_b residuals[b]                   all of them under the noise of one

with noise of a known size. Where true logits are g(z), residuals are sum_i h_b(z_i) * (f(g(z_i)) - f(z_b)) on
average, which `rows` tells: exactly where rows are spread evenly within a cell, and to spacing^2 / 8 of
the mean wherever they are. The fit is Bayesian with the identity as its centre, shrunk once more by how
far it exceeds what noise alone would gain (after James and Stein 1961): where nothing is seen, nothing is
changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpads.models.calibration import Buckets, ScaleAndBias
from dpads.private_sums_config import COUNTING
from dpads.schema import Task

Vector = NDArray[np.float64]

SPACING: Final = 0.25
NODES: Final = np.arange(-12.0, 4.0 + SPACING, SPACING)  # of the logit, or the logarithm of a rate

# Before the sums are seen: of the bias at the centre, of the logarithm of the scale, of one bucket.
BIAS_STDDEV: Final = 1.0
SCALE_STDDEV: Final = 0.5
BUCKET_STDDEV: Final = 0.5
FARTHEST: Final = np.array([6.0, math.log(20.0)])
_BIASES: Final = [np.array([bias]) for bias in np.linspace(-3.0, 3.0, 13)]
_STARTS: Final = [
    np.array([bias, scale]) for bias in np.linspace(-3.0, 3.0, 13) for scale in (-0.5, 0.0, 0.5)
]
_STEPS: Final = 60
_SEEN: Final = 2.0  # standard deviations of noise that a node's rows must have to count at all


@dataclass(frozen=True)
class Means:
    """What a task expects of a label over one unit of exposure, given a logit, and how that moves.

    Attributes:
        task: "ctr", "cvr" or "count".
        largest_label: above which labels are cut, and so what is expected.
        largest_exposure: of a row; None where every row has the same.
    """

    task: Task
    largest_label: float
    largest_exposure: float | None = None

    @property
    def per_row(self) -> float:
        """What a row of one unit of exposure puts into `rows`."""
        return COUNTING * self.largest_label / (self.largest_exposure or 1.0)

    def rate(self, logits: Vector) -> Vector:
        """The mean of a label where true logits are these.

        What the cut takes off depends on a row's exposure, which the sums do not tell: with exposures it
        is left out, as true counts seldom reach the bound.
        """
        if self.task != "count":
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))
        means = np.exp(np.minimum(logits, 60.0))
        return means if self.largest_exposure is not None else cut_mean(means, self.largest_label)

    def subtracted(self, logits: Vector) -> Vector:
        """What is taken off a label: the model's own mean, or near it.

        Times the largest exposure it is at most the largest label, whatever the model says.
        """
        if self.largest_exposure is None:
            return self.rate(logits)
        most = self.largest_label / self.largest_exposure
        return np.asarray(-most * np.expm1(-np.exp(np.minimum(logits, 60.0)) / most))

    def slope(self, logits: Vector) -> Vector:
        """The derivative of `rate`."""
        return (self.rate(logits + _STEP) - self.rate(logits - _STEP)) / (2.0 * _STEP)

    def curvature(self, logits: Vector) -> Vector:
        """The second derivative of `rate`."""
        outer = self.rate(logits + _STEP) + self.rate(logits - _STEP)
        return (outer - 2.0 * self.rate(logits)) / _STEP**2

    def variance(self, logits: Vector) -> Vector:
        """At most the variance of a row's cut label over its exposure."""
        rate = self.rate(logits)
        return rate if self.task == "count" else rate * (1.0 - rate)


_STEP: Final = 1e-3
_WITH_TOTAL: Final = np.vstack(
    [np.ones(len(NODES)), np.eye(len(NODES))]
)  # sums with their total in front


def cut_mean(means: Vector, largest: float) -> Vector:
    """The mean of min(Y, largest) of a Poisson count Y, float64[n]."""
    from scipy.special import gammaincc

    whole = math.floor(largest)
    # E min(Y, L) = m P(Y <= [L] - 1) + L P(Y > [L]), where P(Y <= k) is the upper incomplete gamma function
    below = means * (gammaincc(whole, means) if whole > 0 else 0.0)
    return np.asarray(below + largest * (1.0 - gammaincc(whole + 1, means)))


@dataclass(frozen=True)
class Seen:
    """Noisy sums along the nodes, and the noise in them.

    Attributes:
        total: of the residuals.
        residuals: float64[nodes].
        rows: float64[nodes], in units of exposure.
        residual_stddev: of the noise of the total, and of one residual; public.
        rows_stddev: of the noise of one of `rows`; public.
        means: of the labels.
    """

    total: float
    residuals: Vector
    rows: Vector
    residual_stddev: float
    rows_stddev: float
    means: Means

    def __post_init__(self) -> None:
        # What is within the noise is no rows: it would only let noise of other nodes in.
        kept = np.where(self.rows > _SEEN * self.rows_stddev, self.rows, 0.0)
        object.__setattr__(self, "rows", kept)

    @property
    def sums(self) -> Vector:
        """The total, then the residuals, float64[1 + nodes]."""
        return np.concatenate(([self.total], self.residuals))

    @property
    def centre(self) -> float:
        """The logit at which the sums say most; 0 where nothing is seen."""
        weights = self.rows * self.means.slope(NODES)
        total = float(weights.sum())
        return float(weights @ NODES) / total if total > 0.0 else 0.0


def fit_scale_and_bias(seen: Seen) -> ScaleAndBias:
    """Scale and bias, the identity where nothing is seen beyond the noise.

    The scale has to show by itself, beyond what a bias explains: few positives that are far too many tell
    a bias well and a scale hardly, and a wrong scale moves the largest predictions most.
    """
    centre = seen.centre

    def calibrated(bias: float, scale: float) -> Callable[[Vector], Vector]:
        return lambda logits: centre + bias + math.exp(scale) * (logits - centre)

    def misfit(bias: float, scale: float, precision: Vector) -> float:
        left = seen.sums - _WITH_TOTAL @ _expected(seen, calibrated(bias, scale))
        return float(left @ precision @ left)

    def bias_at(scale: float, precision: Vector) -> float:
        def objective(x: Vector) -> float:
            return misfit(float(x[0]), scale, precision) + float((x[0] / BIAS_STDDEV) ** 2)

        return float(_minimised(objective, min(_BIASES, key=objective))[0])

    precision, at = _precision(seen, NODES), np.zeros(2)
    for _ in range(3):  # what the labels themselves vary by goes by the calibrated rate

        def objective(x: Vector, precision: Vector = precision) -> float:
            likely = (x[0] / BIAS_STDDEV) ** 2 + (x[1] / SCALE_STDDEV) ** 2
            return misfit(float(x[0]), float(x[1]), precision) + float(likely)

        # From the best of a few places, for there may be several minima.
        at = _minimised(objective, min([at, *_STARTS], key=objective))
        precision = _precision(seen, calibrated(float(at[0]), float(at[1]))(NODES))
    bias = bias_at(0.0, precision)
    alone = misfit(bias, 0.0, precision)
    scale = float(at[1]) * _shrunk(alone - misfit(float(at[0]), float(at[1]), precision), 1)
    kept = _shrunk(misfit(0.0, 0.0, precision) - alone, 1)
    bias, factor = bias_at(scale, precision) * kept, math.exp(scale)
    return ScaleAndBias(scale=factor, bias=bias + centre * (1.0 - factor))


def fit_buckets(seen: Seen) -> Buckets:
    """Scale and bias first, then what the single nodes show beyond them, kept from falling."""
    first = fit_scale_and_bias(seen)
    values = first.apply(NODES)
    precision = _precision(seen, values)
    left = seen.sums - _WITH_TOTAL @ _expected(seen, first.apply)
    # Hat functions of neighbours overlap: with evenly spread rows 2/3 of a node's rows see its own value
    # and a sixth those of the nodes beside.
    weights = seen.rows * seen.means.slope(values)
    moves = np.diag(weights * 2.0 / 3.0)
    beside = 0.5 * (weights[1:] + weights[:-1]) / 6.0
    moves += np.diag(beside, 1) + np.diag(beside, -1)
    moves = _WITH_TOTAL @ moves
    normal = moves.T @ precision @ moves + np.eye(len(NODES)) / BUCKET_STDDEV**2
    change = np.linalg.solve(normal, moves.T @ precision @ left)
    still = left - moves @ change
    gained = float(left @ precision @ left - still @ precision @ still)
    trusted = np.maximum(np.diag(normal), 0.0)
    values = values + np.clip(change, -2.0, 2.0) * _shrunk(gained, int((weights > 0).sum()))
    rising = _pooled(values, trusted)
    return Buckets(tuple(NODES.tolist()), tuple(rising.tolist()))


def _expected(seen: Seen, calibrate: Callable[[Vector], Vector]) -> Vector:
    """Expected residuals at the nodes where true logits are `calibrate` of the model's.

    A hat function averages over its neighbourhood: with m the mean and n the rows, the sum of labels at a
    node is n (m + h^2/12 m'') + h/12 (n_next - n_previous) m', to the fourth order of the spacing h.
    """
    means, step = seen.means, 1e-3

    def mean(logits: Vector) -> Vector:
        return means.rate(calibrate(logits))

    here, above, below = mean(NODES), mean(NODES + step), mean(NODES - step)
    second = (above - 2.0 * here + below) / step**2
    first = (above - below) / (2.0 * step)
    around = np.zeros(len(NODES))
    around[1:-1] = seen.rows[2:] - seen.rows[:-2]
    labels = seen.rows * (here + SPACING**2 / 12.0 * second) + SPACING / 12.0 * around * first
    expected = labels - seen.rows * means.subtracted(NODES)
    return np.asarray(np.where(seen.rows > 0.0, expected, 0.0))


def _precision(seen: Seen, logits: Vector) -> Vector:
    """Of the total and the residuals: noise of their own, and the labels' and rows', which they share.

    Returns:
        float64[1 + nodes, 1 + nodes], the inverse of the covariance.
    """
    own = np.eye(len(_WITH_TOTAL)) * seen.residual_stddev**2
    means = seen.means
    labels = seen.rows * means.variance(logits)
    # What noise in the number of rows makes of what is expected.
    expected = seen.rows_stddev * (means.rate(logits) - means.subtracted(NODES))
    labels += np.where(seen.rows > 0.0, expected**2, 0.0)
    return np.asarray(np.linalg.inv(own + (_WITH_TOTAL * labels) @ _WITH_TOTAL.T))


def _shrunk(gained: float, parameters: int) -> float:
    """How much of a change to keep, by how much better it is than noise alone would make it.

    Noise alone gains as much as there are parameters, on average: up to four of one parameter, two standard
    deviations, and up to twice as many as there are of several, nothing is kept.
    """
    nothing = max(4.0, 2.0 * parameters)
    return 0.0 if gained <= nothing else float(1.0 - (nothing / gained) ** 2)


def _minimised(objective: Callable[[Vector], float], start: Vector) -> Vector:
    """A minimum near the start, by Newton steps that are halved until they help."""
    at, value = start, objective(start)
    step, size_of = 1e-4, len(start)
    for _ in range(_STEPS):
        moved = [row * step for row in np.eye(size_of)]
        gradient = np.array([(objective(at + d) - objective(at - d)) / (2 * step) for d in moved])
        hessian = np.array(
            [
                [
                    (
                        objective(at + a + b)
                        - objective(at + a - b)
                        - objective(at - a + b)
                        + objective(at - a - b)
                    )
                    / (4 * step * step)
                    for b in moved
                ]
                for a in moved
            ]
        )
        curvatures, axes = np.linalg.eigh(hessian)
        # Where it is not convex, downhill all the same.
        direction = -axes @ ((axes.T @ gradient) / np.maximum(np.abs(curvatures), 1e-6))
        size = 1.0
        while size > 1e-6:
            tried = np.clip(at + size * direction, -FARTHEST[:size_of], FARTHEST[:size_of])
            reached = objective(tried)
            if reached < value:
                break
            size /= 2.0
        else:
            break
        done = value - reached < 1e-9 * (1.0 + abs(value))
        at, value = tried, reached
        if done:
            break
    return at


def _pooled(values: Vector, weights: Vector) -> Vector:
    """The nearest values that do not fall: pool adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, count = value, max(weight, 1e-12), 1
        while blocks and blocks[-1][0] > mean:
            before, other, number = blocks.pop()
            mean = (before * other + mean * mass) / (other + mass)
            mass, count = mass + other, count + number
        blocks.append((mean, mass, count))
    return np.array([mean for mean, _, count in blocks for _ in range(count)])
