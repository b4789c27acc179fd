"""Moving table rows in JAX: lazy noise, decay, gradients and noise as in `lazy.py` and `moves.py`.

A gradient and its noise reach a row in one rounding. The functions that change a table are meant for donated
buffers under jit, within `jax.enable_x64(True)`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from dpads.kernels.jax_random import NORMALS_PER_ROW, row_normals
from dpads.kernels.jax_wide import wide

ROWS_AT_A_TIME = 1 << 16  # of a whole table


def take_rows(table: jax.Array, touched: jax.Array) -> jax.Array:
    """The rows, float32[R, dim]; of padding any."""
    return table.at[touched].get(mode="clip", indices_are_sorted=True)


def put_rows(table: jax.Array, touched: jax.Array, values: jax.Array) -> jax.Array:
    """The table with rows replaced; padding is dropped."""
    return table.at[touched].set(values, mode="drop", indices_are_sorted=True, unique_indices=True)


def caught_up(
    values: jax.Array,
    touched: jax.Array,
    stddevs: jax.Array,
    decays: jax.Array,
    key: jax.Array,
    step: jax.Array,
) -> jax.Array:
    """Rows with the decay and noise of everything they missed, float32[R, dim].

    Args:
        values: float32[R, dim], the rows as they are.
        touched: uint32[R], their numbers.
        stddevs: float64[R], of the noise missed; 0 for a row that is up to date.
        decays: float64[R], 1 for such a row.
        key: uint32[8], the table's noise key.
        step: uint32[2], the iteration that the rows are brought up to.
    """
    noise = wide(row_normals(key, touched, step, values.shape[1]))
    moved = wide(decays)[:, None] * wide(values) - wide(stddevs)[:, None] * noise
    return moved.astype(jnp.float32)


def moved_rows(
    values: jax.Array,
    touched: jax.Array,
    sums: jax.Array | None,
    factor: jax.Array | float,
    decay: jax.Array | float,
    stddev: jax.Array | float | None,
    key: jax.Array,
    step: jax.Array,
) -> jax.Array:
    """decay * row + factor * sum - stddev * normals, rounded once, float32[R, dim].

    Args:
        values: float32[R, dim], the rows.
        touched: uint32[R], their numbers.
        sums: float64[R, dim]; None for rows that no gradient touched.
        factor: of the sums.
        decay: of the rows.
        stddev: of the noise; None draws none.
        key: uint32[8].
        step: uint32[2], of the addresses (key, step, row).
    """
    moved = decay * wide(values)
    if sums is not None:
        moved = moved + factor * sums
    if stddev is not None:
        moved = moved - stddev * wide(row_normals(key, touched, step, values.shape[1]))
    return moved.astype(jnp.float32)


def move_others(
    table: jax.Array,
    first: jax.Array | int,
    decay: jax.Array | float,
    stddev: jax.Array | float | None,
    key: jax.Array,
    step: jax.Array,
    selected: jax.Array | None = None,
) -> jax.Array:
    """Moves every row as one that no gradient touched, float32[rows, dim].

    Rows that one did are replaced afterwards by `moved_rows` of what they were before: their noise has the
    same address, and this draw of it goes no further.

    Args:
        table: float32[rows, dim].
        first: the number of its first row.
        decay: of the rows.
        stddev: of the noise; None draws none.
        key: uint32[8].
        step: uint32[2].
        selected: bool[rows], the rows that are trained; the others stay as they are. None for all.
    """
    count, dim = table.shape
    size = min(count, ROWS_AT_A_TIME)

    def piece(index: jax.Array, table: jax.Array) -> jax.Array:
        # the last piece overlaps the one before: rows that have been moved are left alone
        begin = jnp.minimum(index * size, count - size)
        rows = begin + jnp.arange(size, dtype=jnp.int64)
        old = lax.dynamic_slice(table, (begin, 0), (size, dim))
        new = moved_rows(
            old, (first + rows).astype(jnp.uint32), None, 0.0, decay, stddev, key, step
        )
        fresh = rows >= index * size
        if selected is not None:
            fresh = fresh & lax.dynamic_slice(selected, (begin,), (size,))
        return lax.dynamic_update_slice(table, jnp.where(fresh[:, None], new, old), (begin, 0))

    moved: jax.Array = lax.fori_loop(jnp.int64(0), jnp.int64(-(-count // size)), piece, table)
    return moved


def noisy_means(
    sums: Mapping[str, jax.Array],
    keys: Mapping[str, jax.Array],
    step: jax.Array,
    stddev: jax.Array | float,
    grid: jax.Array | float,
    divisor: jax.Array | float,
) -> dict[str, jax.Array]:
    """(sums + stddev * normals) rounded to the grid, over the divisor; float32, shaped as the sums.

    Args:
        sums: {parameter: float64, of any shape}.
        keys: {parameter: uint32[8]}; the normals of each are those of `gaussian.normals`.
        step: uint32[2], the iteration of the address.
        stddev: of the noise on the sums, positive.
        grid: a power of two.
        divisor: positive.
    """
    if not sums:
        return {}
    counts = {name: -(-total.size // NORMALS_PER_ROW) for name, total in sums.items()}
    # one stream of rows, whosever they are: many short ones would each be compiled
    rows = jnp.concatenate([jnp.arange(count, dtype=jnp.uint32) for count in counts.values()])
    whose = jnp.concatenate(
        [jnp.full(count, i, jnp.int32) for i, count in enumerate(counts.values())]
    )
    key = jnp.stack([keys[name] for name in counts])
    normals = row_normals(key, rows, step, NORMALS_PER_ROW, whose)
    means, first = {}, 0
    for name, total in sums.items():
        own = normals[first : first + counts[name]].reshape(-1)[: total.size]
        first += counts[name]
        noisy = wide(total) + stddev * wide(own).reshape(total.shape)
        means[name] = (jnp.rint(noisy / grid) * grid / divisor).astype(jnp.float32)
    return means
