"""Linear layers in JAX: ghost norms and clipped sums as in `clip.py`, within `jax.enable_x64(True)`."""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dpads.kernels.clip import LARGEST_GROUP, MEAN_GROUP
from dpads.kernels.jax_wide import by_unit, wide

SMALLEST_NORMAL = np.float32(2.0**-126)
SUMMED_AT_A_TIME = 256  # vectors, on a CPU
SUMMED_AT_ONCE = 2048  # elsewhere, where small products leave a device idle
GROUPS_AT_A_TIME = 4

LayerSums: TypeAlias = tuple[jax.Array, jax.Array]


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
    spread = by_unit(jnp.sqrt(own), units, num_units)
    terms = by_unit(jnp.ones(len(inputs)), units, num_units)
    total = by_unit(crossed, units, num_units)
    error = spread * spread * (widths + terms * terms + 4.0) * 2.0**-52
    return jnp.maximum(total, 0.0) + error, jnp.where(terms > 1.0, spread, 0.0)


def linear_sums(
    sums: LayerSums,
    inputs: jax.Array,
    output_grads: jax.Array,
    factors: jax.Array,
    positions: int = 1,
    groups: jax.Array | None = None,
) -> LayerSums:
    """Sums of clipped gradients of one linear layer, with those of more examples.

    Args:
        sums: weight float64[out, in] and bias float64[out].
        inputs: float32[B * positions, in], activations.
        output_grads: float32[B * positions, out].
        factors: float32[B]; a zero leaves the example out, finite or not.
        positions: vectors that each example passes through the layer.
        groups: int32[g + 1], bounds of groups of examples; padding belongs to none. A unit's group must not
            depend on other units: sums within a group are float32, of groups float64. None sums in float64
            throughout, as do several positions, whose parts may cancel.
    """
    if positions > 1:
        factors, groups = jnp.repeat(factors, positions), None
    few = partial(_in_pieces, size=SUMMED_AT_A_TIME)
    many = partial(_in_pieces, size=SUMMED_AT_ONCE)
    found: LayerSums
    if groups is None:
        found = lax.platform_dependent(sums, inputs, output_grads, factors, cpu=few, default=many)
    else:  # in float64 throughout nothing is lost, and a GPU has no use for products of a hundred examples
        found = lax.platform_dependent(
            sums,
            inputs,
            output_grads,
            factors,
            groups,
            cpu=_in_groups,
            default=lambda *of_all: many(*of_all[:4]),
        )
    return found


def additions(examples: int, at_a_time: int, positions: int = 1) -> float:
    """Additions in turn behind any number of `linear_sums`, at most, in groups or not, on any device.

    Args:
        examples: of a batch.
        at_a_time: of them in a call, at most.
        positions: vectors of each.
    """
    of_groups = LARGEST_GROUP + examples / LARGEST_GROUP + examples / MEAN_GROUP
    vectors, calls = at_a_time * positions, most_chunks(examples, at_a_time)
    of_pieces = (
        min(size, vectors) + calls * -(-vectors // size)
        for size in (SUMMED_AT_A_TIME, SUMMED_AT_ONCE)
    )
    return max(of_groups, *of_pieces) + 1.0


def most_chunks(examples: int, at_a_time: int) -> float:
    """Chunks of whole units or groups, at most: two that follow each other do not fit into one."""
    return 2.0 * examples / at_a_time + 1.0


def _in_pieces(
    sums: LayerSums, inputs: jax.Array, output_grads: jax.Array, factors: jax.Array, size: int
) -> LayerSums:
    """`linear_sums` in float64, so many vectors at a time: more padding at the end changes no order."""
    count = -(-len(factors) // size)

    def pieces(values: jax.Array) -> jax.Array:
        short = count * size - len(values)
        padded = jnp.pad(values, [(0, short)] + [(0, 0)] * (values.ndim - 1))
        return padded.reshape(count, size, *values.shape[1:])

    def add(
        sums: LayerSums, piece: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[LayerSums, None]:
        return _added(sums, *piece), None

    found: LayerSums = lax.scan(add, sums, (pieces(inputs), pieces(output_grads), pieces(factors)))[
        0
    ]
    return found


def _in_groups(
    sums: LayerSums,
    inputs: jax.Array,
    output_grads: jax.Array,
    factors: jax.Array,
    groups: jax.Array,
) -> LayerSums:
    """`linear_sums`, group by group; some at a time, so that the float64 sums pass the cache less often."""
    size = LARGEST_GROUP
    # every slice begins where its group does: a product may round a row by its place
    inputs, output_grads = (jnp.pad(v, [(0, size), (0, 0)]) for v in (inputs, output_grads))
    factors = jnp.pad(factors, (0, size))
    more = -(len(groups) - 1) % GROUPS_AT_A_TIME
    bounds = jnp.pad(groups, (0, more), mode="edge")
    begins, ends = bounds[:-1], bounds[1:]
    large = ends - begins > size

    def piece(begin: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Inputs, gradients and factors of examples begin:end; after them others, whose factors are 0."""
        right, left, scale = (
            lax.dynamic_slice_in_dim(values, begin, size)
            for values in (inputs, output_grads, factors)
        )
        own = begin + jnp.arange(size, dtype=jnp.int32) < end
        return right, left, jnp.where(own, scale, np.float32(0.0))

    def product(group: jax.Array) -> LayerSums:
        """Of a group that is not large, float32[out, in], and what its bias adds, float64[out]."""
        begin, end = begins[group], ends[group]
        right, left, scale = piece(begin, jnp.where(large[group], begin, end))
        out = scale[:, None] == 0.0
        right = jnp.where(out, np.float32(0.0), right)
        left = jnp.where(out, np.float32(0.0), scale[:, None] * left)
        # products below the normal float32 numbers have few digits and may round up: they become zero
        left = jnp.where(jnp.abs(left) >= SMALLEST_NORMAL, left, np.float32(0.0))
        weight = jnp.matmul(left.T, right, precision=lax.Precision.HIGHEST)
        return weight, jnp.sum(wide(left), axis=0)

    def add_some(number: jax.Array, sums: LayerSums) -> LayerSums:
        weight, bias = sums
        first = number * GROUPS_AT_A_TIME
        for found in [product(first + i) for i in range(GROUPS_AT_A_TIME)]:
            weight, bias = weight + wide(found[0]), bias + found[1]
        return weight, bias

    def add_large(state: tuple[jax.Array, LayerSums]) -> tuple[jax.Array, LayerSums]:
        left_over, sums = state
        group = jnp.argmax(left_over)
        begin, end = begins[group], ends[group]

        def add(index: jax.Array, sums: LayerSums) -> LayerSums:
            first = begin + index * size
            return _added(sums, *piece(first, jnp.minimum(first + size, end)))

        pieces = (end - begin + size - 1) // size
        return left_over.at[group].set(False), lax.fori_loop(0, pieces, add, sums)

    last = jnp.max(jnp.where(ends > begins, jnp.arange(1, len(ends) + 1, dtype=jnp.int32), 0))
    turns = (last + GROUPS_AT_A_TIME - 1) // GROUPS_AT_A_TIME
    sums = lax.fori_loop(0, turns, add_some, sums)
    found: LayerSums = lax.while_loop(lambda state: jnp.any(state[0]), add_large, (large, sums))[1]
    return found


def _added(
    sums: LayerSums, inputs: jax.Array, output_grads: jax.Array, factors: jax.Array
) -> LayerSums:
    """The sums with those of some examples, in float64."""
    out = factors[:, None] == 0.0
    left = jnp.where(out, 0.0, wide(factors)[:, None] * wide(output_grads))
    right = jnp.where(out, 0.0, wide(inputs))
    product = jnp.matmul(left.T, right, precision=lax.Precision.HIGHEST)
    return sums[0] + product, sums[1] + jnp.sum(left, axis=0)
