"""What ran on private data, as a tree of plain numbers.

An event is a JSON tree, so that ledgers and statements hold it as it is and a stranger can
rebuild it without this library:

    {"kind": "self_composed", "count": 2798,
     "event": {"kind": "poisson_sampled", "sampling_prob": 0.0018,
               "event": {"kind": "gaussian", "noise_multiplier": 0.766}}}

The kinds `fixed_order_pass` and `truncated_poisson_gaussian` exist although their noise is a
Gaussian's: the accountant must know the sampler to refuse a neighbouring relation under which
the amplification, or its absence, was not proved. `worst_of` and `renyi_filter` bound what ran
without telling which of several mechanisms it was; RDP alone knows them.

Trees from files are checked, and made the `DpEvent`s of dp-accounting, by `event_forms`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

from dpads.errors import InputError

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

# Of how many of a group join: rarer ones count as all joining, and nothing counts as impossible.
_NEGLIGIBLE_TAIL = 1e-32
_LEAST_WEIGHT = 1e-300


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


def worst_of(parts: Sequence[EventTree]) -> EventTree:
    """One of several mechanisms, of which only the costliest counts.

    It holds in two cases, whatever the outputs are (which mechanism it was among them):

    * One of them ran, and which one was drawn without a look at the data. The divergence of a
      mixture whose components are told apart is at most the largest of theirs.
    * Each ran on units of its own, and which units those are is decided unit by unit, not by what
      other units are. One unit more or less, or emptied, then changes what one of them reads; the
      others see equal rows, and earlier outputs that they build on are given.

    A mechanism that was chosen after a look at private outputs is in neither case.

    Args:
        parts: The mechanisms' events. Equal ones are merged, nested ones taken apart; a single one
            is that one.

    Returns:
        An event whose Renyi divergence is the largest of the parts' at every order. PLD does not
        know it, nor do zCDP, GDP and groups.

    References:
        van Erven and Harremoes (2014), arXiv 1206.2459 v2, Theorem 13: joint quasi-convexity.
        McSherry (2009), Theorem 4: parallel composition.
    """
    different: list[EventTree] = []
    for part in parts:
        for event in part["events"] if part["kind"] == "worst_of" else [part]:
            if event != NO_OP and event not in different:
                different.append(event)
    if not different:
        return dict(NO_OP)
    return different[0] if len(different) == 1 else {"kind": "worst_of", "events": different}


def renyi_filter(*, order: float, rdp: float) -> EventTree:
    """Everything that ran inside a Renyi filter, whatever was chosen after a look at what.

    The order and the total were fixed before the first run. Its Renyi divergence is at most rdp at
    the order and, since divergences grow with it, at every smaller one; above nothing bounds it.

    Args:
        order: The order of the filter, > 1.
        rdp: Its total.

    References:
        Feldman and Zrnic (2021), arXiv 2008.11193, and Lecuyer (2021), arXiv 2103.01379: filters.
        van Erven and Harremoes (2014), arXiv 1206.2459 v2, Theorem 3: monotonicity.
    """
    return {"kind": "renyi_filter", "order": float(order), "rdp": float(rdp)}


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
    given: object = group_size
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InputError(f'Expected "group_size" to be an integer >= 1, got {given!r}.')
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
    """How many leaf mechanisms the event composes; of a choice, the most that it can be."""
    if event["kind"] == "self_composed":
        return int(event["count"]) * iterations_of(event["event"])
    if event["kind"] == "composed":
        return sum(iterations_of(e) for e in event["events"])
    if event["kind"] == "repeat_and_select":
        return iterations_of(event["event"])
    if event["kind"] == "worst_of":
        return max(iterations_of(e) for e in event["events"])
    return 0 if event["kind"] == "no_op" else 1


def counted_leaves(event: EventTree, count: int = 1) -> list[tuple[EventTree, int]]:
    """The mechanisms of a tree with how often each is composed; no-ops left out."""
    if event["kind"] == "self_composed":
        return counted_leaves(event["event"], count * int(event["count"]))
    if event["kind"] == "composed":
        return [pair for e in event["events"] for pair in counted_leaves(e, count)]
    return [] if event["kind"] == "no_op" else [(event, count)]


def leaves(event: EventTree) -> list[EventTree]:
    """The mechanisms of a tree, sampling included; composition, selection and choice stripped."""
    if event["kind"] in ("self_composed", "repeat_and_select"):
        return leaves(event["event"])
    if event["kind"] in ("composed", "worst_of"):
        return [leaf for e in event["events"] for leaf in leaves(e)]
    return [event]


def kinds_of(event: EventTree) -> frozenset[str]:
    """Every kind in a tree, those that hold others included."""
    inside = [*event.get("events", []), *([event["event"]] if "event" in event else [])]
    return frozenset({str(event["kind"])}.union(*(kinds_of(part) for part in inside)))


def _gaussian(noise_multiplier: float) -> EventTree:
    """A Gaussian whose noise multiplier already includes the slack."""
    return {"kind": "gaussian", "noise_multiplier": float(noise_multiplier)}
