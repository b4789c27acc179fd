"""What ran on private data, as a tree of plain numbers; the one place that builds `DpEvent`s.

An event is a JSON tree, so that ledgers and statements hold it as it is and a stranger can
rebuild it without this library:

    {"kind": "self_composed", "count": 2798,
     "event": {"kind": "poisson_sampled", "sampling_prob": 0.0018,
               "event": {"kind": "gaussian", "noise_multiplier": 0.766}}}

The kinds `fixed_order_pass` and `truncated_poisson_gaussian` exist although their noise is a
Gaussian's: the accountant must know the sampler to refuse a neighbouring relation under which
the amplification, or its absence, was not proved.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dpads.errors import InputError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

EventTree: TypeAlias = dict[str, Any]

SENSITIVITY_SLACK = 2.0**-10
"""Float32 summation of a large batch moves the clipped sum by a little more than the clip norm.

The sensitivity is l2_clip_norm * (1 + SENSITIVITY_SLACK), so an event is always built with
noise_multiplier / (1 + SENSITIVITY_SLACK).
"""

NO_OP: EventTree = {"kind": "no_op"}
NON_PRIVATE: EventTree = {"kind": "non_private"}

MOST_RUNS = 1e6
"""The largest mean number of runs that one is selected from."""

LARGEST_SHAPE = 100.0
"""The largest shape of a truncated negative binomial; Poisson is its limit."""

PLAIN_GAUSSIANS = frozenset({"gaussian", "fixed_order_pass"})
"""The kinds whose composition is one Gaussian, exactly."""

SMALLEST_NOISE_MULTIPLIER = 2.0**-10
"""The smallest that is accounted, but 0: it leaves an epsilon in the hundreds of thousands.

Below, divergences come near the end of floats, and an event counts as having no noise.
"""

# A multiplier above the largest is accounted as the largest, which only raises epsilon.
_LARGEST_NOISE = 2.0**30
# Likewise a sampling probability below the smallest.
_SMALLEST_PROBABILITY = 1e-12
_DEEPEST = 16
_LARGEST_NUMBER = sys.float_info.max
# Of how many of a group join: rarer ones count as all joining, and nothing counts as impossible.
_NEGLIGIBLE_TAIL = 1e-32
_LEAST_WEIGHT = 1e-300
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
    "self_composed": frozenset({"event", "count"}),
    "composed": frozenset({"events"}),
}


def effective_noise_multiplier(noise_multiplier: float) -> float:
    """The noise multiplier that is accounted: stddev over the sensitivity with its slack."""
    return noise_multiplier / (1.0 + SENSITIVITY_SLACK)


def gaussian(noise_multiplier: float) -> EventTree:
    """One noisy sum over all units: stddev is noise_multiplier * l2_clip_norm (slack applied)."""
    if noise_multiplier == 0:
        return dict(NON_PRIVATE)
    return _gaussian(effective_noise_multiplier(noise_multiplier))


def dp_sgd(noise_multiplier: float, sampling_prob: float, iterations: int) -> EventTree:
    """DP-SGD: every unit joins each batch on its own coin, and each sum is noised once.

    Args:
        noise_multiplier: stddev of the noise over l2_clip_norm; 0 is no privacy at all.
        sampling_prob: The chance that one unit joins one batch, in (0, 1].
        iterations: Number of batches, at least 0.

    Returns:
        The event, with the sensitivity slack applied. With sampling_prob = 1 it is the plain
        Gaussian, whose composition is exact.
    """
    if iterations == 0:
        return dict(NO_OP)
    step = gaussian(noise_multiplier)
    if sampling_prob != 1.0 and step["kind"] == "gaussian":
        step = {"kind": "poisson_sampled", "sampling_prob": float(sampling_prob), "event": step}
    return self_composed(step, iterations)


def fixed_order(noise_multiplier: float, passes: int) -> EventTree:
    """Plain passes over the data in a fixed order: each unit is in one batch per pass.

    No amplification, and under zero-out only: one inserted unit would shift every later batch.
    """
    step = gaussian(noise_multiplier)
    if step["kind"] == "gaussian":
        step = {"kind": "fixed_order_pass", "event": step}
    return self_composed(step, passes)


def truncated_poisson(
    noise_multiplier: float,
    sampling_prob: float,
    iterations: int,
    *,
    dataset_size: int,
    max_batch_size: int,
) -> EventTree:
    """Poisson batches cut at random to max_batch_size units; under zero-out only.

    References:
        arXiv 2508.15089 (2025), as implemented in dp-accounting 0.6.0.
    """
    if noise_multiplier == 0:
        return self_composed(dict(NON_PRIVATE), iterations)
    step: EventTree = {
        "kind": "truncated_poisson_gaussian",
        "dataset_size": int(dataset_size),
        "sampling_prob": float(sampling_prob),
        "max_batch_size": int(max_batch_size),
        "noise_multiplier": effective_noise_multiplier(noise_multiplier),
    }
    return self_composed(step, iterations)


def repeat_and_select(event: EventTree, *, mean: float, shape: float | str) -> EventTree:
    """The best of a random number of runs of one event, only the best being released.

    Args:
        event: One run.
        mean: Mean number of runs.
        shape: The truncated negative binomial's shape (0 logarithmic, 1 geometric), or "poisson".

    References:
        Papernot and Steinke (2022), arXiv 2110.03620.
    """
    return {
        "kind": "repeat_and_select",
        "event": event,
        "mean": float(mean),
        "shape": shape if isinstance(shape, str) else float(shape),
    }


def self_composed(event: EventTree, count: int) -> EventTree:
    """The same event, count times (adaptively)."""
    return {"kind": "self_composed", "event": event, "count": int(count)}


def composed(events: Sequence[EventTree]) -> EventTree:
    """Events one after another; equal neighbours are counted, so the tree stays small."""
    runs: list[tuple[EventTree, int]] = []
    for event in events:
        if event == NO_OP:
            continue
        if runs and runs[-1][0] == event:
            runs[-1] = (event, runs[-1][1] + 1)
        else:
            runs.append((event, 1))
    parts = [e if count == 1 else self_composed(e, count) for e, count in runs]
    if not parts:
        return dict(NO_OP)
    return parts[0] if len(parts) == 1 else {"kind": "composed", "events": parts}


def for_group(event: EventTree, group_size: int) -> EventTree:
    """The event as it looks to a group of units: all in one data set, none in (or all emptied).

    * A plain Gaussian: the group moves the sum by at most group_size clip norms.
    * A Poisson-sampled Gaussian: j of the group join a batch with the binomial's probability and
      move the sum by at most j. The mixture over j is dominated by any other that is larger in
      distribution, in both directions: each divergence is a probability of a half-line's. So tails
      are rounded up, and those below 1e-32 count as the whole group joining.
    * A pass in a fixed order: with a_b of the group in batch b, the pass is a composition of
      Gaussians of sensitivity a_b, which the order fixes in advance; the root of the sum of a_b^2
      is at most the sum of a_b, the group's size: as if all were in one batch.

    Args:
        event: An event of one unit, under add-or-remove or zero-out.
        group_size: Units in the group, at least 1.

    Raises:
        InputError: The event holds a sampler for which no group bound is implemented.

    References:
        Ganesh (2024), arXiv 2401.10294: group privacy of DP-SGD by mixtures of Gaussians.
        Choquette-Choo et al. (2023), arXiv 2310.15526, Corollary 4.7: vectors by their norms.
        Zhu, Dong and Wang (2022), arXiv 2106.08567, Theorem 10: dominating pairs compose.
    """
    _count({"group_size": group_size}, "group_size")
    if group_size == 1:
        return event
    kind = event["kind"]
    if kind in ("no_op", "non_private"):
        return event
    if kind == "gaussian":
        return _gaussian(event["noise_multiplier"] / group_size)
    if kind == "fixed_order_pass":
        return {**event, "event": for_group(event["event"], group_size)}
    if kind == "poisson_sampled":
        sizes, weights = _joining(group_size, event["sampling_prob"])
        return {
            "kind": "mixture_of_gaussians",
            "noise_multiplier": event["event"]["noise_multiplier"],
            "sensitivities": [float(size) for size in sizes],
            "sampling_probs": weights,
        }
    if kind == "self_composed":
        return self_composed(for_group(event["event"], group_size), event["count"])
    if kind == "composed":
        return composed([for_group(e, group_size) for e in event["events"]])
    raise InputError(
        f'Expected an event of Gaussians, Poisson-sampled or not, got kind "{kind}". '
        "No group guarantee is implemented for it: state the guarantee per unit only."
    )


def _joining(group_size: int, sampling_prob: float) -> tuple[list[int], list[float]]:
    """How many of a group join a batch, and how likely each is, tails rounded up."""
    from scipy.stats import binom

    # The chance that at least j join, for j = 1, 2, ...; where it underflows it is not 0.
    tails: list[float] = []
    for size in range(1, group_size + 1):
        tail = float(binom.sf(size - 1, group_size, sampling_prob))
        tails.append(min(1.0, max(tail, _LEAST_WEIGHT) * (1.0 + 2.0**-32)))
        if tail < _NEGLIGIBLE_TAIL:
            break
    sizes = [*range(len(tails)), group_size]
    pairs = itertools.pairwise([1.0, *tails, 0.0])
    return sizes, [max(0.0, at_least - more) for at_least, more in pairs]


def iterations_of(event: EventTree) -> int:
    """How many leaf mechanisms the event composes."""
    if event["kind"] == "self_composed":
        return int(event["count"]) * iterations_of(event["event"])
    if event["kind"] == "composed":
        return sum(iterations_of(e) for e in event["events"])
    if event["kind"] == "repeat_and_select":
        return iterations_of(event["event"])
    return 0 if event["kind"] == "no_op" else 1


def counted_leaves(event: EventTree, count: int = 1) -> list[tuple[EventTree, int]]:
    """The mechanisms of a tree with how often each is composed; no-ops left out."""
    if event["kind"] == "self_composed":
        return counted_leaves(event["event"], count * int(event["count"]))
    if event["kind"] == "composed":
        return [pair for e in event["events"] for pair in counted_leaves(e, count)]
    return [] if event["kind"] == "no_op" else [(event, count)]


def leaves(event: EventTree) -> list[EventTree]:
    """The mechanisms of a tree, sampling included, composition stripped."""
    if event["kind"] in ("self_composed", "repeat_and_select"):
        return leaves(event["event"])
    if event["kind"] == "composed":
        return [leaf for e in event["events"] for leaf in leaves(e)]
    return [event]


def to_dp_event(event: EventTree) -> DpEvent:
    """Builds the `dp_accounting.DpEvent` of a tree, checking every key and number.

    Args:
        event: A tree, possibly read from a file that somebody else wrote.

    Returns:
        The event of dp-accounting that the accountants compose.

    Raises:
        InputError: An unknown kind, a missing or unknown key, or a number out of range.
    """
    return _build(event, 0)


def _gaussian(noise_multiplier: float) -> EventTree:
    """A Gaussian whose noise multiplier already includes the slack."""
    return {"kind": "gaussian", "noise_multiplier": float(noise_multiplier)}


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
