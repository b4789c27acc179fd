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

from dpads.batch import SparseBatch
from dpads.drawing import Piece
from dpads.jax_chunks import Chunks, cut_up, longest, standing
from dpads.kernels.jax_ops import DevicePlaces
from dpads.kernels.partial_sums import partial_sums
from dpads.models.base import Model
from dpads.models.jax_losses import JaxTargets
from dpads.models.layout import Layout, TableGroup
from dpads.models.output import Output
from dpads.row_sums import Reads, batch_reads

SMALLEST = 16
T = TypeVar("T", bound=np.generic)
Positions = Mapping[str, NDArray[np.int32]]


class DeviceBatch(NamedTuple):
    """The examples that a device takes of one batch, or of a piece of one: K chunks of B examples.

    A chunk has whole units. What is padded adds nothing; of chunks beyond the first `chunks` all is padding.

    Attributes:
        places: {group: where the examples read it}, arrays of K chunks each but for those of `sums.carries`.
        dense: float32[K, B, numbers].
        targets: of the examples, float32[K, B]; padding has weight 0.
        units: int32[K, B], the unit of each example, counted within its chunk, B for padding; None where
            example i is unit i.
        longest: int32, at least the examples of any unit.
        groups: int32[K, g + 1], bounds of groups of a chunk's examples, padding in none; None where units
            have several.
        chunks: int32[1], how many have examples.
    """

    places: Mapping[str, DevicePlaces]
    dense: Any
    targets: JaxTargets
    units: Any
    longest: Any
    groups: Any
    chunks: Any


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


@dataclass(frozen=True)
class Pairs:
    """The (unit, row) pairs that have several places, chunk by chunk.

    Attributes:
        places: int32[q], numbers of places, pair by pair.
        numbers: int32[q], the pair of each, counted from the first.
        cuts: int64[k + 1], chunk i has the places `places[cuts[i]:cuts[i + 1]]`.
    """

    places: NDArray[np.int32]
    numbers: NDArray[np.int32]
    cuts: NDArray[np.int64]


def repeated_pairs(
    reads: Reads, units: NDArray[np.int32], chunks: NDArray[np.int32], number: int
) -> Pairs:
    """Which places of a batch are a unit's second or first of several at one row.

    Args:
        reads: of one group.
        units: int32[n], the unit of each place, rising within the places of a row.
        chunks: int32[n], the chunk of each place, one for all places of a unit.
        number: of chunks.
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
    pairs = np.repeat(np.arange(int(several.sum()), dtype=np.int32), lengths[several])
    by_chunk = np.argsort(chunks[places], kind="stable")
    places, pairs = places[by_chunk], pairs[by_chunk]
    numbers = np.zeros(len(pairs), np.int32)
    np.cumsum(pairs[1:] != pairs[:-1], out=numbers[1:])
    return Pairs(places, numbers, np.searchsorted(chunks[places], np.arange(number + 1)))


class Loading:
    """One device's share on its way to its arrays.

    Args:
        share: of a piece.
        layout: of the model.
        at_a_time: examples in a chunk; at least those of any unit.
    """

    def __init__(self, share: Share, layout: Layout, at_a_time: int) -> None:
        self._share, self._layout = share, layout
        offsets = share.batch.unit_offsets
        bounds = np.arange(share.batch.num_examples + 1)
        if share.groups is not None:
            bounds = share.groups
        elif offsets is not None:
            bounds = offsets
        self._chunks = Chunks.of_groups(bounds, at_a_time)
        self._positions = self._chunks.positions()
        self._longest = 1
        self._has_users = offsets is not None
        self._units = self._positions % at_a_time  # of the examples, within their chunks
        if offsets is not None:
            lengths = np.diff(offsets)
            self._longest = int(lengths.max(initial=1))
            assert self._longest <= at_a_time, "a unit lies in one chunk"
            numbers = np.repeat(np.arange(np.count_nonzero(lengths)), lengths[lengths > 0])
            firsts = numbers[self._chunks.cuts[:-1]]
            self._units = (numbers - np.repeat(firsts, np.diff(self._chunks.cuts))).astype(np.int32)
        self._pairs = {
            group.name: self._pairs_of(share.reads[group.name])
            for group in layout.groups
            if self._has_users or group.rows_may_repeat
        }

    def needs(self) -> dict[str, int]:
        """How many of everything there are, by name: the same names on every device."""
        share, chunks = self._share, self._chunks
        needs = {
            "chunks": max(1, chunks.number),
            "longest": self._longest,
            "groups": 0 if share.groups is None else chunks.most_groups,
        }
        for group in self._layout.groups:
            name, pairs = group.name, self._pairs.get(group.name)
            places = share.reads[name].places
            needs[f"places of {name}"] = longest(places.offsets[chunks.cuts])
            needs[f"repeated places of {name}"] = 0 if pairs is None else longest(pairs.cuts)
        return needs

    def arrays(
        self,
        output: Output,
        needs: Mapping[str, int],
        positions: Positions,
        rows: Mapping[str, int],
        sizes: Sizes,
    ) -> DeviceBatch:
        """Padded arrays of one device.

        Args:
            output: of the model.
            needs: the most that any device needs.
            positions: {group: int32[k], where the rows of the share's runs stand among those that are read}.
            rows: {group: how many rows are read, padding included}.
            sizes: of the run.
        """
        chunks, batch = self._chunks, self._share.batch
        count = sizes.most("chunks", needs["chunks"])

        def cut(values: NDArray[T], nothing: float) -> NDArray[T]:
            return cut_up(values, chunks.cuts, count, chunks.size, nothing)

        targets = output.targets(batch)
        weights = targets.weights
        if weights is None:
            weights = np.ones(batch.num_examples, np.float32)
        exposure = None if targets.exposure is None else cut(targets.exposure, 1.0)
        groups = None
        if self._share.groups is not None:
            groups = chunks.groups(sizes.of("groups", needs["groups"]), count)
        return DeviceBatch(
            places={
                group.name: self._places(
                    group, count, needs, positions[group.name], rows[group.name], sizes
                )
                for group in self._layout.groups
            },
            dense=cut(self._layout.numbers(batch), 0.0),
            targets=JaxTargets._make(
                (cut(targets.labels, 0.0), cut(weights, 0.0), exposure, np.float32(targets.offset))
            ),
            units=cut(self._units, chunks.size) if self._has_users else None,
            longest=np.int32(needs["longest"]),
            groups=groups,
            chunks=np.array([chunks.number], np.int32),
        )

    def norms(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Norms of the share's units in order, of those of all chunks; 0 for a unit without examples.

        Args:
            found: float64[chunks, at_a_time].
        """
        size, offsets = self._chunks.size, self._share.batch.unit_offsets
        of_example: NDArray[np.float64] = found.reshape(-1)[
            self._positions // size * size + self._units
        ]
        if offsets is None:
            return of_example
        norms = np.zeros(len(offsets) - 1)
        held = np.diff(offsets) > 0
        norms[held] = of_example[offsets[:-1][held]]
        return norms

    def _pairs_of(self, reads: Reads) -> Pairs:
        """The pairs of one group that have several places."""
        chunks = self._positions // self._chunks.size
        examples = reads.places.examples
        whose = chunks * self._chunks.size + self._units
        return repeated_pairs(reads, whose[examples], chunks[examples], self._chunks.number)

    def _places(
        self,
        group: TableGroup,
        count: int,
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
        size = self._chunks.size
        if regular:  # a place for every slot, whether the example has it or not
            length = size * len(group.slots)
            at = self._positions[places.examples] * len(group.slots) + slots
        else:
            length = sizes.of(f"places of {group.name}", needs[f"places of {group.name}"])
            at = standing(places.offsets[self._chunks.cuts], length)

        def spread(values: NDArray[Any], nothing: float) -> Any:
            found = np.full(count * length, nothing, values.dtype)
            found[at] = values
            return found.reshape(count, length)

        of_pairs: tuple[Any, Any, Any] = (None, None, None)
        pairs = self._pairs.get(group.name)
        if pairs is not None:
            name = f"repeated places of {group.name}"
            most = sizes.of(name, needs[name])
            firsts = np.searchsorted(pairs.numbers, np.arange(pairs.numbers.max(initial=-1) + 1))
            cuts = np.searchsorted(firsts, pairs.cuts)
            within = pairs.numbers - np.repeat(cuts[:-1], np.diff(pairs.cuts)).astype(np.int32)
            units = self._units[places.examples[pairs.places[firsts]]]
            of_pairs = (
                cut_up(within, pairs.cuts, count, most, most),
                cut_up(units, cuts, count, most, size),
                cut_up(
                    (at[pairs.places] % length).astype(np.int32), pairs.cuts, count, most, length
                ),
            )
        place_runs = spread(of_place, rows)
        sums = partial_sums(place_runs.reshape(-1), rows)
        if sums is not None:
            sums = sums._replace(places=sums.places.reshape(count, length))
        return DevicePlaces(
            slots=None if regular else spread(slots.astype(np.int32), 0),
            coefs=spread(places.coefs, 0.0),
            examples=None if regular else spread(self._positions[places.examples] % size, size),
            runs=place_runs,
            pairs=of_pairs[0],
            pair_units=of_pairs[1],
            repeated=of_pairs[2],
            sums=sums,
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
