"""The privacy loss distribution of a mixture of Gaussians, fast and without cancellation.

A group of units joins a Poisson batch in part: j of them with probability w_j, which moves the sum
by at most s_j. One data set then gives M = sum over j of w_j * Normal(s_j, 1), the other Normal(0, 1),
in units of the noise's stddev. Both the loss log(M / Normal(0, 1)) and the two divergences are
functions of one real number, because the mixture over vectors is dominated by this one over norms
(Choquette-Choo et al. 2023, arXiv 2310.15526, Corollary 4.7).

dp-accounting 0.6.0 has the same distribution. It inverts the loss by bisection, one grid point
after another, and where no unit joins with a probability within 1e-8 of 1 it takes the grid point
at loss 0 for the end of the range, so that delta at epsilon 0 comes out 0. Here the loss is inverted
by Newton's method for all grid points at once, in a form that keeps every digit of tiny weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import PLDPmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

_Floats: TypeAlias = np.ndarray[Any, Any]

# Losses past this mass of either tail are counted as infinite, as dp-accounting does.
_TAIL_MASS = 0.5 * math.exp(-50.0)
_FARTHEST = 40.0  # stddevs: no mass in float64 beyond
_TABLE = 4096
_NEWTON_STEPS = 60
_ACCURACY = 1e-12
_BLOCK = 2**15


def mixture_distribution(
    stddev: float, sensitivities: list[float], sampling_probs: list[float], interval: float
) -> PrivacyLossDistribution:
    """The distribution of a mixture's privacy loss, rounded to a grid pessimistically.

    Args:
        stddev: Of the noise, over one unit's sensitivity.
        sensitivities: How far each part moves the sum, >= 0.
        sampling_probs: The chance of each part; sensitivity 0 has what the others leave.
        interval: Width of the grid of losses.

    References:
        Ganesh (2024), arXiv 2401.10294: group privacy by mixtures of Gaussians. Doroshenko et al.
        (2022), arXiv 2207.04380, Algorithm 1: the rounding.
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    parts = [
        (size / stddev, prob)
        for size, prob in zip(sensitivities, sampling_probs, strict=True)
        if size > 0.0 and prob > 0.0
    ]
    if not parts:
        return pld.identity(value_discretization_interval=interval)
    mixture = Mixture(np.array([s for s, _ in parts]), np.array([w for _, w in parts]))
    return pld.PrivacyLossDistribution(mixture.removed(interval), mixture.added(interval))


@dataclass(frozen=True)
class Mixture:
    """The parts of a mixture that move the sum, in units of the noise's stddev.

    Attributes:
        shifts: float64[k], each > 0.
        weights: float64[k], each > 0.
    """

    shifts: _Floats
    weights: _Floats

    @cached_property
    def joined(self) -> float:
        """The chance that any part moves the sum."""
        return min(1.0, math.fsum(self.weights))

    def removed(self, interval: float) -> PLDPmf:
        """The loss where the group was in: the mixture against the Gaussian alone."""
        first, last = self._losses(-self._tail), self._losses(self._reach)
        grid = np.arange(math.floor(first / interval), math.ceil(last / interval) + 1)
        return _pmf(grid, interval, [self._delta_removed(e) for e in _blocks(grid * interval)])

    def added(self, interval: float) -> PLDPmf:
        """The loss where the group was out: the Gaussian alone against the mixture."""
        first, last = -self._losses(self._tail), -self._losses(-self._tail)
        grid = np.arange(math.floor(first / interval), math.ceil(last / interval) + 1)
        return _pmf(grid, interval, [self._delta_added(e) for e in _blocks(grid * interval)])

    @cached_property
    def _tail(self) -> float:
        """Where the Gaussian has the smallest mass that is looked at."""
        from scipy.special import ndtri

        return float(-ndtri(_TAIL_MASS))

    @cached_property
    def _reach(self) -> float:
        """Where the mixture has at most that mass, by bisection from above."""
        from scipy.special import ndtr

        low, high = 0.0, float(np.max(self.shifts)) + self._tail
        while high - low > 1e-3:
            middle = (low + high) / 2.0
            mass = (1.0 - self.joined) * ndtr(-middle) + self.weights @ ndtr(self.shifts - middle)
            low, high = (middle, high) if mass > _TAIL_MASS else (low, middle)
        return high

    def _losses(self, x: float) -> float:
        """The logarithm of the mixture over the Gaussian, at one point."""
        none = math.log1p(-self.joined) if self.joined < 1.0 else -math.inf
        return float(np.logaddexp(none, self._log_moved(np.array([x]))[0][0]))

    def _log_moved(self, x: _Floats) -> tuple[_Floats, _Floats]:
        """log of the sum over the moving parts of w_j exp(s_j x - s_j^2 / 2), and its slope.

        It is convex with a slope between the smallest and the largest shift: easy to invert, where
        the loss itself is flat as far as no part moves the sum.
        """
        logs = np.log(self.weights) - self.shifts**2 / 2.0 + np.multiply.outer(x, self.shifts)
        largest = np.max(logs, axis=1)
        terms = np.exp(logs - largest[:, None])
        total = np.sum(terms, axis=1)
        return largest + np.log(total), terms @ self.shifts / total

    @cached_property
    def _table(self) -> tuple[_Floats, _Floats]:
        """Points, and the logarithms there, to start Newton's method from."""
        x = np.linspace(-_FARTHEST, self._reach + 1.0, _TABLE)
        return x, self._log_moved(x)[0]

    def _point(self, losses: _Floats) -> _Floats:
        """Where the mixture is exp(loss) times the Gaussian; -40 where that is farther down.

        A point that is off by a little gives a delta that is off by its square: each divergence is
        the largest over all points.
        """
        # exp(loss) - (1 - joined), without cancellation where both are near 1.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            near = np.log(np.maximum(np.expm1(losses) + self.joined, 0.0))
            far = losses + np.log1p((self.joined - 1.0) * np.exp(-losses))
        goal = np.where(losses > 1.0, far, near)
        points, logs = self._table
        x = np.interp(goal, logs, points)
        inside = goal > logs[0]
        for _ in range(_NEWTON_STEPS):
            value, slope = self._log_moved(x[inside])
            miss = value - goal[inside]
            x[inside] -= miss / slope
            if not np.any(np.abs(miss) > _ACCURACY * (1.0 + np.abs(goal[inside]))):
                break
        return np.asarray(x)

    def _delta_removed(self, epsilons: _Floats) -> _Floats:
        """Mass of the mixture above the point, less exp(epsilon) times the Gaussian's."""
        from scipy.special import log_ndtr, ndtr

        x = self._point(epsilons)
        with np.errstate(under="ignore", over="ignore", invalid="ignore"):
            rest = np.where(
                epsilons > 0.0,
                -np.exp(epsilons + log_ndtr(-x)) * np.expm1(-epsilons),
                np.expm1(epsilons) * ndtr(-x),
            )
        return np.asarray(self._mass_moved(x) - rest)

    def _delta_added(self, epsilons: _Floats) -> _Floats:
        """Mass of the Gaussian below the point, less exp(epsilon) times the mixture's."""
        from scipy.special import log_ndtr, ndtr

        x = self._point(-epsilons)
        with np.errstate(under="ignore", over="ignore", invalid="ignore"):
            near = np.exp(epsilons) * self._mass_moved(x) - np.expm1(epsilons) * ndtr(x)
            below = log_ndtr(np.subtract.outer(x, self.shifts)) + epsilons[:, None]
            mixture = np.exp(below) @ self.weights
            mixture += (1.0 - self.joined) * np.exp(epsilons + log_ndtr(x))
        return np.asarray(np.where(epsilons > 1.0, ndtr(x) - mixture, near))

    def _mass_moved(self, x: _Floats) -> _Floats:
        """How much more mass the mixture has above a point than the Gaussian, from the near tail."""
        from scipy.special import ndtr

        below = np.subtract.outer(x, self.shifts)
        above = (
            np.where(x[:, None] > 0.0, -x[:, None], below),
            np.where(x[:, None] > 0.0, -below, x[:, None]),
        )
        return np.asarray((ndtr(above[1]) - ndtr(above[0])) @ self.weights)


def _blocks(epsilons: _Floats) -> Iterator[_Floats]:
    """The grid in parts, since work grows with grid points times parts of the mixture."""
    for begin in range(0, epsilons.size, _BLOCK):
        yield epsilons[begin : begin + _BLOCK]


def _pmf(grid: _Floats, interval: float, deltas: list[_Floats]) -> PLDPmf:
    """Connects the dots: the fewest losses that have at least these divergences everywhere."""
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap

    clipped = np.clip(np.concatenate(deltas), 0.0, 1.0)
    falling = np.maximum.accumulate(clipped[::-1])[::-1]  # rounding may only raise a divergence
    return create_pmf_pessimistic_connect_dots_fixed_gap(
        interval, int(grid[0]), int(grid[-1]), falling
    )
