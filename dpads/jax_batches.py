"""Batches as devices take them: arrays of few sizes, padded; what is padded adds nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from numpy.typing import NDArray

from dpads.batch import SparseBatch, Targets
from dpads.drawing import Piece
from dpads.kernels.jax_ops import DevicePlaces
from dpads.kernels.partial_sums import partial_sums
from dpads.models.base import Model
from dpads.models.jax_losses import JaxTargets
from dpads.models.layout import Layout, TableGroup
from dpads.models.output import Output
from dpads.row_sums import Reads, batch_reads

SMALLEST = 16
MOST_AT_A_TIME = 1024  # examples that pass through a tower at a time
T = TypeVar("T", bound=np.generic)
Positions = Mapping[str, NDArray[np.int32]]


class DeviceBatch(NamedTuple):
    """The examples that a device takes of one batch, or of a piece of one.

    Attributes:
        places: {group: where the examples read it}.
        dense: float32[B, K].
        targets: of the B examples; padding has weight 0.
        units: int32[B], the unit of each example, `num_units` for padding; None where example i is unit i.
        longest: int32, at least the examples of any unit.
        groups: int32[g + 1], bounds of groups of examples, padding in none; None where units have several.
    """

    places: Mapping[str, DevicePlaces]
    dense: Any
    targets: JaxTargets
    units: Any
    longest: Any
    groups: Any


@dataclass(frozen=True)
class Share:
    """What one device takes of a piece; secret.

    Attributes:
        batch: the examples.
        reads: where they read the tables.
        groups: int64[g + 1], bounds of groups of examples; None where units have several.
    """

    batch: SparseBatch
    reads: Mapping[str, Reads]
    groups: NDArray[np.int64] | None


def shares_of(
    piece: Piece, model: Model, selected: Mapping[str, NDArray[np.bool_]], count: int
) -> list[Share]:
    """A piece cut for so many devices.

    Groups go to devices by their numbers, which are public: a unit more or less changes no other's group.

    Args:
        piece: of a batch.
        model: whose tables it reads.
        selected: as in `batch_reads`.
        count: of devices.
    """
    if count == 1:
        return [Share(piece.batch, piece.reads, piece.groups)]
    bounds = piece.groups if piece.groups is not None else piece.batch.unit_offsets
    assert bounds is not None  # units of one example each are in groups
    cuts = [(len(bounds) - 1) * i // count for i in range(count + 1)]
    shares = []
    for begin, end in pairwise(cuts):
        batch = piece.batch.part(int(bounds[begin]), int(bounds[end]))
        groups = None if piece.groups is None else bounds[begin : end + 1] - bounds[begin]
        shares.append(Share(batch, batch_reads(model, batch, selected), groups))
    return shares


def bucket(count: int) -> int:
    """The smallest size that fits, of eight from a power of two to the next."""
    step = 1 << max(0, (max(count, SMALLEST) - 1).bit_length() - 4)
    return -(-max(count, SMALLEST) // step) * step


class Sizes:
    """Sizes that arrays are padded to: they grow and never shrink, so that few programs are compiled."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}

    def of(self, name: str, count: int) -> int:
        """The size for so many; where it has to grow, what chance may add later is kept free."""
        if count > self._sizes.get(name, 0):
            self._sizes[name] = bucket(count + count // 16 + 4 * math.isqrt(count))
        return max(self._sizes.get(name, 0), SMALLEST)

    def most(self, name: str, count: int) -> int:
        """The largest count so far: of what chance hardly changes."""
        self._sizes[name] = max(self._sizes.get(name, 0), count)
        return self._sizes[name]


def examples_at_a_time(expected: int) -> int:
    """Examples that pass through a tower at a time: a public number.

    Products of matrices of one shape give an example the same bits whatever stands beside it. There is room
    for what chance adds to the number that is expected, and little more.
    """
    most = expected + 4 * math.isqrt(expected)
    chunks = -(-most // MOST_AT_A_TIME)
    return max(SMALLEST, -(-most // (8 * max(chunks, 1))) * 8)


@dataclass(frozen=True)
class Pairs:
    """The (unit, row) pairs that have several places.

    Attributes:
        places: int32[q], numbers of places, pair by pair.
        numbers: int32[q], the pair of each.
        units: int32[p], the unit of each pair.
    """

    places: NDArray[np.int32]
    numbers: NDArray[np.int32]
    units: NDArray[np.int32]


def repeated_pairs(reads: Reads, units: NDArray[np.int32]) -> Pairs:
    """Which places of a batch are a unit's second or first of several at one row.

    Args:
        reads: of one group.
        units: int32[n], the unit of each place, rising within the places of a row.
    """
    order, starts = reads.runs.order, reads.runs.starts
    sorted_units = units[order]
    new = np.ones(len(order) + 1, bool)
    new[1:-1] = sorted_units[1:] != sorted_units[:-1]
    new[starts] = True
    firsts = np.flatnonzero(new)
    lengths = np.diff(firsts)
    several = lengths > 1
    places = order[np.repeat(several, lengths)]
    numbers = np.repeat(np.arange(int(several.sum()), dtype=np.int32), lengths[several])
    return Pairs(places, numbers, sorted_units[firsts[:-1][several]])


class Loading:
    """One device's share on its way to its arrays.

    Args:
        share: of a piece.
        layout: of the model.
    """

    def __init__(self, share: Share, layout: Layout) -> None:
        self._share, self._layout = share, layout
        offsets = share.batch.unit_offsets
        self._of_unit: NDArray[np.int32] | None = None
        self._longest = 1
        if offsets is not None:
            lengths = np.diff(offsets)
            self._of_unit = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
            self._longest = int(lengths.max(initial=1))
        self._pairs = {
            group.name: repeated_pairs(share.reads[group.name], self._units_of(group))
            for group in layout.groups
            if self._of_unit is not None or group.rows_may_repeat
        }

    def needs(self, at_a_time: int) -> dict[str, int]:
        """How many of everything there are, by name: the same names on every device."""
        share = self._share
        needs = {
            "chunks": max(1, -(-share.batch.num_examples // at_a_time)),
            "units": share.batch.num_units,
            "longest": self._longest,
            "groups": 0 if share.groups is None else len(share.groups) - 1,
        }
        for group in self._layout.groups:
            name, pairs = group.name, self._pairs.get(group.name)
            needs[f"places of {name}"] = len(share.reads[name].places.rows)
            needs[f"repeated places of {name}"] = 0 if pairs is None else len(pairs.places)
        return needs

    def arrays(
        self,
        output: Output,
        at_a_time: int,
        needs: Mapping[str, int],
        positions: Positions,
        rows: Mapping[str, int],
        sizes: Sizes,
    ) -> tuple[DeviceBatch, int]:
        """Padded arrays of one device.

        Args:
            output: of the model.
            at_a_time: the number of examples is padded to a multiple.
            needs: the most that any device needs.
            positions: {group: int32[k], where the rows of the share's runs stand among those that are read}.
            rows: {group: how many rows are read, padding included}.
            sizes: of the run.

        Returns:
            The batch, and its number of units, padding included.
        """
        share = self._share
        batch = share.batch
        size = at_a_time * sizes.most("chunks", needs["chunks"])
        units = size if self._of_unit is None else sizes.of("units", needs["units"])
        groups = None
        if share.groups is not None:
            count = sizes.most("groups", needs["groups"])
            groups = padded(share.groups.astype(np.int32), count + 1, int(share.groups[-1]))
        return (
            DeviceBatch(
                places={
                    group.name: self._places(
                        group, size, units, needs, positions[group.name], rows[group.name], sizes
                    )
                    for group in self._layout.groups
                },
                dense=padded(self._layout.numbers(batch), size, 0.0),
                targets=_targets(output.targets(batch), size),
                units=None if self._of_unit is None else padded(self._of_unit, size, units),
                longest=np.int32(needs["longest"]),
                groups=groups,
            ),
            units,
        )

    def _units_of(self, group: TableGroup) -> NDArray[np.int32]:
        """The unit of every place of a group."""
        examples = self._share.reads[group.name].places.examples
        return examples if self._of_unit is None else self._of_unit[examples]

    def _places(
        self,
        group: TableGroup,
        size: int,
        units: int,
        needs: Mapping[str, int],
        positions: NDArray[np.int32],
        rows: int,
        sizes: Sizes,
    ) -> DevicePlaces:
        """Where the share reads one group, padded."""
        places, runs = self._share.reads[group.name].places, self._share.reads[group.name].runs
        slots = (places.columns - min(slot.column for slot in group.slots)) // group.dim
        of_place = np.empty(len(places.rows), np.int32)
        of_place[runs.order] = np.repeat(positions, np.diff(runs.starts))
        regular = not any(slot.field.is_bag for slot in group.slots)
        if regular:  # a place for every slot, whether the example has it or not
            length = size * len(group.slots)
            at = places.examples.astype(np.int32) * len(group.slots) + slots
        else:
            length = sizes.of(f"places of {group.name}", needs[f"places of {group.name}"])
            at = np.arange(len(places.rows), dtype=np.int32)

        def spread(values: NDArray[T], nothing: float) -> Any:
            found = np.full(length, nothing, values.dtype)
            found[at] = values
            return found

        pairs = self._pairs.get(group.name)
        numbers: Any = None
        repeated: Any = None
        pair_units: Any = None
        if pairs is not None:
            name = f"repeated places of {group.name}"
            count = sizes.of(name, needs[name])
            repeated = padded(at[pairs.places].astype(np.int32), count, length)
            numbers = padded(pairs.numbers, count, count)
            pair_units = padded(pairs.units, count, units)
        place_runs = spread(of_place, rows)
        return DevicePlaces(
            slots=None if regular else spread(slots.astype(np.int32), 0),
            coefs=spread(places.coefs, 0.0),
            examples=None if regular else spread(places.examples, size),
            runs=place_runs,
            pairs=numbers,
            pair_units=pair_units,
            repeated=repeated,
            sums=partial_sums(place_runs, rows),
        )


def _targets(targets: Targets, size: int) -> JaxTargets:
    """Padded targets; padding has weight 0."""
    weights = targets.weights
    if weights is None:
        weights = np.ones(len(targets.labels), np.float32)
    exposure = None if targets.exposure is None else padded(targets.exposure, size, 1.0)
    labels = padded(targets.labels, size, 0.0)
    return JaxTargets._make(
        (labels, padded(weights, size, 0.0), exposure, np.float32(targets.offset))
    )


def most_needed(needs: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The most of everything that any of some devices needs."""
    return {name: max(of_one[name] for of_one in needs) for name in needs[0]}


def side_by_side(batches: Sequence[DeviceBatch]) -> DeviceBatch:
    """The batches of several devices of one process, one after another along the first axis."""
    if len(batches) == 1:
        return batches[0]
    together: DeviceBatch = jax.tree.map(
        lambda *parts: parts[0] if np.ndim(parts[0]) == 0 else np.concatenate(parts), *batches
    )
    return together


def padded(values: NDArray[T], size: int, value: float) -> NDArray[T]:
    """The values, then as many of one value as make up the size, along the first axis."""
    found = np.full((size, *values.shape[1:]), value, values.dtype)
    found[: len(values)] = values
    return found
