"""The noise, the number of iterations or the batch size that meets a target epsilon from below.

Three bounds are searched in turn, each from where the last one ended: RDP (fast and loose), PLD
in float64, and `epsilon_of` itself, which alone decides what is returned.
"""

from __future__ import annotations

import math
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
    guess = 1.0
    stages: tuple[tuple[_EpsilonAt, float], ...] = (
        (lambda x: rdp_epsilon(event_of(x), delta, relation), 0.1),
        (lambda x: rough_epsilon(event_of(x), delta, relation), TOLERANCE),
        (lambda x: epsilon_of(event_of(x), delta, relation).epsilon, TOLERANCE),
    )
    for epsilon_at, tolerance in stages:
        found = _smallest(epsilon_at, target, guess, tolerance)
        guess = guess if found is None else found
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


def _smallest(
    epsilon_at: _EpsilonAt, target: float, guess: float, tolerance: float
) -> float | None:
    """Root of a falling function from its safe side, by secants on logarithms in a bracket.

    Returns None where no argument up to the largest noise multiplier is safe.
    """
    least, most = math.log(SMALLEST_NOISE_MULTIPLIER), math.log(LARGEST_NOISE_MULTIPLIER)
    safe: tuple[float, float] | None = None  # logarithms of noise and of epsilon / target
    unsafe: tuple[float, float] | None = None
    aim = math.log1p(-tolerance / 2.0)
    slope, at = -1.5, math.log(guess)
    last: tuple[float, float] | None = None
    for attempt in range(200):
        excess = _log_ratio(epsilon_at(math.exp(at)), target)
        if excess <= 0.0:
            safe = (at, excess)
            if excess >= math.log1p(-tolerance) or at <= least:
                break
        else:
            unsafe = (at, excess)
            if at >= most:
                return None
        if last is not None and last[0] != at and last[1] != excess:
            slope = min(-0.05, (excess - last[1]) / (at - last[0]))
        last = (at, excess)
        if safe is None or unsafe is None:
            step = (aim - excess) / slope
            at = min(most, max(least, at + math.copysign(min(max(abs(step), 1e-4), 2.0), step)))
            continue
        if safe[0] - unsafe[0] < 1e-5:
            break
        weight = (unsafe[1] - aim) / (unsafe[1] - safe[1])
        if attempt % 3 == 2 or not 0.02 < weight < 0.98:
            weight = 0.5
        at = unsafe[0] + weight * (safe[0] - unsafe[0])
    return None if safe is None else math.exp(safe[0])


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
