"""One event in other words than epsilon and delta: RDP, zCDP, GDP, and what an attacker gains.

Every number is an upper bound. A notion is left out (None) where it would not describe the event:
zCDP is stated of plain Gaussians alone, GDP only where one Gaussian describes the whole profile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpads.accounting.accountant import (
    PROFILE_DELTAS,
    check_relation,
    deltas_of,
    epsilon_of,
)
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import EventTree, counted_leaves
from dpads.accounting.relation import Relation
from dpads.accounting.renyi import rdp_curve
from dpads.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

GDP_TOLERANCE = 0.05
"""A GDP parameter is stated where those needed along the profile differ by at most this share."""

_GDP_DELTA = PROFILE_DELTAS[-1]  # the profile is compared from epsilon 0 to epsilon at this delta
_POINTS = 1000
_ROUNDING = 1.0 + 2.0**-40


@dataclass(frozen=True)
class GdpFit:
    """mu-GDP, down to a false positive rate.

    Attributes:
        mu: Whoever has false positive and false negative rates of at least `fpr_floor` tells two
            neighbours apart no better than Normal(0, 1) from Normal(mu, 1).
        fpr_floor: The smallest rate that this holds for; 0 where it holds for all.
    """

    mu: float
    fpr_floor: float


@dataclass(frozen=True)
class AttackBounds:
    """Bounds on whoever knows everything else and has to tell whether one unit was in.

    Attributes:
        advantage: Of the true over the false positive rate, at most.
        fpr: A false positive rate.
        tpr: The true positive rate at it, at most.
    """

    advantage: float
    fpr: float
    tpr: float

    @property
    def accuracy(self) -> float:
        """The share of right guesses, at most, where in and out are equally likely."""
        return (1.0 + self.advantage) / 2.0


def rdp_points(event: EventTree, relation: Relation) -> tuple[list[float], list[float]] | None:
    """The Renyi divergences of an event, at the orders where they are finite.

    Args:
        event: An event tree.
        relation: The neighbouring relation.

    Returns:
        Orders and divergences, rounded up to six digits; None where RDP does not know the event or
        would ignore the relation (replace-one).

    Raises:
        ConfigError: The sampler needs another relation.
        InputError: The event is malformed.

    References:
        Mironov (2017), arXiv 1702.07476 v3, Definition 4; as computed by dp-accounting 0.6.0.
    """
    to_dp_event(event)
    check_relation(event, relation)
    if relation is Relation.REPLACE_ONE:
        return None
    curve = rdp_curve(canonical_bytes(event), relation)
    if curve is None:
        return None
    points = [
        (float(order), round_up_digits(float(divergence)))
        for order, divergence in zip(*curve, strict=True)
        if math.isfinite(divergence)
    ]
    return ([o for o, _ in points], [d for _, d in points]) if points else None


def zcdp_rho(event: EventTree, relation: Relation) -> float | None:
    """rho of zero-concentrated differential privacy, for plain Gaussians alone.

    Args:
        event: An event tree.
        relation: The neighbouring relation; replace-one doubles the sensitivity.

    Returns:
        rho, exact but for rounding up; None where any covered event is no plain Gaussian: sampling
        has no useful rho.

    Raises:
        ConfigError: The sampler needs another relation.
        InputError: The event is malformed.

    References:
        Bun and Steinke (2016), arXiv 1605.02065, Proposition 1.6 and Lemma 1.7.
    """
    squared = _squared_mu(event, relation)
    return None if squared is None else squared / 2.0 * _ROUNDING


def gdp_fit(event: EventTree, relation: Relation) -> GdpFit | None:
    """The parameter of Gaussian differential privacy, where one Gaussian describes the event.

    Plain Gaussians are GDP exactly. Anything else is compared with Gaussians along its privacy
    profile, from epsilon 0 to the epsilon at delta 1e-12: at each epsilon, which mu has this
    delta? Where the largest is within `GDP_TOLERANCE` of the smallest it is returned, else None
    (DP-SGD at a small sampling probability is far from it). Below the false positive rate at which
    the Gaussian's likelihood ratio is that last epsilon nothing was compared.

    Args:
        event: An event tree.
        relation: The neighbouring relation.

    Returns:
        mu, rounded up, with its floor; None where it does not fit.

    Raises:
        ConfigError: The sampler needs another relation.
        InputError: The event is malformed.
        UnsupportedEventError: No accountant knows this event under this relation.

    Guarantees:
        - Between two compared epsilons the Gaussian of the result has no smaller delta either.

    References:
        Dong, Roth and Su (2019), arXiv 1905.02383 v3, Corollary 2.13 and Corollary 3.3. Gomez et al.
        (2025), arXiv 2503.10945: say mu where it fits, the profile where it does not.
    """
    import numpy as np

    squared = _squared_mu(event, relation)
    if squared is not None:
        return GdpFit(math.sqrt(squared) * _ROUNDING, 0.0)
    furthest = epsilon_of(event, _GDP_DELTA, relation).epsilon
    if not 0.0 < furthest < math.inf:
        return None
    epsilons = np.linspace(0.0, furthest, _POINTS)
    deltas = np.asarray(deltas_of(event, tuple(epsilons.tolist()), relation))
    if not np.all((deltas > 0.0) & (deltas < 1.0)):
        return None
    needed = mu_of(epsilons, deltas)
    if np.max(needed) > np.min(needed) * (1.0 + GDP_TOLERANCE):
        return None
    # Up to the next epsilon the profile is at most this delta, and the Gaussian's at least that one.
    mu = float(np.max(mu_of(epsilons[1:], deltas[:-1]))) * _ROUNDING
    from scipy.special import ndtr

    return GdpFit(mu, float(ndtr(-furthest / mu - mu / 2.0)) * _ROUNDING)


def attack_bounds(event: EventTree, relation: Relation, fpr: float = 1e-3) -> AttackBounds:
    """What an attacker gains who knows everything but whether one unit was in.

    Both are read off the privacy profile, at many epsilons: an (epsilon, delta) bound in both
    directions allows a true positive rate of at most exp(epsilon) * fpr + delta, and of at most
    1 - exp(-epsilon) * (1 - delta - fpr).

    Args:
        event: An event tree.
        relation: The neighbouring relation.
        fpr: The false positive rate, in (0, 1).

    Returns:
        The bounds, each in [0, 1]; both are 1 for an event without noise.

    Raises:
        ConfigError: fpr is not in (0, 1), or the sampler needs another relation.
        InputError: The event is malformed.
        UnsupportedEventError: No accountant knows this event under this relation.

    Guarantees:
        - The advantage is at most delta at epsilon 0, and at most what any (epsilon, delta) of the
          profile allows.
        - The true positive rate is at most fpr plus the advantage.

    References:
        Wasserman and Zhou (2010), arXiv 0811.2501, Theorem 2.4; Kairouz, Oh and Viswanath (2015),
        arXiv 1311.0776 v4, Theorem 2.1; Dong, Roth and Su (2019), arXiv 1905.02383 v3, Prop. 2.5.
    """
    import numpy as np

    fpr = _check_rate(fpr)
    epsilons = np.append(np.linspace(0.0, 8.0, 1601), np.linspace(8.05, 40.0, 640))
    deltas = np.asarray(deltas_of(event, tuple(epsilons.tolist()), relation))
    gain = np.expm1(epsilons)
    advantage = float(np.min((gain + 2.0 * deltas) / (gain + 2.0)))
    few = float(np.min(np.exp(epsilons) * fpr + deltas))
    many = float(np.min(1.0 - np.exp(-epsilons) * (1.0 - deltas - fpr)))
    advantage = min(1.0, advantage * _ROUNDING)
    tpr = min(1.0, few * _ROUNDING, many + 2.0**-50, fpr + advantage)
    return AttackBounds(advantage=advantage, fpr=fpr, tpr=tpr)


def round_up_digits(value: float, digits: int = 6) -> float:
    """A number that is not negative, rounded up to some significant digits.

    Examples:
        >>> round_up_digits(0.000123456001), round_up_digits(7.0)
        (0.000123457, 7.0)
    """
    from decimal import ROUND_CEILING, Context, Decimal

    if value == 0.0 or not math.isfinite(value):
        return value
    return float(Context(prec=digits, rounding=ROUND_CEILING).plus(Decimal(value)))


def _check_rate(fpr: object) -> float:
    """A false positive rate as a float, or a `ConfigError`."""
    if isinstance(fpr, bool) or not isinstance(fpr, int | float) or not 0.0 < fpr < 1.0:
        raise ConfigError(f"Expected fpr, a false positive rate, in (0, 1), got {fpr!r}.")
    return float(fpr)


def _squared_mu(event: EventTree, relation: Relation) -> float | None:
    """The squared GDP parameter of plain Gaussians, or None where anything is not one.

    Gaussians compose to the Gaussian whose squared ratio of sensitivity to stddev is the sum.
    """
    to_dp_event(event)
    check_relation(event, relation)
    sensitivity = 2.0 if relation is Relation.REPLACE_ONE else 1.0
    squares = []
    for leaf, count in counted_leaves(event):
        inner = leaf["event"] if leaf["kind"] == "fixed_order_pass" else leaf
        if inner["kind"] != "gaussian":
            return None
        noise = to_dp_event(inner).noise_multiplier
        if noise == 0.0:
            return None
        ratio = sensitivity / noise
        squares.append(count * ratio * ratio)
    return math.fsum(squares) if squares else None


def mu_of(epsilons: np.ndarray[Any, Any], deltas: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """For each pair the smallest mu whose Gaussian has this delta at this epsilon, by bisection."""
    import numpy as np

    low = np.full(epsilons.shape, math.log(1e-9))
    high = np.full(epsilons.shape, math.log(1e4))
    for _ in range(80):
        middle = (low + high) / 2.0
        enough = gaussian_delta(np.exp(middle), epsilons) >= deltas
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    return np.asarray(np.exp(high))


def gaussian_delta(mu: np.ndarray[Any, Any], epsilon: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """delta of mu-GDP at epsilon, in closed form.

    References:
        Balle and Wang (2018), arXiv 1805.06530, Theorem 8.
    """
    import numpy as np
    from scipy.special import log_ndtr, ndtr

    at = epsilon / mu
    return np.asarray(ndtr(mu / 2.0 - at) - np.exp(epsilon + log_ndtr(-mu / 2.0 - at)))
