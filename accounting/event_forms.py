"""Event trees that somebody else wrote: checked key by key, and built as `DpEvent`s.

The one place that knows which keys a kind has and which numbers they may be.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dpads.accounting.events import (
    LARGEST_SHAPE,
    MOST_RUNS,
    SMALLEST_NOISE_MULTIPLIER,
    EventTree,
    effective_noise_multiplier,
)
from dpads.errors import InputError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

# A multiplier above the largest is accounted as the largest, which only raises epsilon.
_LARGEST_NOISE = 2.0**30
# Likewise a sampling probability below the smallest.
_SMALLEST_PROBABILITY = 1e-12
_DEEPEST = 16
_LARGEST_NUMBER = sys.float_info.max

_KEYS: Mapping[str, frozenset[str]] = {
    "no_op": frozenset(),
    "non_private": frozenset(),
    "gaussian": frozenset({"noise_multiplier"}),
    "poisson_sampled": frozenset({"sampling_prob", "event"}),
    "fixed_order_pass": frozenset({"event"}),
    "truncated_poisson_gaussian": frozenset(
        {"dataset_size", "sampling_prob", "max_batch_size", "noise_multiplier"}
    ),
    "mixture_of_gaussians": frozenset({"noise_multiplier", "sensitivities", "sampling_probs"}),
    "repeat_and_select": frozenset({"event", "mean", "shape"}),
    "worst_of": frozenset({"events"}),
    "renyi_filter": frozenset({"order", "rdp"}),
    "self_composed": frozenset({"event", "count"}),
    "composed": frozenset({"events"}),
}


def to_dp_event(event: EventTree | None) -> DpEvent:
    """Builds the `dp_accounting.DpEvent` of a tree, checking every key and number.

    Args:
        event: A tree, possibly read from a file that somebody else wrote.

    Returns:
        The event of dp-accounting that the accountants compose. It has none for "worst_of" and
        "renyi_filter": those are an `UnsupportedDpEvent`, which `renyi` alone sees through.

    Raises:
        InputError: An unknown kind, a missing or unknown key, or a number out of range.
    """
    return _build(event, 0)


def _number(
    event: Mapping[str, Any], key: str, accept: Callable[[float], bool], expected: str
) -> float:
    """A finite number of the tree that satisfies a condition."""
    value = event[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f'Expected "{key}" of an event to be {expected}, got {value!r}.')
    if abs(value) > _LARGEST_NUMBER or math.isnan(value) or not accept(value):
        raise InputError(f'Expected "{key}" of an event to be {expected}, got {value!r}.')
    return float(value)


def _count(event: Mapping[str, Any], key: str) -> int:
    """A positive whole number of the tree."""
    value = event[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**12:
        raise InputError(f'Expected "{key}" of an event to be an integer >= 1, got {value!r}.')
    return value


def _list(event: Mapping[str, Any], key: str) -> list[Any]:
    """A list of the tree that is not empty."""
    value = event[key]
    if not isinstance(value, list) or not value:
        raise InputError(f'Expected "{key}" of an event to be a list that is not empty.')
    return value


def _noise(event: Mapping[str, Any]) -> float:
    """The noise multiplier of a leaf, as far as accountants can tell multipliers apart."""
    value = _number(event, "noise_multiplier", lambda x: x >= 0, "a number >= 0")
    smallest = effective_noise_multiplier(SMALLEST_NOISE_MULTIPLIER)
    return min(value, _LARGEST_NOISE) if value >= smallest else 0.0


def _probability(event: Mapping[str, Any]) -> float:
    """The sampling probability of a leaf, as far as accountants can tell probabilities apart."""
    value = _number(event, "sampling_prob", lambda x: 0 < x <= 1, "a number in (0, 1]")
    return max(value, _SMALLEST_PROBABILITY)


def _build(event: Any, depth: int) -> DpEvent:
    """Recursive part of `to_dp_event`."""
    from dp_accounting import dp_event as dp

    if depth > _DEEPEST:
        raise InputError(f"Expected an event nested at most {_DEEPEST} deep.")
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        raise InputError('Expected an event to be an object with the key "kind".')
    kind = event["kind"]
    if kind not in _KEYS:
        known = ", ".join(f'"{k}"' for k in _KEYS)
        raise InputError(f'Expected a known kind of event, got "{kind}". Known: {known}.')
    if set(event) != _KEYS[kind] | {"kind"}:
        wrong = ", ".join(sorted(set(event) ^ (_KEYS[kind] | {"kind"})))
        raise InputError(f'An event of kind "{kind}" has missing or unknown keys: {wrong}.')

    if kind == "no_op":
        return dp.NoOpDpEvent()
    if kind == "non_private":
        return dp.NonPrivateDpEvent()
    if kind == "gaussian":
        return dp.GaussianDpEvent(_noise(event))
    if kind == "poisson_sampled":
        inner = _build(event["event"], depth + 1)
        _expect_gaussian(event)
        return dp.PoissonSampledDpEvent(_probability(event), inner)
    if kind == "fixed_order_pass":
        inner = _build(event["event"], depth + 1)
        _expect_gaussian(event)
        return inner
    if kind == "truncated_poisson_gaussian":
        return dp.TruncatedSubsampledGaussianDpEvent(
            dataset_size=_count(event, "dataset_size"),
            sampling_probability=_number(
                event,
                "sampling_prob",
                lambda x: _SMALLEST_PROBABILITY <= x <= 1,
                "a number in [1e-12, 1]",
            ),
            truncated_batch_size=_count(event, "max_batch_size"),
            noise_multiplier=_noise(event),
        )
    if kind == "mixture_of_gaussians":
        return _build_mixture(event)
    if kind == "repeat_and_select":
        inner = _build(event["event"], depth + 1)
        mean = _number(event, "mean", lambda x: 1 <= x <= MOST_RUNS, "in [1, 1e6]")
        if event["shape"] == "poisson":
            return dp.RepeatAndSelectDpEvent(inner, mean, math.inf)
        shape = _number(
            event, "shape", lambda x: 0 <= x <= LARGEST_SHAPE, 'in [0, 100] or "poisson"'
        )
        return dp.RepeatAndSelectDpEvent(inner, mean, shape)
    if kind == "worst_of":
        for part in _list(event, "events"):
            _build(part, depth + 1)
        return dp.UnsupportedDpEvent()
    if kind == "renyi_filter":
        _number(event, "order", lambda x: x > 1, "a number > 1")
        _number(event, "rdp", lambda x: x >= 0, "a number >= 0")
        return dp.UnsupportedDpEvent()
    if kind == "self_composed":
        inner = _build(event["event"], depth + 1)
        return dp.SelfComposedDpEvent(inner, _count(event, "count"))
    return dp.ComposedDpEvent([_build(e, depth + 1) for e in _list(event, "events")])


def _expect_gaussian(event: EventTree) -> None:
    """Only a Gaussian may be sampled: no amplification is claimed for anything else."""
    if event["event"]["kind"] != "gaussian":
        raise InputError(
            f'Expected the event inside "{event["kind"]}" to be a "gaussian", '
            f'got "{event["event"]["kind"]}".'
        )


def _build_mixture(event: EventTree) -> DpEvent:
    """A mixture of Gaussians: sensitivities with their probabilities."""
    from dp_accounting import dp_event as dp

    sizes, weights = _list(event, "sensitivities"), _list(event, "sampling_probs")
    if len(sizes) != len(weights):
        raise InputError(
            f"Expected as many sensitivities as sampling_probs, got {len(sizes)} and "
            f"{len(weights)}."
        )
    for value in [*sizes, *weights]:
        _number({"value": value}, "value", lambda x: x >= 0, "a number >= 0")
    if abs(math.fsum(weights) - 1.0) > 1e-12:
        raise InputError("Expected the sampling_probs of a mixture to sum to 1.")
    return dp.MixtureOfGaussiansDpEvent(_noise(event), sizes, weights)
