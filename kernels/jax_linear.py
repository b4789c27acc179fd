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
    inputs: jax.Array,
    output_grads: jax.Array,
    factors: jax.Array,
    positions: int = 1,
    groups: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Clipped gradients of one linear layer, summed: weight float64[out, in], bias float64[out].

    Args:
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
    few = partial(_sums_in_pieces, size=SUMMED_AT_A_TIME)
    many = partial(_sums_in_pieces, size=SUMMED_AT_ONCE)
    found: LayerSums
    if groups is None:
        found = lax.platform_dependent(inputs, output_grads, factors, cpu=few, default=many)
    else:  # in float64 throughout nothing is lost, and a GPU has no use for products of a hundred examples
        found = lax.platform_dependent(
            inputs,
            output_grads,
            factors,
            groups,
            cpu=_grouped_sums,
            default=lambda *of_all: many(*of_all[:3]),
        )
    return found


def _sums_in_pieces(
    inputs: jax.Array, output_grads: jax.Array, factors: jax.Array, size: int
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

    sums: LayerSums = lax.scan(
        add,
        _nothing(inputs, output_grads),
        (pieces(inputs), pieces(output_grads), pieces(factors)),
    )[0]
    return sums


def additions(examples: int, positions: int = 1) -> float:
    """Additions in turn behind any number of `linear_sums`, at most, in groups or not, on any device."""
    of_groups = LARGEST_GROUP + examples / LARGEST_GROUP + examples / MEAN_GROUP
    sizes = (SUMMED_AT_A_TIME, SUMMED_AT_ONCE)
    of_pieces = (size + examples * positions / size for size in sizes)
    return max(of_groups, *of_pieces) + 1.0


def _nothing(inputs: jax.Array, output_grads: jax.Array) -> LayerSums:
    """Sums of no examples."""
    width_in, width_out = inputs.shape[1], output_grads.shape[1]
    return jnp.zeros((width_out, width_in)), jnp.zeros(width_out)


def _added(
    sums: LayerSums, inputs: jax.Array, output_grads: jax.Array, factors: jax.Array
) -> LayerSums:
    """The sums with those of some examples, in float64."""
    out = factors[:, None] == 0.0
    left = jnp.where(out, 0.0, wide(factors)[:, None] * wide(output_grads))
    right = jnp.where(out, 0.0, wide(inputs))
    product = jnp.matmul(left.T, right, precision=lax.Precision.HIGHEST)
    return sums[0] + product, sums[1] + jnp.sum(left, axis=0)


def _grouped_sums(
    inputs: jax.Array, output_grads: jax.Array, factors: jax.Array, groups: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`linear_sums`, group by group."""
    size, begins, ends = LARGEST_GROUP, groups[:-1], groups[1:]
    large = ends - begins > size

    def piece(begin: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Examples begin:end, as many as fit; after them others, whose factors are 0."""
        rows = begin + jnp.arange(size, dtype=jnp.int32)
        right, left, scale = (
            values.at[rows].get(mode="fill", fill_value=0.0, indices_are_sorted=True)
            for values in (inputs, output_grads, factors)
        )
        return right, left, jnp.where(rows < end, scale, np.float32(0.0))

    def add_small(
        sums: LayerSums, bounds: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[LayerSums, None]:
        begin, end, is_large = bounds
        right, left, scale = piece(begin, jnp.where(is_large, begin, end))
        out = scale[:, None] == 0.0
        right = jnp.where(out, np.float32(0.0), right)
        left = jnp.where(out, np.float32(0.0), scale[:, None] * left)
        # products below the normal float32 numbers have few digits and may round up: they become zero
        left = jnp.where(jnp.abs(left) >= SMALLEST_NORMAL, left, np.float32(0.0))
        product = jnp.matmul(left.T, right, precision=lax.Precision.HIGHEST)
        return (sums[0] + wide(product), sums[1] + jnp.sum(wide(left), axis=0)), None

    def add_large(state: tuple[jax.Array, LayerSums]) -> tuple[jax.Array, LayerSums]:
        left_over, sums = state
        group = jnp.argmax(left_over)
        begin, end = begins[group], ends[group]

        def add(index: jax.Array, sums: LayerSums) -> LayerSums:
            return _added(sums, *piece(begin + index * size, end))

        pieces = (end - begin + size - 1) // size
        return left_over.at[group].set(False), lax.fori_loop(0, pieces, add, sums)

    start = _nothing(inputs, output_grads)
    sums, _ = lax.scan(add_small, start, (begins, ends, large))
    found: LayerSums = lax.while_loop(lambda state: jnp.any(state[0]), add_large, (large, sums))[1]
    return found
