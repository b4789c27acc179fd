"""Batches, drawn and read: what each iteration sees of the private rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.models.base import Model
from dpads.row_sums import Reads, batch_reads
from dpads.sampling import Grouping, Sampler
from dpads.units import Units


@dataclass(frozen=True)
class Piece:
    """Examples that are clipped and summed in one go; secret.

    Attributes:
        batch: the examples.
        reads: where they read the tables.
        groups: int64[g + 1], bounds of groups of examples; None where units have several, which are summed
            in float64.
    """

    batch: SparseBatch
    reads: Mapping[str, Reads]
    groups: NDArray[np.int64] | None


@dataclass(frozen=True)
class Drawn:
    """What was drawn for an iteration; secret.

    Attributes:
        iteration: whose batch it is.
        units: int64[k], group by group.
        groups: int64[g + 1], bounds of the groups; users are a group each.
        whole: all of it, or None where it is to be read in pieces.
    """

    iteration: int
    units: NDArray[np.int64]
    groups: NDArray[np.int64]
    whole: Piece | None


class BatchSource:
    """Draws each iteration's units and reads their examples.

    Args:
        units: of the training rows.
        model: whose tables they read.
        sampler: draws the units.
        grouping: puts units of one example into groups.
        most_examples: read at a time; None reads a batch whole.
        first: the global number of the first of `units`, where other processes have others.
        total: how many units all processes have; None for those of this one.

    Attributes:
        sampler: what draws, and owns the event.
        selected: {group: bool[rows]}, of the groups of which only some rows are trained.
    """

    def __init__(
        self,
        units: Units,
        model: Model,
        sampler: Sampler,
        grouping: Grouping,
        most_examples: int | None,
        first: int = 0,
        total: int | None = None,
    ) -> None:
        self._units, self._model = units, model
        self._first, self._total = first, units.number if total is None else total
        self.sampler, self._grouping = sampler, grouping
        self._most_examples = most_examples
        self.selected: dict[str, NDArray[np.bool_]] = {}
        self._ahead: Drawn | None = None

    def prepare(self, iteration: int) -> None:
        """Draws an iteration's batch ahead of `take`, and reads it unless it goes in pieces."""
        self._ahead = self._draw(iteration)

    def take(self, iteration: int) -> Drawn:
        """An iteration's batch, prepared or drawn now."""
        ahead, self._ahead = self._ahead, None
        return (
            ahead if ahead is not None and ahead.iteration == iteration else self._draw(iteration)
        )

    def pieces(self, drawn: Drawn) -> Iterator[Piece]:
        """The batch in pieces of whole groups, one at least, read one after another."""
        if drawn.whole is not None:
            yield drawn.whole
            return
        groups = drawn.groups
        sizes = np.zeros(len(drawn.units) + 1, np.int64)
        np.cumsum(self._units.sizes(drawn.units), out=sizes[1:])
        ends = sizes[groups]  # examples before the end of each group
        most = self._most_examples or int(ends[-1])
        first = 0
        while first < len(groups) - 1:
            fits = int(np.searchsorted(ends, ends[first] + most, side="right")) - 1
            last = max(fits, first + 1)
            yield self._read(drawn.units, groups[first : last + 1])
            first = last

    def _draw(self, iteration: int) -> Drawn:
        """Draws, and reads what is read whole."""
        first, last = self._first, self._first + self._units.number
        units = self.sampler.units_between(iteration, self._total, first, last) - first
        groups = np.arange(len(units) + 1)
        if self._units.offsets is None:
            units, groups = self._grouping.order(units, iteration)
        most = self._most_examples
        if most is not None and int(self._units.sizes(units).sum()) > most:
            return Drawn(iteration, units, groups, None)
        return Drawn(iteration, units, groups, self._read(units, groups))

    def _read(self, units: NDArray[np.int64], groups: NDArray[np.int64]) -> Piece:
        """The examples of the units of some groups."""
        batch = self._units.read(units[groups[0] : groups[-1]])
        bounds = groups - groups[0] if self._units.offsets is None else None
        return Piece(batch, batch_reads(self._model, batch, self.selected), bounds)
