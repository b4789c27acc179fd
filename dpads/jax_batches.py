"""Batches as a device takes them: arrays of few sizes, padded; what is padded adds nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax import numpy as jnp
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.kernels.jax_ops import DevicePlaces
from dpads.models.jax_losses import JaxTargets
from dpads.models.layout import Layout, TableGroup
from dpads.models.output import Output
from dpads.row_sums import Reads

SMALLEST = 16
T = TypeVar("T", bound=np.generic)
MOST_AT_A_TIME = 1024  # examples that pass through a tower at a time


class DeviceBatch(NamedTuple):
    """The examples of one batch, or of a piece of one.

    Attributes:
        places: {group: where the examples read it}.
        dense: float32[B, K].
        targets: of the B examples; padding has weight 0.
        units: int32[B], the unit of each example, `num_units` for padding; None where example i is unit i.
        longest: int32, at least the examples of any unit.
    """

    places: Mapping[str, DevicePlaces]
    dense: jax.Array
    targets: JaxTargets
    units: jax.Array | None
    longest: jax.Array


def bucket(count: int) -> int:
    """The smallest size that fits: powers of two and one and a half times them."""
    power = max(SMALLEST, 1 << max(0, math.ceil(math.log2(max(count, 1)))))
    smaller = power // 4 * 3
    return smaller if SMALLEST < power and count <= smaller else power


class Sizes:
    """Sizes that arrays are padded to: they grow and never shrink, so that few programs are compiled."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}

    def of(self, name: str, count: int) -> int:
        """The size for so many; an eighth of it is kept free where it has to grow."""
        if count > self._sizes.get(name, 0):
            self._sizes[name] = bucket(count + count // 8)
        return max(self._sizes.get(name, 0), SMALLEST)

    def chunks(self, count: int) -> int:
        """The number of chunks for so many."""
        self._sizes["chunks"] = max(self._sizes.get("chunks", 0), count)
        return self._sizes["chunks"]


def examples_at_a_time(expected: int) -> int:
    """Examples that pass through a tower at a time: a public number.

    Products of matrices of one shape give an example the same bits whatever stands beside it.
    """
    return min(MOST_AT_A_TIME, bucket(expected))


def device_batch(
    batch: SparseBatch,
    reads: Mapping[str, Reads],
    layout: Layout,
    output: Output,
    at_a_time: int,
    sizes: Sizes,
) -> tuple[DeviceBatch, int]:
    """Pads a batch.

    Args:
        batch: possibly empty.
        reads: from `batch_reads`.
        layout: of the model.
        output: of the model.
        at_a_time: the number of examples is padded to a multiple.
        sizes: of the run.

    Returns:
        The batch and its number of units, padding included.
    """
    chunks = max(1, -(-batch.num_examples // at_a_time))
    size = at_a_time * sizes.chunks(chunks)
    of_unit, units, longest = None, size, 1
    if batch.unit_offsets is not None:
        units, lengths = sizes.of("units", batch.num_units), np.diff(batch.unit_offsets)
        of_unit = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        longest = int(lengths.max(initial=1))
    targets = output.targets(batch)
    weights = targets.weights
    if weights is None:
        weights = np.ones(batch.num_examples, np.float32)
    places = {
        group.name: _places(reads[group.name], group, of_unit, size, units, sizes)
        for group in layout.groups
    }
    device_targets = JaxTargets(
        _array(targets.labels, size, 0.0),
        _array(weights, size, 0.0),
        None if targets.exposure is None else _array(targets.exposure, size, 1.0),
        jnp.asarray(targets.offset, jnp.float32),
    )
    padded_units = None if of_unit is None else _array(of_unit, size, units)
    dense = _array(layout.numbers(batch), size, 0.0)
    most = jnp.asarray(longest, jnp.int32)
    return DeviceBatch(places, dense, device_targets, padded_units, most), units


def _places(
    reads: Reads,
    group: TableGroup,
    of_unit: NDArray[np.int32] | None,
    size: int,
    num_units: int,
    sizes: Sizes,
) -> DevicePlaces:
    """Where a batch reads one group.

    Args:
        reads: the places, and their rows in order.
        group: the tables.
        of_unit: int32[n], the unit of each example; None where example i is unit i.
        size: B, the number of examples, padding included.
        num_units: U, likewise.
        sizes: of the run.
    """
    places, runs = reads.places, reads.runs
    count = len(places.rows)
    touched = sizes.of(f"rows of {group.name}", len(runs.rows))
    slots = (places.columns - min(slot.column for slot in group.slots)) // group.dim
    of_run = np.repeat(np.arange(len(runs.rows), dtype=np.int32), np.diff(runs.starts))
    positions = np.empty(count, np.int32)
    positions[runs.order] = of_run
    regular = not any(slot.field.is_bag for slot in group.slots)
    if regular:  # a place for every slot, whether the example has it or not
        length = size * len(group.slots)
        at = places.examples.astype(np.int64) * len(group.slots) + slots
    else:
        length, at = sizes.of(f"places of {group.name}", count), np.arange(count)

    def spread(values: NDArray[T], nothing: float) -> jax.Array:
        found = np.full(length, nothing, values.dtype)
        found[at] = values
        return jnp.asarray(found)

    pairs = pair_units = None
    if of_unit is not None or group.rows_may_repeat:
        units = places.examples if of_unit is None else of_unit[places.examples]
        units = units[runs.order]
        new = np.ones(count, bool)  # places of a row come in the order of their examples
        new[1:] = (of_run[1:] != of_run[:-1]) | (units[1:] != units[:-1])
        numbers = np.empty(count, np.int32)
        numbers[runs.order] = np.cumsum(new, dtype=np.int32) - 1
        pairs, pair_units = spread(numbers, length), _array(units[new], length, num_units)
    return DevicePlaces(
        rows=spread(places.rows.astype(np.uint32), 0),
        slots=None if regular else spread(slots.astype(np.int32), 0),
        coefs=spread(places.coefs, 0.0),
        examples=None if regular else spread(places.examples, size),
        runs=spread(positions, touched),
        pairs=pairs,
        pair_units=pair_units,
        touched=_array(runs.rows.astype(np.uint32), touched, group.num_rows),
    )


def padded(values: NDArray[T], size: int, value: float) -> NDArray[T]:
    """The values, then as many of one value as make up the size, along the first axis."""
    found = np.full((size, *values.shape[1:]), value, values.dtype)
    found[: len(values)] = values
    return found


def _array(values: NDArray[T], size: int, value: float) -> jax.Array:
    """`padded`, on the device."""
    return jnp.asarray(padded(values, size, value))
