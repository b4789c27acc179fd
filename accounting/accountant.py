"""Epsilon of an event: the smaller of two upper bounds, never a number that is too small.

dp-accounting does the mathematics. This module adds what it leaves to its callers:

* Sampler and relation must agree. Fixed-order passes and truncated batches are accounted under
  zero-out only; under replace-one only PLD is used, since RDP ignores the relation.
* PLD's Fourier transforms leave an error in delta, in either direction (see `precision`), so
  epsilon is read at a delta that is smaller by a bound of it. Where that costs more than a little
  the composition is done in extended precision; where even that is too coarse RDP is reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from functools import lru_cache
from json import loads
from typing import Any

from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.events import EventTree, iterations_of, leaves, to_dp_event
from dpads.accounting.grid import epsilon_scale, grid_interval, rough_grid_interval
from dpads.accounting.precision import compose, composition_error
from dpads.accounting.relation import Relation, neighboring_relation
from dpads.accounting.renyi import rdp_curve, rdp_epsilon_of
from dpads.errors import ConfigError

__all__ = [
    "PROFILE_DELTAS",
    "PrivacyLoss",
    "Relation",
    "Tier",
    "check_delta",
    "check_relation",
    "default_delta",
    "epsilon_of",
    "profile",
    "rdp_epsilon",
    "rough_epsilon",
    "round_up",
    "tier",
]

PROFILE_DELTAS = (1e-5, 1e-6, 1e-8, 1e-10, 1e-12)

# The share of delta that float64's composition error may cost before more bits are spent.
_TOLERATED_ERROR = 3e-3
_ROUGHLY_TOLERATED_ERROR = 3e-2
# Past this epsilon nothing is protected, and exp(epsilon) comes near float64's end.
_MEANINGLESS_EPSILON = 500.0


class Tier(StrEnum):
    """The tiers of "How to DP-fy ML" (arXiv 2303.00654), section 5.2."""

    TIER_1 = "tier1_eps_le_1"
    TIER_2 = "tier2_eps_le_10"
    TIER_3 = "tier3_eps_gt_10"


@dataclass(frozen=True)
class PrivacyLoss:
    """What an event costs at one delta.

    Attributes:
        epsilon: The smaller of the two bounds; infinite when nothing is protected.
        delta: The delta it holds at.
        relation: The neighbouring relation.
        accountant: "pld" or "rdp", whichever gave epsilon.
        pld_epsilon: PLD's bound; None where it does not know the event.
        rdp_epsilon: RDP's bound; None where it does not know the event or ignores the relation.
    """

    epsilon: float
    delta: float
    relation: Relation
    accountant: str
    pld_epsilon: float | None
    rdp_epsilon: float | None


def epsilon_of(event: EventTree, delta: float, relation: Relation) -> PrivacyLoss:
    """The privacy loss of an event at one delta.

    Args:
        event: An event tree (see `dpads.accounting.events`).
        delta: The chance that the bound may fail to hold, in (0, 1).
        relation: The neighbouring relation; it must suit the event's sampler.

    Returns:
        The smaller of PLD's and RDP's upper bound, and both. Results are cached.

    Raises:
        ConfigError: delta is not in (0, 1), or the sampler needs another relation.
        InputError: The event is malformed.
        UnsupportedEventError: No accountant knows this event under this relation.

    Guarantees:
        - epsilon is an upper bound: numerical error is always added, never subtracted.
        - An event without noise has infinite epsilon.

    Examples:
        >>> from dpads.accounting.events import dp_sgd
        >>> loss = epsilon_of(dp_sgd(1.0, 0.01, 1000), 1e-6, Relation.ADD_OR_REMOVE_ONE)
        >>> round_up(loss.epsilon), loss.accountant
        (2.13, 'pld')
    """
    delta = check_delta(delta)
    return _epsilon_of(canonical_bytes(event), delta, Relation(relation), rough=False)


def rough_epsilon(event: EventTree, delta: float, relation: Relation) -> float:
    """An upper bound like `epsilon_of`'s on a coarser grid, faster and looser: to search with."""
    return _epsilon_of(canonical_bytes(event), delta, Relation(relation), rough=True).epsilon


def rdp_epsilon(event: EventTree, delta: float, relation: Relation) -> float:
    """RDP's upper bound alone, the fastest; infinite where RDP says nothing."""
    bound = rdp_epsilon_of(canonical_bytes(event), delta, Relation(relation))
    return math.inf if bound is None else bound


def profile(
    event: EventTree, relation: Relation, deltas: tuple[float, ...] = PROFILE_DELTAS
) -> tuple[PrivacyLoss, ...]:
    """The privacy loss at several deltas, largest delta first: one number never tells it all."""
    return tuple(epsilon_of(event, delta, relation) for delta in sorted(deltas, reverse=True))


def check_delta(delta: object) -> float:
    """Delta as a float, or a `ConfigError` when it is not in (0, 1)."""
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0.0 < delta < 1.0:
        raise ConfigError(
            f"Expected delta in (0, 1), got {delta!r}. It is the chance that the guarantee may "
            "fail; choose it well below 1 / (number of units), for example 1e-8."
        )
    return float(delta)


def default_delta(units: int) -> float:
    """min(1e-8, 0.1 / units), rounded down to a power of ten.

    Args:
        units: The public number of units, or a public upper bound of it.

    Examples:
        >>> default_delta(71_000), default_delta(37_000_000)
        (1e-08, 1e-09)
    """
    power = 8
    while 10**power < 10 * units:
        power += 1
    return float(f"1e-{power}")


def round_up(epsilon: float, decimals: int = 2) -> float:
    """Epsilon as it is printed: rounded up, so that the printed bound holds too.

    Examples:
        >>> round_up(2.9901), round_up(3.0)
        (3.0, 3.0)
    """
    if not math.isfinite(epsilon):
        return epsilon
    step = Decimal(1).scaleb(-decimals)
    return float(Decimal(epsilon).quantize(step, rounding=ROUND_CEILING))


def tier(epsilon: float, delta: float, units: int | None) -> Tier | None:
    """The tier of a guarantee, or None where naming one would flatter it.

    Args:
        epsilon: Epsilon at delta.
        delta: The delta of the guarantee.
        units: The public number of units; None where none is known.

    Returns:
        None at a delta above the default for so many units: the same run looks a tier better at
        a looser delta.
    """
    if units is None or delta > default_delta(units):
        return None
    if epsilon <= 1.0:
        return Tier.TIER_1
    return Tier.TIER_2 if epsilon <= 10.0 else Tier.TIER_3


def check_relation(event: EventTree, relation: Relation) -> None:
    """Refuses what dp-accounting lets through: a sampler under a relation it was not proved for."""
    for leaf in leaves(event):
        kind = leaf["kind"]
        if (
            kind in ("fixed_order_pass", "truncated_poisson_gaussian")
            and relation is not Relation.ZERO_OUT
        ):
            raise ConfigError(
                f'Expected relation "zero_out" for an event of kind "{kind}", got "{relation}". '
                "One unit more or less shifts every later batch, which only zero-out leaves in "
                "place: use zero_out, or Poisson batches."
            )


@lru_cache(maxsize=4096)
def _epsilon_of(
    event_bytes: bytes, delta: float, relation: Relation, *, rough: bool
) -> PrivacyLoss:
    """`epsilon_of` on hashable arguments."""
    event = loads(event_bytes)
    to_dp_event(event)  # refuse malformed trees before anything walks them
    check_relation(event, relation)
    if any(leaf["kind"] == "non_private" for leaf in leaves(event)):
        return PrivacyLoss(math.inf, delta, relation, "pld", math.inf, None)
    rdp = rdp_epsilon_of(event_bytes, delta, relation)
    expected = rdp if rdp is not None else epsilon_scale(event_bytes, delta)
    meaningless = expected > _MEANINGLESS_EPSILON
    pld = _pld_epsilon(event_bytes, delta, relation, skip=meaningless, rough=rough)
    if rdp is not None and (pld is None or rdp < pld):
        return PrivacyLoss(rdp, delta, relation, "rdp", pld, rdp)
    if pld is None:
        raise AssertionError("an event that no accountant knows is refused when it is composed")
    return PrivacyLoss(pld, delta, relation, "pld", pld, rdp)


def _pld_epsilon(
    event_bytes: bytes, delta: float, relation: Relation, *, skip: bool, rough: bool
) -> float | None:
    """PLD's epsilon, or None where PLD does not know an event that RDP does."""
    from dp_accounting.pld import PLDAccountant

    event = loads(event_bytes)
    dp_event = to_dp_event(event)
    probe = PLDAccountant(neighboring_relation(relation))
    if not probe.supports(dp_event):
        if relation is Relation.REPLACE_ONE or rdp_curve(event_bytes, relation) is None:
            probe.compose(dp_event)  # raises UnsupportedEventError with the reason
        return None
    if skip:
        return math.inf
    iterations = iterations_of(event)
    float64_error = composition_error(iterations, extended=False)
    tolerated = _ROUGHLY_TOLERATED_ERROR if rough else _TOLERATED_ERROR
    extended = float64_error > tolerated * delta
    usable_delta = delta - composition_error(iterations, extended=extended)
    if usable_delta <= 0.0:
        return math.inf
    interval_of = rough_grid_interval if rough else grid_interval
    interval = interval_of(event_bytes, delta, relation)
    distribution = _distribution(event_bytes, relation, interval, extended)
    return float(distribution.get_epsilon_for_delta(usable_delta))


@lru_cache(maxsize=8)
def _distribution(event_bytes: bytes, relation: Relation, interval: float, extended: bool) -> Any:
    """An event's privacy loss distribution; a few are kept, so that a profile is cheap."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        return compose(
            loads(event_bytes), neighboring_relation(relation), interval, extended=extended
        )
