"""PLD composition in extended precision, for deltas that float64's Fourier transform cannot see.

dp-accounting composes an iteration with itself by raising a Fourier transform to the number of
iterations. In float64 the error of delta reaches about 2 * iterations * 2^-53, in either
direction, whatever delta is: at 2798 iterations and delta 1e-12 epsilon comes out 0.007 too
small, at 10^5 iterations twice too large. The same algorithm on `numpy.longdouble` (64 bits of
mantissa on x86, as many as float64 where the platform has none) leaves 1/2000 of that error.
The bound used here is twice the largest error that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import PLAIN_GAUSSIANS, EventTree, counted_leaves
from dpads.accounting.mixtures import mixture_distribution

if TYPE_CHECKING:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.pld_pmf import PLDPmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

_ERRORS_PER_ITERATION = 4
_TRANSFORMS_BESIDES = 8
_TAIL_MASS = 1e-15


def composition_error(iterations: int, *, extended: bool) -> float:
    """A bound of the error of delta that composing by Fourier transforms leaves.

    Args:
        iterations: Leaf mechanisms composed.
        extended: Whether composed in `numpy.longdouble` instead of float64.
    """
    kind = np.longdouble if extended else np.float64
    unit_roundoff = float(np.finfo(kind).eps) / 2.0
    return _ERRORS_PER_ITERATION * (iterations + _TRANSFORMS_BESIDES) * unit_roundoff


def compose(
    event: EventTree, relation: NeighboringRelation, interval: float, *, extended: bool
) -> PrivacyLossDistribution:
    """The privacy loss distribution of an event.

    `PLDAccountant` composes the same parts, and adds 1.5e-15 per iteration to the mass at infinity
    when it is given them one by one.

    Args:
        event: A tree without `non_private` that `PLDAccountant` supports under the relation.
        relation: dp-accounting's neighbouring relation.
        interval: Width of the grid of losses.
        extended: Whether to compose in `numpy.longdouble` instead of float64.
    """
    from dp_accounting.pld import privacy_loss_distribution

    leaves = counted_leaves(event)
    plain = [(leaf, count) for leaf, count in leaves if leaf["kind"] in PLAIN_GAUSSIANS]
    parts = [
        _leaf(leaf, count, relation, interval, extended=extended)
        for leaf, count in leaves
        if leaf["kind"] not in PLAIN_GAUSSIANS
    ]
    if plain:
        parts.append(_plain_gaussians(plain, relation, interval, extended=extended))
    if not parts:
        return privacy_loss_distribution.identity(value_discretization_interval=interval)
    total = parts[0]
    for part in parts[1:]:
        # Truncating tails here would count the transform's rounding noise as mass at infinity.
        total = total.compose(part, tail_mass_truncation=0)
    return total


def _plain_gaussians(
    leaves: list[tuple[EventTree, int]],
    relation: NeighboringRelation,
    interval: float,
    *,
    extended: bool,
) -> PrivacyLossDistribution:
    """All plain Gaussians: one whose inverse variance is the sum of theirs, without a transform."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    inverse = math.fsum(count / to_dp_event(leaf).noise_multiplier ** 2 for leaf, count in leaves)
    one = pld.from_gaussian_mechanism(
        1.0 / math.sqrt(inverse),
        value_discretization_interval=interval,
        neighboring_relation=relation,
    )
    return _in_both_directions(one, _widened) if extended else one


def _in_both_directions(
    one: PrivacyLossDistribution, change: Callable[[PLDPmf], PLDPmf]
) -> PrivacyLossDistribution:
    """Both directions changed; one serves both where they are equal."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    pmfs = [one._pmf_remove] if one._symmetric else [one._pmf_remove, one._pmf_add]
    return pld.PrivacyLossDistribution(*map(change, pmfs))


def _widened(pmf: PLDPmf) -> PLDPmf:
    """The same probabilities in `numpy.longdouble`, so that composing with others is done in it."""
    from dp_accounting.pld.pld_pmf import DensePLDPmf

    dense = pmf.to_dense_pmf()
    return DensePLDPmf(
        dense._discretization,
        dense._lower_loss,
        np.asarray(dense._probs, dtype=np.longdouble),
        dense._infinity_mass,
        dense._pessimistic_estimate,
    )


def _leaf(
    leaf: EventTree, count: int, relation: NeighboringRelation, interval: float, *, extended: bool
) -> PrivacyLossDistribution:
    """One mechanism but a plain Gaussian, composed with itself."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    dp_event = to_dp_event(leaf)
    if leaf["kind"] == "poisson_sampled" and relation is not NeighboringRelation.REPLACE_ONE:
        # The mixture of none and one: dp-accounting's own loses the digits of tiny probabilities.
        one = mixture_distribution(
            dp_event.event.noise_multiplier, [1.0], [dp_event.sampling_probability], interval
        )
    elif leaf["kind"] == "poisson_sampled":
        one = pld.from_gaussian_mechanism(
            dp_event.event.noise_multiplier,
            value_discretization_interval=interval,
            sampling_prob=dp_event.sampling_probability,
            neighboring_relation=relation,
        )
    elif leaf["kind"] == "mixture_of_gaussians":
        one = mixture_distribution(
            dp_event.standard_deviation, dp_event.sensitivities, dp_event.sampling_probs, interval
        )
    else:
        one = pld.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=dp_event.dataset_size,
            sampling_probability=dp_event.sampling_probability,
            truncated_batch_size=dp_event.truncated_batch_size,
            noise_multiplier=dp_event.noise_multiplier,
            value_discretization_interval=interval,
            neighboring_relation=relation,
        )
    if not extended:
        return one.self_compose(count)
    return _in_both_directions(one, lambda pmf: _self_compose_extended(pmf, count))


def _self_compose_extended(pmf: PLDPmf, count: int) -> PLDPmf:
    """dp-accounting's self-composition with its Fourier transform in `numpy.longdouble`.

    Which losses to keep is decided in float64, as dp-accounting does: whatever is cut off by that
    Chernoff bound is counted as mass at infinity. Probabilities are real, so half of the spectrum
    is enough.
    """
    from dp_accounting.pld.common import compute_self_convolve_bounds
    from dp_accounting.pld.pld_pmf import DensePLDPmf
    from scipy import fft

    dense = pmf.to_dense_pmf()
    probs = np.asarray(dense._probs, dtype=np.longdouble)
    first, last = compute_self_convolve_bounds(dense._probs, count, _TAIL_MASS)
    kept = last - first + 1
    length = fft.next_fast_len(max(kept, probs.size), real=True)
    composed = fft.irfft(fft.rfft(probs, length) ** count, length)
    return DensePLDPmf(
        dense._discretization,
        dense._lower_loss * count + first,
        np.roll(composed, -first)[:kept],
        _TAIL_MASS - math.expm1(count * math.log1p(-dense._infinity_mass)),
        dense._pessimistic_estimate,
    )
