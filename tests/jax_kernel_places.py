"""Places as a device takes them, written from their description alone, and sums over a batch in one chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpads.kernels import jax_linear, jax_ops
from dpads.kernels.jax_ops import DevicePlaces
from dpads.kernels.lookup import Places
from dpads.kernels.partial_sums import partial_sums


@dataclass(frozen=True)
class Sizes:
    """What a batch is padded to."""

    examples: int
    places: int
    rows: int
    units: int


# Of brute_force's batches: the largest have no padding in the small sizes.
SMALL, LARGE = Sizes(6, 78, 21, 4), Sizes(16, 128, 32, 12)


def fill(values: Any, size: int, value: float, dtype: Any) -> np.ndarray:
    """The values, then the same value again and again."""
    found = np.full((size, *np.shape(values)[1:]), value, dtype)
    found[: len(values)] = values
    return found


def device_places(
    places: Places,
    dim: int,
    slots: int,
    units: np.ndarray | None,
    sizes: Sizes,
    *,
    regular: bool = False,
    pairs: str = "all",
) -> DevicePlaces:
    """One place after the other.

    Args:
        places: of a batch.
        dim: width of the rows.
        slots: of the group.
        units: the unit of each example; None where example i is unit i.
        sizes: what to pad to.
        regular: a place for every slot of every example.
        pairs: "all" places, the "repeated" ones, or "none".
    """
    count = len(places.rows)
    run_of = {row: run for run, row in enumerate(sorted(set(places.rows.tolist())))}
    length = sizes.examples * slots if regular else sizes.places
    of_unit = {i: i if units is None else int(units[i]) for i in range(len(places.offsets) - 1)}
    of_place = [
        (of_unit[int(i)], int(row)) for i, row in zip(places.examples, places.rows, strict=True)
    ]
    columns: dict[str, Any] = {
        "slots": np.zeros(length, np.int32),
        "coefs": np.zeros(length, np.float32),
        "examples": np.full(length, sizes.examples, np.int32),
        "runs": np.full(length, sizes.rows, np.int32),
    }
    device_pairs = np.full(length, length, np.int32)
    pair_units = np.full(length, sizes.examples if units is None else sizes.units, np.int32)
    repeated = np.full(length, length, np.int32)
    known: dict[tuple[int, int], int] = {}
    taken = 0
    for k in range(count):
        i, row, slot = int(places.examples[k]), int(places.rows[k]), int(places.columns[k]) // dim
        at = i * slots + slot if regular else k
        values = (slot, places.coefs[k], i, run_of[row])
        for name, value in zip(columns, values, strict=True):
            columns[name][at] = value
        if pairs == "repeated" and of_place.count(of_place[k]) == 1:
            continue
        pair = known.setdefault(of_place[k], len(known))
        pair_units[pair] = of_place[k][0]
        device_pairs[taken if pairs == "repeated" else at] = pair
        repeated[taken] = at
        taken += 1
    if regular:
        columns["slots"] = columns["examples"] = None
    if pairs == "none":
        assert len(known) == count
    return DevicePlaces(
        **columns,
        pairs=None if pairs == "none" else device_pairs,
        pair_units=None if pairs == "none" else pair_units,
        repeated=repeated if pairs == "repeated" else None,
        sums=partial_sums(columns["runs"], sizes.rows),
    )


def row_sums(grads: Any, places: Any, slots: int, factors: Any, rows: int) -> Any:
    """Sums of clipped gradients of the rows that are read, float64[rows, dim]."""
    vectors = jax_ops.clipped_vectors(grads, places, slots, factors)
    found = jax_ops.zero_sums(places, rows, vectors.shape[1])
    return jax_ops.carried(jax_ops.add_vectors(found, places.numbers, vectors), places, rows)


def linear_sums(
    inputs: Any, outs: Any, factors: Any, positions: int = 1, groups: Any = None
) -> tuple[Any, Any]:
    """Sums of clipped gradients of one layer."""
    nothing = np.zeros((outs.shape[1], inputs.shape[1])), np.zeros(outs.shape[1])
    return jax_linear.linear_sums(nothing, inputs, outs, factors, positions, groups)
