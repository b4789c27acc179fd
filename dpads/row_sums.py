"""Where a batch reads the tables, and the sums of clipped gradients of the rows that it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.kernels import clip, moves
from dpads.kernels.lookup import Places, keep_selected
from dpads.kernels.merge import Runs, SortedPlaces, merge_runs
from dpads.kernels.moves import Move
from dpads.models.base import Model


@dataclass(frozen=True)
class Reads:
    """The places where one batch reads one group, and the same places sorted by row."""

    places: Places
    runs: Runs


def batch_reads(
    model: Model,
    batch: SparseBatch,
    selected: Mapping[str, NDArray[np.bool_]] = MappingProxyType({}),
) -> dict[str, Reads]:
    """For every group of tables, where the batch reads it.

    Args:
        model: whose tables are read.
        batch: of its schema.
        selected: {group: bool[rows]}, of the groups of which only some rows are trained; the others are
            zero and are not read.
    """
    reads = {}
    for group in model.layout.groups:
        places = group.places(batch)
        if group.name in selected:
            places = keep_selected(places, selected[group.name])
        reads[group.name] = Reads(places, merge_runs(places.rows))
    return reads


class RowSums(ABC):
    """Sums of clipped gradients of one group's touched rows.

    Attributes:
        rows: int64[k], distinct, rising, rows of the group's array.
    """

    rows: NDArray[np.int64]

    @abstractmethod
    def part(self, first: int, last: int) -> NDArray[np.float64]:
        """The sums of rows[first:last], float64[last - first, dim]."""

    @abstractmethod
    def move(
        self,
        array: NDArray[np.float32],
        history: NDArray[np.int32],
        first: int,
        last: int,
        how: Move,
    ) -> None:
        """Moves rows[first:last] of an array by their sums; history is set, where one is kept."""

    @property
    def values(self) -> NDArray[np.float64]:
        """All sums, float64[k, dim]."""
        return self.part(0, len(self.rows))


class KnownSums(RowSums):
    """Sums in memory.

    Args:
        rows: int64[k], distinct, rising.
        values: float64[k, dim].
    """

    def __init__(self, rows: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        self.rows = rows
        self._values = values

    def part(self, first: int, last: int) -> NDArray[np.float64]:
        """The sums of rows[first:last]."""
        return self._values[first:last]

    def move(
        self,
        array: NDArray[np.float32],
        history: NDArray[np.int32],
        first: int,
        last: int,
        how: Move,
    ) -> None:
        """Moves in place."""
        moves.move_rows(array, history, self.rows[first:last], self._values[first:last], how)


class PlacedSums(RowSums):
    """Sums gathered from the examples' gradients when they are applied; they never stand in memory.

    Args:
        runs: the rows that the batch reads.
        places: where it reads them, sorted by row.
        grads: float32[B, width], gradients of the losses with respect to the features.
        factors: float32[B], clip factors.
        dim: width of the rows.
    """

    def __init__(
        self,
        runs: Runs,
        places: SortedPlaces,
        grads: NDArray[np.float32],
        factors: NDArray[np.float32],
        dim: int,
    ) -> None:
        self.rows = runs.rows
        self._runs, self._places, self._grads = runs, places, grads
        self._factors, self._dim = factors, dim

    def part(self, first: int, last: int) -> NDArray[np.float64]:
        """The sums of rows[first:last]."""
        values = np.empty((last - first, self._dim))
        places, runs = self._places, self._runs
        clip.merged_sum(self._grads, places, self._factors, runs, first, values)
        return values

    def move(
        self,
        array: NDArray[np.float32],
        history: NDArray[np.int32],
        first: int,
        last: int,
        how: Move,
    ) -> None:
        """Sums and moves a few rows at a time."""
        moves.move_merged(
            array,
            history,
            self._grads,
            self._places,
            self._factors,
            self._runs,
            first,
            last,
            how,
        )
