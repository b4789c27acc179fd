"""Epsilon of an event: the smaller of two upper bounds, never a number that is too small.

dp-accounting does the mathematics. This module adds what it leaves to its callers:

* Sampler and relation must agree. Fixed-order passes and truncated batches are accounted under
  zero-out only; under replace-one only PLD is used, since RDP ignores the relation.
* PLD's Fourier transforms leave an error in delta, in either direction, which is added (see
  `pld`). Where delta is too small even for extended precision RDP is reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from functools import lru_cache
from json import loads

from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import EventTree, kinds_of, leaves
from dpads.accounting.grid import epsilon_scale
from dpads.accounting.pld import pld_deltas_of, pld_epsilon_of, refuse
from dpads.accounting.pld import supports as pld_supports
from dpads.accounting.relation import Relation
from dpads.accounting.renyi import quick_rdp_epsilon_of, rdp_deltas_of, rdp_epsilon_of
from dpads.errors import ConfigError, InputError

__all__ = [
    "PROFILE_DELTAS",
    "PrivacyLoss",
    "Relation",
    "Tier",
    "check_delta",
    "check_relation",
    "default_delta",
    "delta_of",
    "deltas_of",
    "epsilon_of",
    "profile",
    "quick_rdp_epsilon",
    "rdp_epsilon",
    "rough_epsilon",
    "round_up",
    "tier",
]

PROFILE_DELTAS = (1e-5, 1e-6, 1e-8, 1e-10, 1e-12)

# Past this epsilon nothing is protected, and exp(epsilon) comes near float64's end.
_MEANINGLESS_EPSILON = 500.0
# Where no delta is given, an event is judged at this one.
_DELTA_OF_THE_SCALE = 1e-6


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
    return _epsilon_of(_bytes(event), delta, Relation(relation), rough=False)


def delta_of(event: EventTree, epsilon: float, relation: Relation) -> float:
    """The chance that an event's privacy loss bound epsilon may fail to hold.

    Args:
        event: An event tree (see `dpads.accounting.events`).
        epsilon: A finite number >= 0.
        relation: The neighbouring relation; it must suit the event's sampler.

    Returns:
        The smaller of PLD's and RDP's upper bound, in [0, 1]; 1 for an event without noise.

    Raises:
        ConfigError: epsilon is no finite number >= 0, or the sampler needs another relation.
        InputError: The event is malformed.
        UnsupportedEventError: No accountant knows this event under this relation.

    Guarantees:
        - The bound is an upper bound: the error of composing is added to it.
        - It does not grow with epsilon.

    Examples:
        >>> from dpads.accounting.events import dp_sgd
        >>> delta = delta_of(dp_sgd(1.0, 0.01, 1000), 2.13, Relation.ADD_OR_REMOVE_ONE)
        >>> 9e-7 < delta <= 1e-6
        True
    """
    return deltas_of(event, (epsilon,), relation)[0]


def deltas_of(event: EventTree, epsilons: Sequence[float], relation: Relation) -> tuple[float, ...]:
    """`delta_of` at several epsilons, for little more than the price of one."""
    points = tuple(_check_epsilon(epsilon) for epsilon in epsilons)
    return _deltas_of(_bytes(event), points, Relation(relation))


def rough_epsilon(event: EventTree, delta: float, relation: Relation) -> float:
    """An upper bound like `epsilon_of`'s on a coarser grid, faster and looser: to search with."""
    return _epsilon_of(_bytes(event), delta, Relation(relation), rough=True).epsilon


def rdp_epsilon(event: EventTree, delta: float, relation: Relation) -> float:
    """RDP's upper bound alone, the fastest; infinite where RDP says nothing."""
    bound = rdp_epsilon_of(_bytes(event), delta, Relation(relation))
    return math.inf if bound is None else bound


def quick_rdp_epsilon(event: EventTree, delta: float, relation: Relation) -> float:
    """A looser `rdp_epsilon`, many times faster: to search with."""
    return quick_rdp_epsilon_of(_bytes(event), delta, Relation(relation))


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


def _check_epsilon(epsilon: object) -> float:
    """Epsilon as a float, or a `ConfigError` when it is no finite number >= 0."""
    if (
        isinstance(epsilon, bool)
        or not isinstance(epsilon, int | float)
        or not 0.0 <= epsilon < math.inf
    ):
        raise ConfigError(f"Expected epsilon to be a finite number >= 0, got {epsilon!r}.")
    return float(epsilon)


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
    known_to_rdp_alone = sorted(kinds_of(event) & {"worst_of", "renyi_filter"})
    if known_to_rdp_alone and relation is Relation.REPLACE_ONE:
        raise ConfigError(
            f'Expected relation "add_or_remove_one" or "zero_out" for an event of kind '
            f'"{known_to_rdp_alone[0]}", got "replace_one": RDP alone accounts it, and ignores that '
            "relation."
        )
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


def _bytes(event: EventTree) -> bytes:
    """The canonical JSON of an event, or an `InputError` for what JSON cannot hold."""
    try:
        return canonical_bytes(event)
    except (TypeError, ValueError, RecursionError):
        to_dp_event(event)  # names what is wrong
        raise InputError("Expected an event of plain JSON values.") from None


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
    pld: float | None = None
    if not pld_supports(event_bytes, relation):
        if rdp is None:
            refuse(event_bytes, relation)
    elif _is_meaningless(event_bytes, rdp, delta):
        pld = math.inf
    else:
        pld = pld_epsilon_of(event_bytes, delta, relation, rough=rough)
    if rdp is not None and (pld is None or rdp < pld):
        return PrivacyLoss(rdp, delta, relation, "rdp", pld, rdp)
    if pld is None:
        raise AssertionError("an event that no accountant knows was refused above")
    return PrivacyLoss(pld, delta, relation, "pld", pld, rdp)


def _is_meaningless(event_bytes: bytes, rdp: float | None, delta: float) -> bool:
    """Whether epsilon is so large that PLD need not be asked."""
    expected = rdp if rdp is not None else epsilon_scale(event_bytes, delta)
    return expected > _MEANINGLESS_EPSILON


@lru_cache(maxsize=256)
def _deltas_of(
    event_bytes: bytes, epsilons: tuple[float, ...], relation: Relation
) -> tuple[float, ...]:
    """`deltas_of` on hashable arguments."""
    import numpy as np

    event = loads(event_bytes)
    to_dp_event(event)
    check_relation(event, relation)
    if any(leaf["kind"] == "non_private" for leaf in leaves(event)):
        return (1.0,) * len(epsilons)
    points = np.asarray(epsilons)
    bounds = np.ones(points.size)
    rdp = rdp_deltas_of(event_bytes, points, relation)
    if rdp is not None:
        bounds = np.minimum(bounds, rdp)
    if pld_supports(event_bytes, relation):
        scale = rdp_epsilon_of(event_bytes, _DELTA_OF_THE_SCALE, relation)
        if not _is_meaningless(event_bytes, scale, _DELTA_OF_THE_SCALE):
            bounds = np.minimum(bounds, pld_deltas_of(event_bytes, points, relation))
    elif rdp is None:
        refuse(event_bytes, relation)
    return tuple(float(bound) for bound in bounds)
