"""How wide the grid of privacy losses is that PLD rounds to."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from json import loads

from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.events import EventTree, iterations_of, leaves
from dpads.accounting.relation import Relation
from dpads.accounting.renyi import epsilon_of_curve, rdp_curve

VALUE_DISCRETIZATION_INTERVAL = 1e-3
"""Width of PLD's grid of privacy losses for up to 10^4 iterations; finer above."""

_ITERATIONS_ON_THE_FULL_GRID = 10_000
_FINEST_INTERVAL = 1e-5
_MANY_DEVIATIONS = 10.0
_GRID_POINTS = 500_000
_WORTH_COUNTING = 1e-22
_ROUGH_GRID_POINTS = 20_000
_ROUGHEST = 4.0
_ROUGHEST_IN_DEVIATIONS = 0.25


def grid_interval(event_bytes: bytes, delta: float, relation: Relation) -> float:
    """PLD's grid: fine enough to be tight, coarse enough to fit into memory.

    Rounding one iteration's loss to the grid adds a variance of about interval^2 / 4, so beyond
    10^4 iterations the interval shrinks with their square root; for a small epsilon it shrinks
    faster than epsilon. Where epsilon is made of many small losses, not of few large ones, the interval
    has to resolve one iteration's standard deviation.
    """
    event = loads(event_bytes)
    scale = epsilon_scale(event_bytes, delta)
    crowd = math.sqrt(_ITERATIONS_ON_THE_FULL_GRID / max(1, iterations_of(event)))
    fine = VALUE_DISCRETIZATION_INTERVAL * min(1.0, crowd, 5.0 * scale, 100.0 * scale * scale)
    fine = min(fine, _crowd_deviation(event, scale) / 2.0)
    return max(fine, _range(event, scale, relation) / _GRID_POINTS, _FINEST_INTERVAL)


def delta_grid_interval(event_bytes: bytes, delta: float, relation: Relation) -> float:
    """A grid to read delta from: also where epsilon is small, which is made of usual losses.

    It resolves one iteration's standard deviation, as far as memory goes.
    """
    event = loads(event_bytes)
    interval = grid_interval(event_bytes, delta, relation)
    deviation = max(_loss_deviation(leaf) for leaf in leaves(event)) or math.inf
    least = _range(event, epsilon_scale(event_bytes, delta), relation) / _GRID_POINTS
    return max(min(interval, deviation / 2.0), least, _FINEST_INTERVAL)


def rough_grid_interval(event_bytes: bytes, delta: float, relation: Relation) -> float:
    """A coarser grid where `grid_interval`'s has very many points: to search with.

    Any grid gives an upper bound, since losses are rounded to it pessimistically.
    """
    event = loads(event_bytes)
    scale = epsilon_scale(event_bytes, delta)
    interval = grid_interval(event_bytes, delta, relation)
    rough = min(
        _ROUGHEST * interval,
        _ROUGHEST_IN_DEVIATIONS * _crowd_deviation(event, scale),
        _range(event, scale, relation) / _ROUGH_GRID_POINTS,
    )
    return max(interval, rough)


def _crowd_deviation(event: EventTree, scale: float) -> float:
    """One iteration's standard deviation, or infinity where few large losses make epsilon."""
    deviation = max(_loss_deviation(leaf) for leaf in leaves(event))
    crowd = scale < _MANY_DEVIATIONS * deviation * math.sqrt(iterations_of(event))
    return deviation if crowd else math.inf


def _range(event: EventTree, scale: float, relation: Relation) -> float:
    """About how far the losses reach that the grid has to hold, epsilon included."""
    return max(4.0 * scale, *(_loss_span(leaf, relation) for leaf in leaves(event)))


def _loss_span(leaf: EventTree, relation: Relation) -> float:
    """About the largest privacy loss that one iteration has with any chance worth counting."""
    noise = leaf.get("noise_multiplier") or leaf.get("event", {}).get("noise_multiplier")
    if noise is None:
        return 0.0
    sensitivity = _largest_joining(leaf)
    if relation is Relation.REPLACE_ONE or leaf["kind"] == "truncated_poisson_gaussian":
        sensitivity *= 2.0
    ratio = float(sensitivity / noise)
    return ratio * ratio / 2.0 + 10.0 * ratio


def _largest_joining(leaf: EventTree) -> float:
    """The largest sensitivity that one iteration has with any chance worth counting."""
    if leaf["kind"] != "mixture_of_gaussians":
        return 1.0
    pairs = zip(leaf["sensitivities"], leaf["sampling_probs"], strict=True)
    return max((size for size, prob in pairs if prob > _WORTH_COUNTING), default=1.0)


def _loss_deviation(leaf: EventTree) -> float:
    """Standard deviation of one iteration's privacy loss: the root of the chi-square divergence."""
    if leaf["kind"] == "poisson_sampled":
        noise = max(float(leaf["event"]["noise_multiplier"]), 0.2)
        return float(leaf["sampling_prob"]) * math.sqrt(math.expm1(1.0 / (noise * noise)))
    if leaf["kind"] == "mixture_of_gaussians":
        noise = max(float(leaf["noise_multiplier"]), 1e-3)
        parts = [*zip(leaf["sensitivities"], leaf["sampling_probs"], strict=True)]
        return math.sqrt(
            math.fsum(
                p * q * math.expm1(min(25.0, s * t / (noise * noise)))
                for (s, p), (t, q) in itertools.product(parts, parts)
            )
        )
    return 0.0


@lru_cache(maxsize=1024)
def epsilon_scale(event_bytes: bytes, delta: float) -> float:
    """About how large epsilon is, from RDP of a stand-in: enough to choose a grid."""
    stand_in = canonical_bytes(_stand_in(loads(event_bytes)))
    curve = rdp_curve(stand_in, Relation.ADD_OR_REMOVE_ONE)
    if curve is None:
        raise AssertionError("the stand-in holds nothing but Gaussians, which RDP knows")
    groups = (max(leaf.get("sensitivities", [1.0])) for leaf in leaves(loads(event_bytes)))
    largest_group: float = max(1.0, *groups)
    return largest_group * epsilon_of_curve(*curve, delta)


def _stand_in(event: EventTree) -> EventTree:
    """The event with every leaf made one unit's Gaussian, Poisson-sampled where it was sampled."""
    kind = event["kind"]
    if kind == "self_composed":
        return {**event, "event": _stand_in(event["event"])}
    if kind == "composed":
        return {**event, "events": [_stand_in(e) for e in event["events"]]}
    if kind in ("repeat_and_select", "fixed_order_pass"):
        return _stand_in(event["event"])
    if kind == "mixture_of_gaussians":
        one_joins = 1.0 - event["sampling_probs"][0] ** (1.0 / max(1.0, *event["sensitivities"]))
        return _sampled(event["noise_multiplier"], one_joins)
    if kind == "truncated_poisson_gaussian":
        return _sampled(event["noise_multiplier"], event["sampling_prob"])
    return event


def _sampled(noise_multiplier: float, sampling_prob: float) -> EventTree:
    """A Poisson-sampled Gaussian, slack or none as it comes."""
    inner = {"kind": "gaussian", "noise_multiplier": noise_multiplier}
    prob = min(1.0, max(sampling_prob, 1e-12))
    return {"kind": "poisson_sampled", "sampling_prob": prob, "event": inner}
