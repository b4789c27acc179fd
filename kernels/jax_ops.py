"""Lookup, clipping and clipped sums in JAX: the laws of `lookup.py` and `clip.py`, for static shapes.

All of it runs under jit, within `jax.enable_x64(True)`: norms and sums are float64. Batches are padded to
bucket sizes; padding has indices out of range, which gathers fill and scatters drop.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dpads.kernels.jax_wide import by_unit, wide
from dpads.kernels.partial_sums import SUMMED_AT_A_TIME, PartialSums

# As in clip.py: the factor is rounded to float32 (relative error 2^-24) and so is the product.
FACTOR_MARGIN = 1.0 - 2.0**-22
SMALLEST_FACTOR = 2.0**-100
LONGEST_UNROLLED = 64


class DevicePlaces(NamedTuple):
    """Where a batch reads one array of tables, padded: P places, R rows, U units, B examples.

    Where every example has one place in each of its S slots and nowhere else, `examples` and `slots` may be
    None: place k is slot k mod S of example k // S, and places that are not there are padding.

    Attributes:
        slots: int32[P], which of the group's slots; None in a regular batch.
        coefs: float32[P], the factor of the row; 0 for padding, and no place at all.
        examples: int32[P], the example that reads; B for padding. None in a regular batch.
        runs: int32[P], position of the row among the R that are read; R for padding.
        pairs: int32[Q], number of the (unit, row) that each place of `repeated` belongs to; Q for padding.
            None where no unit reads a row twice.
        pair_units: int32[Q], the unit of each pair; U for padding. None where `pairs` is.
        repeated: int32[Q], the places whose units read their rows more than once, and perhaps others; P for
            padding. None for all of them, in order: Q is P then.
        sums: `partial_sums` of `runs`.
    """

    slots: jax.Array | None
    coefs: jax.Array
    examples: jax.Array | None
    runs: jax.Array
    pairs: jax.Array | None
    pair_units: jax.Array | None
    repeated: jax.Array | None = None
    sums: PartialSums | None = None

    @property
    def numbers(self) -> jax.Array:
        """The sum that each place is added to, int32[P]."""
        return self.runs if self.sums is None else self.sums.places


def _slots_of(places: DevicePlaces, slots: int) -> jax.Array:
    """Place within [B * S] of every place, int32[P]; B * S or more for padding."""
    if places.examples is None or places.slots is None:
        return jnp.arange(len(places.runs), dtype=jnp.int32)
    return places.examples * slots + places.slots


def pool_touched(values: jax.Array, places: DevicePlaces, examples: int, slots: int) -> jax.Array:
    """Features of a group: the sum of each slot's weighted rows, float32[B, S * dim].

    Args:
        values: float32[R, dim], the rows that are read.
        places: of the batch.
        examples: B.
        slots: S.
    """
    dim = values.shape[1]
    # padding reads zeros: what it would come upon may not be finite
    vectors = values.at[places.runs].get(mode="fill", fill_value=0.0)
    vectors = places.coefs[:, None] * vectors
    if places.examples is None:
        return vectors.reshape(examples, slots * dim)
    at = _slots_of(places, slots)
    sums = jnp.zeros((examples * slots, dim), jnp.float32).at[at].add(vectors, mode="drop")
    return sums.reshape(examples, slots * dim)


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
    at = _slots_of(places, slots)
    lengths = _square_lengths(by_slot)
    if places.examples is not None:
        lengths = lengths.at[at].get(mode="clip")
    coefs = wide(places.coefs)
    lengths = jnp.where(coefs == 0.0, 0.0, coefs * coefs * lengths)
    if places.pairs is None or places.pair_units is None:
        return by_unit(_by_example(lengths, places, examples), units, num_units), jnp.zeros(
            num_units
        )
    if places.repeated is None:
        squares = jnp.zeros(num_units)
    else:
        alone = lengths.at[places.repeated].set(0.0, mode="drop")
        squares = by_unit(_by_example(alone, places, examples), units, num_units)
        at, coefs, lengths = (
            values.at[places.repeated].get(mode="fill", fill_value=0)
            for values in (at, coefs, lengths)
        )
    if places.examples is not None or places.repeated is not None:
        by_slot = by_slot.at[at].get(mode="clip")
    pairs, count = places.pairs, len(places.pairs)
    vectors = jnp.where(coefs[:, None] == 0.0, 0.0, coefs[:, None] * wide(by_slot))
    merged = jnp.zeros((count, vectors.shape[1])).at[pairs].add(vectors, mode="drop")
    # a sum of n terms errs by at most n * 2^-53 of their absolute sum, and so do the vectors' norms
    numbers = jnp.stack([jnp.sqrt(lengths), jnp.ones(count)], axis=1)
    spread, terms = jnp.zeros((count, 2)).at[pairs].add(numbers, mode="drop").T
    bound = jnp.sqrt(_square_lengths(merged)) + terms * 2.0**-52 * spread
    numbers = jnp.stack([bound * bound, spread], axis=1)
    found = jnp.zeros((num_units, 2)).at[places.pair_units].add(numbers, mode="drop")
    return squares + found[:, 0], found[:, 1]


def _square_lengths(vectors: jax.Array) -> jax.Array:
    """Squared lengths of many short vectors, float64[n]."""
    dim = vectors.shape[1]
    if dim > LONGEST_UNROLLED:
        return jnp.sum(wide(vectors) ** 2, axis=1)
    total = jnp.zeros(len(vectors))
    for j in range(dim):  # column by column, so that it is the vectors that are vectorised over
        total = total + wide(vectors[:, j]) ** 2
    return total


def _by_example(values: jax.Array, places: DevicePlaces, examples: int) -> jax.Array:
    """Sums of places' numbers by example, float64[B]."""
    if places.examples is None:
        return jnp.sum(values.reshape(examples, -1), axis=1)
    return jnp.zeros(examples).at[places.examples].add(values, mode="drop")


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


def clipped_vectors(
    grads: jax.Array, places: DevicePlaces, slots: int, factors: jax.Array
) -> jax.Array:
    """What each place adds to its row's sum, float64[P, dim].

    Args:
        grads: float32[B, S * dim], gradients of the losses with respect to the group's features.
        places: of the batch.
        slots: S.
        factors: float32[B]; a zero leaves the example out, finite or not.
    """
    by_slot = grads.reshape(len(grads) * slots, -1)
    if places.examples is None:
        scales = jnp.repeat(wide(factors), slots)
    else:
        by_slot = by_slot.at[_slots_of(places, slots)].get(mode="clip")
        scales = wide(factors).at[places.examples].get(mode="fill", fill_value=0.0)
    scales = (scales * wide(places.coefs))[:, None]
    return jnp.where(scales == 0.0, 0.0, scales * wide(by_slot))


def zero_sums(places: DevicePlaces, rows: int, dim: int) -> jax.Array:
    """Sums of nothing, of rows and then partial ones, float64[R + E, dim]; `add_vectors` adds to them.

    Args:
        places: of the batch, whatever chunks it is in.
        rows: R.
        dim: of their vectors.

    Raises:
        ValueError: there are no partial sums, and so many places that they are needed.
    """
    if places.sums is None:
        if places.runs.size > SUMMED_AT_A_TIME:
            raise ValueError(
                f"Expected the partial sums of {places.runs.size:,} places, got none: the rounding of sums "
                "would grow with the places of a row. Make them with partial_sums."
            )
        return jnp.zeros((rows, dim))
    return jnp.zeros((rows + sum(len(carry) for carry in places.sums.carries), dim))


def add_vectors(sums: jax.Array, numbers: jax.Array, vectors: jax.Array) -> jax.Array:
    """The sums with vectors added to those of some numbers; numbers beyond all are left out."""
    return sums.at[numbers].add(vectors, mode="drop")


def carried(sums: jax.Array, places: DevicePlaces, rows: int) -> jax.Array:
    """Sums of rows, partial ones added to them, float64[R, dim].

    Guarantees:
        - Behind a sum are `ROW_ADDITIONS` additions in turn at most, in whatever order the device adds.
    """
    first = rows
    for carry in () if places.sums is None else places.sums.carries:
        part = lax.slice_in_dim(sums, first, first + len(carry))
        sums = add_vectors(sums, carry, part)
        first += len(carry)
    return sums[:rows]
