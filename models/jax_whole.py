"""Clipped sums of gradients that stand in memory whole, a chunk of examples at a time.

    chunk | gradients of its examples | merged by unit | squares, with those of all other parameters
          | factors | sums, of units that are all there; the last unit waits for the next chunk

What is summed is the very vector that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
from jax import lax
from jax import numpy as jnp

WHOLE_BYTES = 1 << 26  # of a chunk's gradients and what is made of them
LARGEST_CHUNK = 256  # examples
BYTES_PER_NUMBER = 20  # of a chunk: float32, float64, and the float64 sum by unit
FactorsOf: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


class WholeSums(NamedTuple):
    """What became of the gradients that are no layer's.

    Attributes:
        squares: float64[U], squared norms over all parameters.
        parts: float64[U], sums of the norms of parts that may cancel.
        sums: {parameter: float64}, sums of clipped gradients.
    """

    squares: jax.Array
    parts: jax.Array
    sums: dict[str, jax.Array]


class Rows(NamedTuple):
    """Examples: float32[n, width], then float32[n] each, or None, as in `JaxTargets`."""

    features: jax.Array
    labels: jax.Array
    weights: jax.Array | None
    exposure: jax.Array | None


Gradients = Callable[[Rows], dict[str, jax.Array]]


class _Segments(NamedTuple):
    """Sums of gradients over stretches of examples that each belong to one unit.

    Attributes:
        units: int32[k]; negative, or U and more, where there is none.
        merged: {parameter: float64[k, *shape]}.
        spread: float64[k], sums of the examples' norms.
        terms: float64[k], their number.
    """

    units: jax.Array
    merged: dict[str, jax.Array]
    spread: jax.Array
    terms: jax.Array


class _Open(NamedTuple):
    """What is summed, and the unit whose examples may go on in the next chunk, one segment."""

    closed: WholeSums
    segment: _Segments


def chunk_of(size: int) -> int:
    """Examples in a chunk, a power of two, whose gradients by so many numbers fit."""
    fits = max(min(WHOLE_BYTES // (BYTES_PER_NUMBER * max(size, 1)), LARGEST_CHUNK), 1)
    return 1 << (fits.bit_length() - 1)


def clip_chunks(
    gradients: Gradients,
    rows: Rows,
    units: jax.Array | None,
    others: WholeSums,
    chunk: int,
    factors_of: FactorsOf,
) -> WholeSums:
    """Clips and sums.

    Args:
        gradients: of a chunk, {parameter: float32[chunk, *shape]}.
        rows: all B examples.
        units: int32[B], rising, the unit of each example; U or more for padding. None where example i is
            unit i.
        others: squares and parts over all other parameters, and the sums of other examples.
        chunk: examples at a time.
        factors_of: (squares float64[k], parts float64[k]) -> clip factors float32[k].

    Returns:
        Squares and parts over all parameters, and the sums with those of the examples.
    """
    cut = partial(_cut, count=len(rows.features), chunk=chunk)
    chunks: Rows = jax.tree.map(cut, rows)
    if units is None:
        there = cut(jnp.ones(len(rows.features), bool))

        def add(
            sums: dict[str, jax.Array], some: tuple[Rows, jax.Array, jax.Array, jax.Array]
        ) -> tuple[dict[str, jax.Array], jax.Array]:
            found = _wide(gradients(some[0]))
            squares = some[1] + _squares(found)
            factors = jnp.where(some[3], factors_of(squares, some[2]), 0.0)
            return _add(sums, found, factors), squares

        of_others = (cut(others.squares), cut(others.parts))
        sums, squares = lax.scan(add, others.sums, (chunks, *of_others, there))
        return WholeSums(squares.reshape(-1)[: len(others.squares)], others.parts, sums)

    def follow(state: _Open, some: tuple[Rows, jax.Array]) -> tuple[_Open, None]:
        return _follow(state, gradients(some[0]), some[1], factors_of), None

    start = _Open(others, _nothing(others.sums))
    end, _ = lax.scan(follow, start, (chunks, cut(units, padding=len(others.squares))))
    return _close(end.closed, end.segment, factors_of)


def _cut(values: jax.Array, count: int, chunk: int, padding: float = 0) -> jax.Array:
    """Values in chunks, padded at their end: [chunks, chunk, ...]."""
    chunks = -(-count // chunk)
    more = [(0, chunks * chunk - count)] + [(0, 0)] * (values.ndim - 1)
    padded = jnp.pad(values, more, constant_values=padding)
    return padded.reshape(chunks, chunk, *values.shape[1:])


def _wide(values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The values in float64."""
    return {name: value.astype(jnp.float64) for name, value in values.items()}


def _squares(values: Mapping[str, jax.Array]) -> jax.Array:
    """Squared norms over all parameters, float64[k], of float64[k, *shape] each."""
    return sum(
        (jnp.sum(jnp.square(value).reshape(len(value), -1), axis=1) for value in values.values()),
        jnp.zeros((), jnp.float64),
    )


def _add(
    sums: Mapping[str, jax.Array], found: Mapping[str, jax.Array], factors: jax.Array
) -> dict[str, jax.Array]:
    """The sums with more vectors; one with factor zero is left out, finite or not."""
    added = {}
    for name, value in found.items():
        scales = factors.astype(jnp.float64).reshape(-1, *[1] * (value.ndim - 1))
        added[name] = sums[name] + jnp.where(scales == 0.0, 0.0, scales * value).sum(axis=0)
    return added


def _nothing(sums: Mapping[str, jax.Array]) -> _Segments:
    """A segment of no unit, of gradients shaped as their sums."""
    nothing = jnp.zeros(1, jnp.float64)
    merged = {name: jnp.zeros_like(value)[None] for name, value in sums.items()}
    return _Segments(jnp.full(1, -1, jnp.int32), merged, nothing, nothing)


def _follow(
    state: _Open, found: Mapping[str, jax.Array], units: jax.Array, factors_of: FactorsOf
) -> _Open:
    """Sums the gradients of a chunk by unit; closes all units but the chunk's last.

    Args:
        state: before the chunk.
        found: {parameter: float32[c, *shape]}, the examples' gradients.
        units: int32[c], rising.
        factors_of: as in `clip_whole`.
    """
    before, size = state.segment, len(units)
    starts = units != jnp.concatenate([before.units, units[:-1]])
    at = jnp.cumsum(starts, dtype=jnp.int32)
    wide = _wide(found)
    # sums of the examples of each unit; what is not finite stays in its own
    by_unit = partial(
        jax.ops.segment_sum, segment_ids=at, num_segments=size + 1, indices_are_sorted=True
    )
    merged = {
        name: by_unit(value).at[0].add(before.merged[name][0]) for name, value in wide.items()
    }
    segments = _Segments(
        jnp.full(size + 1, -1, jnp.int32).at[at].set(units).at[0].set(before.units[0]),
        merged,
        by_unit(jnp.sqrt(_squares(wide))).at[0].add(before.spread[0]),
        by_unit(jnp.ones(size, jnp.float64)).at[0].add(before.terms[0]),
    )
    last = at[-1]
    done = jnp.arange(size + 1) < last
    closed = _close(
        state.closed, segments._replace(units=jnp.where(done, segments.units, -1)), factors_of
    )
    kept = jax.tree.map(lambda v: lax.dynamic_slice_in_dim(v, last, 1), segments)
    return _Open(closed, kept)


def _close(closed: WholeSums, segments: _Segments, factors_of: FactorsOf) -> WholeSums:
    """Clips and adds units whose examples are all there."""
    number = len(closed.squares)
    known = (segments.units >= 0) & (segments.units < number)
    several = segments.terms > 1.0
    # a sum of n terms errs by at most n * 2^-53 of their absolute sum, and so do the vectors' norms
    rounding = jnp.where(several, segments.terms * 2.0**-52 * segments.spread, 0.0)
    own = jnp.square(jnp.sqrt(_squares(segments.merged)) + rounding)
    at = jnp.where(known, segments.units, 0)
    squares = closed.squares[at] + own
    parts = closed.parts[at] + jnp.where(several, segments.spread, 0.0)
    factors = jnp.where(known, factors_of(squares, parts), 0.0)
    where = jnp.where(known, segments.units, number)
    return WholeSums(
        closed.squares.at[where].set(squares, mode="drop"),
        closed.parts.at[where].set(parts, mode="drop"),
        _add(closed.sums, segments.merged, factors),
    )
