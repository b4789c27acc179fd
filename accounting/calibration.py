"""The noise, the number of iterations or the batch size that meets a target epsilon from below.

Three bounds are searched in turn, each from where the last one ended and with its slope: RDP (fast
and loose), PLD on a coarse grid, and `epsilon_of` itself, which alone decides what is returned.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from itertools import pairwise

from dpads.accounting.accountant import (
    Relation,
    check_delta,
    epsilon_of,
    rdp_epsilon,
    rough_epsilon,
)
from dpads.accounting.events import EventTree
from dpads.errors import BudgetError, ConfigError

TOLERANCE = 1e-3
"""A calibrated epsilon lies in [target * (1 - TOLERANCE), target]."""

LARGEST_NOISE_MULTIPLIER = 1e5
SMALLEST_NOISE_MULTIPLIER = 0.1
LARGEST_COUNT = 10**8

_EpsilonAt = Callable[[float], float]

_MOST_STEPS = 200
_LONGEST_STEP = 0.7
_NARROWEST = 1e-5
_JUMP = 1e-3  # two points nearer than this say more about the grid than about the slope
_FLATTEST = -0.05


def check_epsilon(epsilon: object) -> float:
    """A target epsilon as a float, or a `ConfigError` when it is not positive and finite."""
    if (
        isinstance(epsilon, bool)
        or not isinstance(epsilon, int | float)
        or not math.isfinite(epsilon)
        or epsilon <= 0
    ):
        raise ConfigError(
            f"Expected epsilon to be a finite number > 0, got {epsilon!r}. "
            "To train without privacy, and say so, set noise_multiplier = 0 instead of epsilon."
        )
    return float(epsilon)


def smallest_noise_multiplier(
    event_of: Callable[[float], EventTree], epsilon: float, delta: float, relation: Relation
) -> float:
    """The smallest noise multiplier whose event costs at most epsilon.

    Args:
        event_of: From a noise multiplier to the whole event, anything else that is on the budget
            included.
        epsilon: The target, > 0.
        delta: The delta of the target, in (0, 1).
        relation: The neighbouring relation.

    Returns:
        A noise multiplier; the event's epsilon lies in [epsilon * (1 - TOLERANCE), epsilon], or
        below where even `SMALLEST_NOISE_MULTIPLIER` meets the target.

    Raises:
        BudgetError: No noise multiplier up to `LARGEST_NOISE_MULTIPLIER` meets the target.

    Guarantees:
        - The event's epsilon at the returned noise multiplier is never above the target.
    """
    target, delta = check_epsilon(epsilon), check_delta(delta)
    at, slope = 0.0, -1.5
    roughly: tuple[tuple[_EpsilonAt, float], ...] = (
        (lambda x: rdp_epsilon(event_of(x), delta, relation), 0.05),
        (lambda x: rough_epsilon(event_of(x), delta, relation), 4.0 * TOLERANCE),
    )
    for epsilon_at, width in roughly:
        at, slope, _ = _walk(epsilon_at, target, at, slope, width)
    _, _, found = _walk(
        lambda x: epsilon_of(event_of(x), delta, relation).epsilon, target, at, slope, TOLERANCE
    )
    if found is None:
        raise BudgetError(
            f"The budget epsilon={target:g} at delta={delta:g} is too small: it would take a noise "
            f"multiplier above {LARGEST_NOISE_MULTIPLIER:g}. Raise epsilon or delta, or train for "
            "fewer iterations."
        )
    return found


def largest_count(
    event_of: Callable[[int], EventTree],
    epsilon: float,
    delta: float,
    relation: Relation,
    *,
    at_most: int = LARGEST_COUNT,
) -> int:
    """The largest whole number (iterations, units per batch) whose event costs at most epsilon.

    Args:
        event_of: From the number to the event; its epsilon must not fall as the number grows.
        epsilon: The target, > 0.
        delta: The delta of the target, in (0, 1).
        relation: The neighbouring relation.
        at_most: The largest number to consider.

    Returns:
        A number in [0, at_most]: 0 when even 1 costs more than epsilon. Below `at_most` the next
        number costs more, or the event's epsilon is within TOLERANCE / 2 of the target.
    """
    target, delta = check_epsilon(epsilon), check_delta(delta)
    bounds: tuple[Callable[[int], float], ...] = (
        lambda n: rdp_epsilon(event_of(n), delta, relation),
        lambda n: epsilon_of(event_of(n), delta, relation).epsilon,
    )
    found = 0
    for epsilon_at in bounds:
        found = _largest(epsilon_at, target, max(1, found), at_most)
    return found


def _walk(
    epsilon_at: _EpsilonAt, target: float, at: float, slope: float, width: float
) -> tuple[float, float, float | None]:
    """Looks for a noise multiplier whose epsilon is in (target * (1 - width), target).

    All in logarithms, where epsilon is nearly a straight line of the noise: Newton's step with the
    slope that the last bound had here, then secants; halvings where they do not settle.

    Args:
        epsilon_at: From a noise multiplier to a falling bound, which may have small jumps.
        target: The target epsilon.
        at: Logarithm of the noise multiplier to start from.
        slope: Of the logarithm of epsilon there.
        width: Relative.

    Returns:
        Where the goal is now expected, the slope there, and the smallest noise multiplier seen
        that costs less than the target, or None.
    """
    least, most = math.log(SMALLEST_NOISE_MULTIPLIER), math.log(LARGEST_NOISE_MULTIPLIER)
    goal = math.log1p(-width) / 2.0
    seen: list[tuple[float, float]] = []  # (logarithm of noise, of epsilon / target), by noise
    safe: float | None = None
    start, inside = (at, slope), 0
    for _ in range(_MOST_STEPS):
        noise = math.exp(at)
        excess = _log_ratio(epsilon_at(noise), target)
        insort(seen, (at, excess))
        if excess < 0.0 and (safe is None or noise < safe):
            safe = noise
        known = sorted((p for p in seen if abs(p[1]) < _FAR_OFF), key=lambda p: abs(p[1] - goal))
        if len(known) > 1 and abs(known[0][0] - known[1][0]) > _JUMP:
            slope = _slope(known[0], known[1])
        at_an_end = at <= least if excess < 0.0 else at >= most
        if 2.0 * goal < excess < 0.0 or at_an_end:
            break
        too_little = max((x for x, y in seen if y > goal), default=None)
        enough = min((x for x, y in seen if y <= goal), default=None)
        if too_little is None or enough is None:
            x, y = seen[0] if too_little is None else seen[-1]
            step = (goal - y) / slope
            at = x + math.copysign(min(max(abs(step), _NARROWEST), _LONGEST_STEP), step)
            at = min(most, max(least, at))
            continue
        if enough - too_little < _NARROWEST:
            break
        inside += 1
        at = known[0][0] + (goal - known[0][1]) / slope if known else least
        if inside % 3 == 0 or not too_little < at < enough:
            at = (too_little + enough) / 2.0
    if not known:  # the bound says nothing about this event
        return *start, safe
    x, y = known[0]
    return min(most, max(least, x + (goal - y) / slope)), slope, safe


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    """The slope between two points, kept falling."""
    return min(_FLATTEST, (one[1] - other[1]) / (one[0] - other[0]))


def _largest(epsilon_at: Callable[[int], float], target: float, guess: int, at_most: int) -> int:
    """The largest whole number on the safe side of a rising function."""
    safe, unsafe = 0, at_most + 1
    close = math.log1p(-TOLERANCE / 2.0)
    at, slope = min(guess, at_most), 0.6
    seen: list[tuple[float, float]] = []
    for attempt in range(400):
        excess = _log_ratio(epsilon_at(at), target)
        seen = sorted({*seen, (math.log(at), excess)})
        if excess <= 0.0:
            safe = at
            if excess >= close:
                break
        else:
            unsafe = at
        if unsafe - safe <= 1:
            break
        bracket = [
            (low, high) for low, high in pairwise(seen) if low[1] <= 0.0 < high[1] < _FAR_OFF
        ]
        if bracket and attempt % 3 != 2:
            (x0, y0), (x1, y1) = bracket[0]
            at = round(math.exp(x0 + (x1 - x0) * (close / 2.0 - y0) / (y1 - y0)))
        elif safe and unsafe <= at_most:
            at = math.isqrt(safe * unsafe)
        else:
            step = min(8.0, max(0.25, math.exp(-excess / slope)))
            at = math.ceil(at * step) if step > 1.0 else math.floor(at * step)
        at = min(max(at, safe + 1), unsafe - 1)
    return safe


_FAR_OFF = 20.0


def _log_ratio(epsilon: float, target: float) -> float:
    """log(epsilon / target), kept finite."""
    if epsilon <= 0.0:
        return -_FAR_OFF
    return min(_FAR_OFF, math.log(epsilon / target)) if math.isfinite(epsilon) else _FAR_OFF
