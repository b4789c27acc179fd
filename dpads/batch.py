"""A batch of examples: ids of tables' rows, numbers, labels, and where each privacy unit starts.

        field_names   C1   C2               bags["interests"]
                    ┌────┬────┐   values   5 5 9 | 2 | (none)
example 0  unit 0   │ 17 │  4 │   offsets  0       3   4   4
example 1  unit 0   │  0 │ 88 │
example 2  unit 1   │ 17 │ -1 │   unit_offsets  0  2  3       -1 is padding: no row, no gradient
                    └────┴────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpads.errors import DataError

PADDING = -1

BagInput: TypeAlias = tuple[ArrayLike, ArrayLike, ArrayLike | None]


@dataclass(frozen=True)
class BagIds:
    """Ids of one list-valued field: `values[offsets[i]:offsets[i + 1]]` belong to example i.

    Attributes:
        values: int64[nnz], rows of the field's table; -1 is padding; repeats are kept.
        offsets: int64[B + 1], rising from 0 to nnz.
        weights: float32[nnz], one factor per id, or None where every id counts once.
    """

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None

    def part(self, first: int, last: int) -> BagIds:
        """The lists of examples first:last."""
        begin, end = self.offsets[first], self.offsets[last]
        weights = None if self.weights is None else self.weights[begin:end]
        return BagIds(self.values[begin:end], self.offsets[first : last + 1] - begin, weights)


@dataclass(frozen=True)
class Targets:
    """What the losses of some examples need beside the logits.

    Attributes:
        labels: float32[n].
        weights: float32[n], factors inside the loss, or None.
        exposure: float32[n], or None.
        offset: added to every logit.
    """

    labels: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    exposure: NDArray[np.float32] | None
    offset: float = 0.0

    def part(self, first: int, last: int) -> Targets:
        """Those of examples first:last, without a copy."""
        return Targets(
            self.labels[first:last],
            None if self.weights is None else self.weights[first:last],
            None if self.exposure is None else self.exposure[first:last],
            self.offset,
        )


@dataclass(frozen=True)
class SparseBatch:
    """Examples of one batch, possibly none.

    Attributes:
        field_names: names of the scalar categorical fields, in column order of `scalar_ids`.
        scalar_ids: int32[B, F], rows of each field's table, -1 for padding.
        bags: the list-valued fields by name.
        dense: float32[B, K], numeric features after their transforms.
        labels: float32[B], 0 or 1, or a count.
        weights: float32[B], factors inside the loss, or None.
        exposure: float32[B], positive, the time or volume a count refers to, or None.
        unit_offsets: int64[U + 1], unit u owns examples `unit_offsets[u]:unit_offsets[u + 1]`;
            None where every example is a unit of its own.
    """

    field_names: tuple[str, ...]
    scalar_ids: NDArray[np.int32]
    bags: Mapping[str, BagIds]
    dense: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None
    exposure: NDArray[np.float32] | None = None
    unit_offsets: NDArray[np.int64] | None = None

    @property
    def num_examples(self) -> int:
        """Number of examples, B."""
        return int(self.labels.shape[0])

    @property
    def num_units(self) -> int:
        """Number of privacy units, U."""
        return self.num_examples if self.unit_offsets is None else len(self.unit_offsets) - 1

    def part(self, first: int, last: int) -> SparseBatch:
        """Examples first:last, which begin and end with units; without a copy but for offsets."""
        offsets = self.unit_offsets
        if offsets is not None:
            units = np.searchsorted(offsets, [first, last])
            offsets = offsets[units[0] : units[1] + 1] - first
        return SparseBatch(
            field_names=self.field_names,
            scalar_ids=self.scalar_ids[first:last],
            bags={name: bag.part(first, last) for name, bag in self.bags.items()},
            dense=self.dense[first:last],
            labels=self.labels[first:last],
            weights=None if self.weights is None else self.weights[first:last],
            exposure=None if self.exposure is None else self.exposure[first:last],
            unit_offsets=offsets,
        )

    @classmethod
    def from_arrays(
        cls,
        *,
        ids: Mapping[str, ArrayLike | BagInput],
        dense: ArrayLike | None = None,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        exposure: ArrayLike | None = None,
        unit_offsets: ArrayLike | None = None,
    ) -> SparseBatch:
        """Builds a batch from plain arrays and checks their shapes.

        Args:
            ids: per field int64[B] for a scalar field, or (values int64[nnz], offsets int64[B + 1],
                weights float32[nnz] or None) for a bag. Ids are table rows, -1 is padding.
            dense: float32[B, K]; None for no numeric features.
            labels: float32[B].
            weights: float32[B], finite and non-negative, or None.
            exposure: float32[B], finite and positive, or None.
            unit_offsets: int64[U + 1] from 0 to B, non-decreasing; None for one unit per example.

        Raises:
            DataError: a shape, an offset or a weight is wrong; the message names the argument.

        Examples:
            >>> batch = SparseBatch.from_arrays(
            ...     ids={"C1": [3, -1], "tags": ([5, 5, 2], [0, 2, 3], None)}, labels=[0, 1])
            >>> batch.num_examples, batch.field_names, list(batch.bags)
            (2, ('C1',), ['tags'])
        """
        label_array = _vector(labels, "labels")
        size = len(label_array)
        scalars: dict[str, NDArray[np.int32]] = {}
        bags: dict[str, BagIds] = {}
        for name, value in ids.items():
            if isinstance(value, tuple) and len(value) == 3 and np.ndim(value[1]) == 1:
                bags[name] = _bag(name, value, size)
            else:
                column = _ids(cast("ArrayLike", value), f'ids["{name}"]')
                _expect(len(column) == size, f'ids["{name}"]', f"{size} ids", str(len(column)))
                scalars[name] = column.astype(np.int32)
        matrix = (
            np.empty((size, 0), np.float32)
            if dense is None
            else np.ascontiguousarray(dense, dtype=np.float32)
        )
        _expect(
            matrix.ndim == 2 and matrix.shape[0] == size,
            "dense",
            f"shape [{size}, features]",
            str(list(matrix.shape)),
        )
        weight_array = None if weights is None else _vector(weights, "weights", size)
        exposure_array = None if exposure is None else _vector(exposure, "exposure", size)
        if weight_array is not None and not _at_least(weight_array, 0.0):
            raise DataError("weights: expected finite numbers >= 0. Drop or mend the others.")
        if exposure_array is not None and not _above(exposure_array, 0.0):
            raise DataError("exposure: expected finite numbers > 0. Drop or mend the others.")
        return cls(
            field_names=tuple(scalars),
            scalar_ids=(
                np.ascontiguousarray(np.stack(list(scalars.values()), axis=1))
                if scalars
                else np.empty((size, 0), np.int32)
            ),
            bags=bags,
            dense=matrix,
            labels=label_array,
            weights=weight_array,
            exposure=exposure_array,
            unit_offsets=None
            if unit_offsets is None
            else _offsets(unit_offsets, "unit_offsets", size),
        )


def _expect(condition: bool, what: str, expected: str, got: str) -> None:
    """Raises in the house form when the condition fails."""
    if not condition:
        raise DataError(f"{what}: expected {expected}, got {got}.")


def _vector(values: ArrayLike, what: str, size: int | None = None) -> NDArray[np.float32]:
    """A float32 vector of the wanted length."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    _expect(array.ndim == 1, what, "one dimension", str(array.ndim))
    if size is not None:
        _expect(len(array) == size, what, f"{size} values", str(len(array)))
    return array


def _ids(values: ArrayLike, what: str) -> NDArray[np.int64]:
    """Ids as int64, never below the padding id, never beyond int32."""
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    _expect(array.ndim == 1, what, "one dimension", str(array.ndim))
    _expect(array.dtype.kind in "iu", what, "integers", str(array.dtype))
    if array.size and (int(array.min()) < PADDING or int(array.max()) > np.iinfo(np.int32).max):
        raise DataError(f"{what}: expected table rows from 0, or -1 for padding, below 2^31.")
    return np.ascontiguousarray(array, dtype=np.int64)


def _offsets(values: ArrayLike, what: str, end: int) -> NDArray[np.int64]:
    """Offsets that rise from 0 to `end`."""
    array = _ids(values, what)
    rises = len(array) >= 1 and array[0] == 0 and array[-1] == end
    if not rises or (len(array) > 1 and int(np.diff(array).min()) < 0):
        raise DataError(f"{what}: expected offsets that rise from 0 to {end} without falling.")
    return array


def _bag(name: str, value: BagInput, size: int) -> BagIds:
    """Checks one list-valued field."""
    what = f'ids["{name}"]'
    values = _ids(value[0], what)
    offsets = _offsets(value[1], f"{what} offsets", len(values))
    _expect(len(offsets) == size + 1, f"{what} offsets", f"{size + 1} offsets", str(len(offsets)))
    weights = None if value[2] is None else _vector(value[2], f"{what} weights", len(values))
    if weights is not None and not _at_least(weights, 0.0):
        raise DataError(f"{what} weights: expected finite numbers >= 0.")
    return BagIds(values, offsets, weights)


def _at_least(array: NDArray[np.float32], bound: float) -> bool:
    """Whether every value is finite and >= bound."""
    return bool(np.isfinite(array).all() and (array >= bound).all())


def _above(array: NDArray[np.float32], bound: float) -> bool:
    """Whether every value is finite and > bound."""
    return bool(np.isfinite(array).all() and (array > bound).all())
