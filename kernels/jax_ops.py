"""Lookup, clipping and clipped sums in JAX: the laws of `lookup.py` and `clip.py`, for static shapes.

All of it runs under jit, within `jax.enable_x64(True)`: norms and sums are float64. Batches are padded to
bucket sizes; padding has indices out of range, which gathers fill and scatters drop.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# As in clip.py: the factor is rounded to float32 (relative error 2^-24) and so is the product.
FACTOR_MARGIN = 1.0 - 2.0**-22
SMALLEST_FACTOR = 2.0**-100


class DevicePlaces(NamedTuple):
    """Where a batch reads one array of tables, padded: P places, R rows, U units, B examples.

    Where every example has one place in each of its S slots and nowhere else, `examples` and `slots` may be
    None: place k is slot k mod S of example k // S, and places that are not there have coefficient 0.

    Attributes:
        rows: uint32[P], rows of the array; of padding any.
        slots: int32[P], which of the group's slots; None in a regular batch.
        coefs: float32[P], the factor of the row; 0 is no place at all.
        examples: int32[P], the example that reads; B for padding. None in a regular batch.
        runs: int32[P], position of the row in `touched`; R for padding.
        pairs: int32[P], number of the (unit, row) that the place belongs to; P for padding. None where no
            unit reads a row twice.
        pair_units: int32[P], the unit of each pair; U for padding. None where `pairs` is.
        touched: uint32[R], the distinct rows, rising; the array's number of rows for padding.
    """

    rows: jax.Array
    slots: jax.Array | None
    coefs: jax.Array
    examples: jax.Array | None
    runs: jax.Array
    pairs: jax.Array | None
    pair_units: jax.Array | None
    touched: jax.Array


def wide(values: jax.Array) -> jax.Array:
    """The values in float64.

    Raises:
        TypeError: outside `jax.enable_x64(True)`, where JAX would hand back float32.
    """
    with_more_bits = values.astype(np.float64)
    if with_more_bits.dtype != np.float64:
        raise TypeError(
            "Expected to be traced within jax.enable_x64(True), got 32-bit JAX: clip factors would not be "
            "certified. Trace and call the step within that context."
        )
    return with_more_bits


def _slots_of(places: DevicePlaces, slots: int) -> tuple[jax.Array, jax.Array]:
    """Example and place within [B * S] of every place, int32[P]; B * S or more for padding."""
    if places.examples is None or places.slots is None:
        at = jnp.arange(len(places.rows), dtype=jnp.int32)
        return at // slots, at
    return places.examples, places.examples * slots + places.slots


def pool(table: jax.Array, places: DevicePlaces, examples: int, slots: int) -> jax.Array:
    """Features of a group: the sum of each slot's weighted rows, float32[B, S * dim].

    Args:
        table: float32[rows, dim].
        places: of the batch.
        examples: B.
        slots: S.
    """
    return _pooled(table.at[places.rows].get(mode="clip"), places, examples, slots)


def pool_touched(values: jax.Array, places: DevicePlaces, examples: int, slots: int) -> jax.Array:
    """`pool`, from the touched rows themselves.

    Args:
        values: float32[R, dim], the rows `touched`.
        places: of the batch.
        examples: B.
        slots: S.
    """
    return _pooled(values.at[places.runs].get(mode="clip"), places, examples, slots)


def _pooled(vectors: jax.Array, places: DevicePlaces, examples: int, slots: int) -> jax.Array:
    """Sums of weighted vectors, float32[P, dim], by slot."""
    dim = vectors.shape[1]
    coefs = places.coefs[:, None]
    # padding may have come upon a row that is not finite
    vectors = jnp.where(coefs == 0.0, np.float32(0.0), coefs * vectors)
    if places.examples is None:
        return vectors.reshape(examples, slots * dim)
    _, at = _slots_of(places, slots)
    sums = jnp.zeros((examples * slots, dim), jnp.float32).at[at].add(vectors, mode="drop")
    return sums.reshape(examples, slots * dim)


def _by_unit(values: jax.Array, units: jax.Array | None, num_units: int) -> jax.Array:
    """Sums of examples' numbers by unit, float64[U]."""
    if units is None:
        return values
    return (
        jnp.zeros(num_units, values.dtype)
        .at[units]
        .add(values, mode="drop", indices_are_sorted=True)
    )


def square_norms(
    grads: jax.Array,
    places: DevicePlaces,
    slots: int,
    units: jax.Array | None,
    num_units: int,
) -> tuple[jax.Array, jax.Array]:
    """Each unit's squared table gradient, equal rows merged before squaring.

    Args:
        grads: float32[B, S * dim], gradients of the losses with respect to the group's features.
        places: of the batch.
        slots: S.
        units: int32[B], rising, the unit of each example; U for padding. None where example i is unit i.
        num_units: U.

    Returns:
        Upper bounds of the squares, float64[U], and the sums of the norms of unmerged parts, float64[U], 0
        where no unit reads a row twice.
    """
    examples = len(grads)
    by_slot = grads.reshape(examples * slots, -1)
    example, at = _slots_of(places, slots)
    coefs = wide(places.coefs)
    lengths = jnp.sum(wide(by_slot) ** 2, axis=1)
    if places.examples is not None:
        lengths = lengths.at[at].get(mode="clip")
    single = jnp.where(coefs == 0.0, 0.0, coefs * coefs * lengths)
    if places.pairs is None or places.pair_units is None:
        if places.examples is None:
            squares = jnp.sum(single.reshape(examples, slots), axis=1)
        else:
            squares = jnp.zeros(examples).at[example].add(single, mode="drop")
        return _by_unit(squares, units, num_units), jnp.zeros(num_units)
    pairs, count = places.pairs, len(places.rows)
    if places.examples is not None:
        by_slot = by_slot.at[at].get(mode="clip")
    vectors = jnp.where(coefs[:, None] == 0.0, 0.0, coefs[:, None] * wide(by_slot))
    merged = jnp.zeros(vectors.shape).at[pairs].add(vectors, mode="drop")
    norms = jnp.sqrt(single)
    spread = jnp.zeros(count).at[pairs].add(norms, mode="drop")
    terms = jnp.zeros(count).at[pairs].add(1.0, mode="drop")
    # a sum of n terms errs by at most n * 2^-53 of their absolute sum, and so do the vectors' norms
    bound = jnp.sqrt(jnp.sum(merged * merged, axis=1)) + terms * 2.0**-52 * spread
    squares = jnp.zeros(num_units).at[places.pair_units].add(bound * bound, mode="drop")
    parts = jnp.zeros(num_units).at[places.pair_units].add(spread, mode="drop")
    return squares, parts


def linear_square_norms(
    inputs: jax.Array,
    output_grads: jax.Array,
    bias: bool,
    units: jax.Array | None,
    num_units: int,
    longest: jax.Array | int = 1,
    positions: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Each unit's squared gradient of one linear layer, by the ghost norm; an upper bound.

    A unit's vectors follow each other, so that every pair of them is some lag apart: the sums over pairs are
    taken lag by lag, and no matrix of all pairs is formed.

    Args:
        inputs: float32[B * positions, in], activations.
        output_grads: float32[B * positions, out], gradients of the losses by the layer's outputs.
        bias: whether the layer has one.
        units: int32[B], rising, the unit of each example; U for padding. None where example i is unit i.
        num_units: U.
        longest: at least the number of examples of any unit; of no account where `units` is None.
        positions: vectors that each example passes through the layer; its gradient is their sum.

    Returns:
        Squares, float64[U], and the sums of the norms of single vectors where a unit has several, float64[U].

    References:
        Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679.
    """
    extra = 1.0 if bias else 0.0
    left, right = wide(inputs), wide(output_grads)
    own = (jnp.sum(left * left, axis=1) + extra) * jnp.sum(right * right, axis=1)
    widths = inputs.shape[1] + output_grads.shape[1]
    if positions > 1:
        own_units = jnp.arange(num_units, dtype=jnp.int32) if units is None else units
        longest = positions if units is None else longest * positions
        units = jnp.repeat(own_units, positions)
    # a dot product errs by its length * 2^-53 of the product of norms at most, a sum of pairs by their number
    if units is None:
        return own * (1.0 + (widths + 5.0) * 2.0**-52), jnp.zeros(num_units)
    last = len(inputs) - 1
    at = jnp.arange(len(inputs), dtype=jnp.int32)

    def add(lag: jax.Array, crossed: jax.Array) -> jax.Array:
        other = jnp.minimum(at + lag, last)
        together = (at + lag <= last) & (units[other] == units)
        dot_in = jnp.sum(left * wide(inputs[other]), axis=1) + extra
        dot_out = jnp.sum(right * wide(output_grads[other]), axis=1)
        return crossed + jnp.where(together, 2.0 * dot_in * dot_out, 0.0)

    crossed = lax.fori_loop(1, jnp.asarray(longest, jnp.int32), add, own)
    spread = _by_unit(jnp.sqrt(own), units, num_units)
    terms = _by_unit(jnp.ones(len(inputs)), units, num_units)
    total = _by_unit(crossed, units, num_units)
    error = spread * spread * (widths + terms * terms + 4.0) * 2.0**-52
    return jnp.maximum(total, 0.0) + error, jnp.where(terms > 1.0, spread, 0.0)


def clip_factors(
    squares: jax.Array, parts: jax.Array, l2_clip_norm: jax.Array | float, floor: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Norms, and factors min(1, C / norm) less a margin for rounding; the law of `clip.clip_factors`.

    Args:
        squares: float64[U], squared norms.
        parts: float64[U], sums of the norms of parts that may cancel, 0 where none can.
        l2_clip_norm: C, positive; infinity leaves every gradient as it is.
        floor: a unit is clipped as if its norm were at least this part of its parts' sum.

    Returns:
        norms float64[U], infinity where not finite, and factors float32[U], 0 there.
    """
    finite = jnp.isfinite(squares)
    norms = jnp.where(finite, jnp.sqrt(wide(squares)), jnp.inf)
    certified = jnp.maximum(norms, floor * wide(parts))
    ratios = jnp.where(certified <= l2_clip_norm, 1.0, l2_clip_norm / certified)
    # Below the normal float32 numbers a factor would lose digits and could round up: leave the unit out.
    factors = jnp.where(ratios >= SMALLEST_FACTOR, ratios * FACTOR_MARGIN, 0.0)
    factors = jnp.where(jnp.isposinf(l2_clip_norm), 1.0, factors)
    return norms, jnp.where(finite, factors, 0.0).astype(jnp.float32)


def example_factors(factors: jax.Array, units: jax.Array | None) -> jax.Array:
    """Each unit's factor at its examples, float32[B]; 0 for padding.

    Args:
        factors: float32[U].
        units: int32[B], as in `square_norms`.
    """
    if units is None:
        return factors
    return factors.at[units].get(mode="fill", fill_value=0.0)


def row_sums(grads: jax.Array, places: DevicePlaces, slots: int, factors: jax.Array) -> jax.Array:
    """Sums of clipped gradients of the touched rows, float64[R, dim].

    Args:
        grads: float32[B, S * dim], gradients of the losses with respect to the group's features.
        places: of the batch.
        slots: S.
        factors: float32[B]; a zero leaves the example out, finite or not.
    """
    examples = len(grads)
    example, at = _slots_of(places, slots)
    by_slot = grads.reshape(examples * slots, -1)
    if places.examples is None:
        scales = jnp.repeat(wide(factors), slots)
    else:
        by_slot = by_slot.at[at].get(mode="clip")
        scales = wide(factors).at[example].get(mode="fill", fill_value=0.0)
    scales = (scales * wide(places.coefs))[:, None]
    vectors = jnp.where(scales == 0.0, 0.0, scales * wide(by_slot))
    return (
        jnp.zeros((len(places.touched), vectors.shape[1])).at[places.runs].add(vectors, mode="drop")
    )


def linear_sums(
    inputs: jax.Array, output_grads: jax.Array, factors: jax.Array, positions: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Clipped gradients of one linear layer, summed: weight float64[out, in], bias float64[out].

    Args:
        inputs: float32[B * positions, in], activations.
        output_grads: float32[B * positions, out].
        factors: float32[B]; a zero leaves the example out, finite or not.
        positions: vectors that each example passes through the layer.
    """
    if positions > 1:
        factors = jnp.repeat(factors, positions)
    out = factors[:, None] == 0.0
    left = jnp.where(out, 0.0, wide(factors)[:, None] * wide(output_grads))
    right = jnp.where(out, 0.0, wide(inputs))
    return left.T @ right, jnp.sum(left, axis=0)
