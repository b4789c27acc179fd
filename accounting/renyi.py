"""Renyi divergences of an event, and the epsilon they give: one of the two upper bounds.

The conversion is done here and not by dp-accounting, which answers 0 for a divergence that
rounding made negative.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from json import loads
from typing import TYPE_CHECKING, Any

from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import EventTree, counted_leaves
from dpads.accounting.relation import Relation, neighboring_relation

if TYPE_CHECKING:
    import numpy as np
    from dp_accounting.rdp import RdpAccountant

# Rounding in the logarithms of one mechanism's divergence: measured at about 1e-15.
_ROUNDING = 2.0**-47
# Nearer to 1 the conversion divides by next to nothing.
_SMALLEST_ORDER = 1.01
# At whole orders a sampled Gaussian's divergence is a finite sum.
_WHOLE = (*map(float, range(2, 65)), 128.0, 256.0, 512.0, 1024.0)


def rdp_epsilon_of(event_bytes: bytes, delta: float, relation: Relation) -> float | None:
    """RDP's epsilon, or None where RDP does not know the event or would ignore the relation."""
    if relation is Relation.REPLACE_ONE:
        return None
    curve = rdp_curve(event_bytes, relation)
    return None if curve is None else epsilon_of_curve(*curve, delta)


def quick_rdp_epsilon_of(event_bytes: bytes, delta: float, relation: Relation) -> float:
    """RDP's epsilon from whole orders alone, many times faster and a little looser: to search with.

    Infinite where RDP says nothing.
    """
    curve = None if relation is Relation.REPLACE_ONE else rdp_curve(event_bytes, relation, _WHOLE)
    return math.inf if curve is None else epsilon_of_curve(*curve, delta)


def divergence_at(event_bytes: bytes, order: float, relation: Relation) -> float:
    """The Renyi divergence at one order, computed at it alone; infinite where RDP says nothing."""
    curve = None if relation is Relation.REPLACE_ONE else rdp_curve(event_bytes, relation, (order,))
    return math.inf if curve is None else float(curve[1][0])


def best_whole_order(event_bytes: bytes, delta: float, relation: Relation) -> float:
    """The whole order at which RDP's epsilon is smallest.

    Args:
        event_bytes: Canonical JSON of an event that RDP knows.
        delta: The delta of epsilon.
        relation: The neighbouring relation, not replace-one.
    """
    curve = rdp_curve(event_bytes, relation, _WHOLE)
    if curve is None:
        raise AssertionError("an event that RDP does not know was refused above")
    return float(curve[0][_bounds_of_curve(*curve, delta).argmin()])


@lru_cache(maxsize=1024)
def rdp_curve(
    event_bytes: bytes, relation: Relation, orders: tuple[float, ...] | None = None
) -> tuple[Any, Any] | None:
    """Orders and Renyi divergences of an event, or None where RDP does not know it.

    Args:
        event_bytes: Canonical JSON of the event.
        relation: The neighbouring relation, not replace-one.
        orders: The orders; dp-accounting's own where none are given.
    """
    import numpy as np
    from dp_accounting.rdp import RdpAccountant

    event = loads(event_bytes)
    to_dp_event(event)
    accountant = RdpAccountant(orders, neighboring_relation(relation))
    if not _knows(accountant, event):
        return None
    total = np.zeros(accountant.orders.size)
    for leaf, count in counted_leaves(event):
        total += count * _leaf_curve(canonical_bytes(leaf), relation, orders)
    # A divergence that could not be computed is none.
    return accountant.orders, np.nan_to_num(total, nan=np.inf, posinf=np.inf) * (1.0 + 2.0**-40)


def rdp_at(event_bytes: bytes, order: float, relation: Relation) -> float:
    """The Renyi divergence at an order, or at the next larger one that is computed.

    Infinite where RDP does not know the event, would ignore the relation, or has no such order.
    """
    curve = None if relation is Relation.REPLACE_ONE else rdp_curve(event_bytes, relation)
    if curve is None:
        return math.inf
    return next((float(rdp) for known, rdp in zip(*curve, strict=True) if known >= order), math.inf)


def _knows(accountant: RdpAccountant, event: EventTree) -> bool:
    """Whether RDP has a curve of an event; of a choice, of all its parts."""
    if event["kind"] in ("composed", "worst_of"):
        return all(_knows(accountant, part) for part in event["events"])
    if event["kind"] in ("self_composed", "repeat_and_select"):
        return _knows(accountant, event["event"])
    return event["kind"] == "renyi_filter" or bool(accountant.supports(to_dp_event(event)))


@lru_cache(maxsize=1024)
def _leaf_curve(leaf_bytes: bytes, relation: Relation, orders: tuple[float, ...] | None) -> Any:
    """The divergences of one mechanism, rounding error included."""
    import numpy as np
    from dp_accounting.rdp import RdpAccountant, rdp_privacy_accountant

    leaf = loads(leaf_bytes)
    accountant = RdpAccountant(orders, neighboring_relation(relation))
    with np.errstate(over="ignore", under="ignore", divide="ignore"), _without_order_warnings():
        if leaf["kind"] == "repeat_and_select":
            # dp-accounting takes a run's divergence as it is; here it has its rounding error, so
            # that none is negative, which it would take for 0.
            run = rdp_curve(canonical_bytes(leaf["event"]), relation, orders)
            if run is None:
                raise AssertionError(
                    "a selection among runs that RDP does not know was let through"
                )
            shape = math.inf if leaf["shape"] == "poisson" else leaf["shape"]
            rdp = rdp_privacy_accountant._compute_rdp_repeat_and_select(*run, leaf["mean"], shape)
            # Divergences grow with the order; Poisson's bound does not, so each has those above it.
            above = np.nan_to_num(np.asarray(rdp), nan=np.inf, posinf=np.inf)[::-1]
            rdp = np.minimum.accumulate(above)[::-1]
        elif leaf["kind"] == "worst_of":
            curves = [rdp_curve(canonical_bytes(part), relation, orders) for part in leaf["events"]]
            # Of a part that is not known nothing is.
            rdp = np.max([np.inf if c is None else c[1] for c in curves], axis=0)
        elif leaf["kind"] == "renyi_filter":
            rdp = np.where(accountant.orders <= leaf["order"], leaf["rdp"], np.inf)
        else:
            rdp = accountant.compose(to_dp_event(leaf)).rdp
    return np.maximum(rdp, 0.0) + _ROUNDING


@contextmanager
def _without_order_warnings() -> Iterator[None]:
    """Hushes one message: an order whose series does not converge is left out, which is safe."""

    def keep(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def epsilon_of_curve(
    orders: np.ndarray[Any, Any], rdp: np.ndarray[Any, Any], delta: float
) -> float:
    """From RDP to epsilon.

    References:
        Canonne, Kamath, Steinke (2020), arXiv 2004.00010 v4, Proposition 12.
    """
    return max(0.0, float(_bounds_of_curve(orders, rdp, delta).min()))


def _bounds_of_curve(
    orders: np.ndarray[Any, Any], rdp: np.ndarray[Any, Any], delta: float
) -> np.ndarray[Any, Any]:
    """Epsilon at each order; infinite too near to order 1."""
    import numpy as np

    bounds = rdp + np.log1p(-1.0 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1.0)
    return np.where(orders > _SMALLEST_ORDER, bounds, np.inf)


def largest_divergences(
    orders: np.ndarray[Any, Any], epsilon: float, delta: float
) -> np.ndarray[Any, Any]:
    """The divergence that converts to an epsilon, at each order alone; below 0 where none does.

    It is rounded to nearest: `epsilon_of_curve` decides.
    """
    import numpy as np

    bounds = epsilon - np.log1p(-1.0 / orders) + (np.log(delta) + np.log(orders)) / (orders - 1.0)
    return np.where(orders > _SMALLEST_ORDER, bounds, -np.inf)


def rdp_deltas_of(
    event_bytes: bytes, epsilons: np.ndarray[Any, Any], relation: Relation
) -> np.ndarray[Any, Any] | None:
    """RDP's deltas at some epsilons, or None where RDP says nothing.

    References:
        Canonne, Kamath, Steinke (2020), arXiv 2004.00010 v4, Proposition 12.
    """
    import numpy as np

    curve = None if relation is Relation.REPLACE_ONE else rdp_curve(event_bytes, relation)
    if curve is None:
        return None
    kept = curve[0] > _SMALLEST_ORDER
    orders, rdp = np.asarray(curve[0])[kept], np.asarray(curve[1])[kept]
    # Past 1e6 the smallest delta that floats have is reached; a bound never rounds down to 0.
    excess = rdp + np.log1p(-1.0 / orders) - np.minimum(epsilons, 1e6)[:, None]
    logs = np.min((orders - 1.0) * excess - np.log(orders), axis=1)
    return np.asarray(np.minimum(1.0, np.exp(np.clip(logs, -700.0, 0.0)) * (1.0 + 2.0**-40)))
