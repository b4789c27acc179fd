"""What a user's torch module reads of an example: ids, numbers and weights, as tensors by column.

The feature matrix of such a model carries them beside the embedded columns, so that the module may look at
ids for more than its embeddings, such as a mask of padding:

    ┌ embedded: what its embeddings return ┬ numeric features ┬ ids ┬ weights of padded bags ┐
    0                                      embedded                                         width

Ids are exact: float32 holds whole numbers up to 2^24, and tables with more rows take two columns a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dpads._validate import nearest
from dpads.batch import SparseBatch
from dpads.errors import ConfigError
from dpads.schema import Bag, FeatureSchema

LARGEST_EXACT = 2**24  # whole numbers up to here are float32s
LOW = 2**16  # ids beyond are `high * LOW + low`


class RaggedBag(NamedTuple):
    """Lists of ids as `torch.nn.EmbeddingBag` takes them.

    Attributes:
        values: int64[nnz], all ids.
        offsets: int64[B], where each example's ids begin.
        weights: float[nnz], one factor per id, or None where the schema names none.
    """

    values: torch.Tensor
    offsets: torch.Tensor
    weights: torch.Tensor | None


FieldTensors = Mapping[str, torch.Tensor | RaggedBag]


@dataclass(frozen=True)
class Inputs:
    """Which columns the module reads, and in which shape.

    An id column is a categorical field, or one position of a bag that is padded to a fixed length.

    Attributes:
        schema: the columns.
        lengths: {bag: positions}; ids beyond are left out. Other bags are ragged.
        padding: the id at positions that an example's list does not fill.

    Raises:
        ConfigError: `lengths` names no bag or no length, or `padding` is no row.
    """

    schema: FeatureSchema
    lengths: Mapping[str, int]
    padding: int

    def __post_init__(self) -> None:
        bags = [bag.column for bag in self.schema.bags]
        for name, length in self.lengths.items():
            if name not in bags:
                raise ConfigError(
                    f'lengths names "{name}", which is no bag of the schema.' + nearest(name, bags)
                )
            if not _whole(length) or length < 1:
                raise ConfigError(
                    f'lengths: expected a positive number for "{name}", got {length!r}.'
                )
        if not _whole(self.padding) or self.padding < 0:
            raise ConfigError(
                f"Expected padding to be an id from 0, got {self.padding!r}. It fills the positions of "
                "padded bags that are left, and is what their embedding has as padding_idx."
            )
        for bag in self.padded:
            if self.padding >= self.rows_of(bag.column):
                raise ConfigError(
                    f'Expected padding below the buckets of "{bag.column}", '
                    f"{self.rows_of(bag.column)}, got {self.padding}."
                )

    @cached_property
    def padded(self) -> tuple[Bag, ...]:
        """The bags of a fixed length."""
        return tuple(bag for bag in self.schema.bags if bag.column in self.lengths)

    @cached_property
    def ragged(self) -> tuple[Bag, ...]:
        """The other bags."""
        return tuple(bag for bag in self.schema.bags if bag.column not in self.lengths)

    @cached_property
    def first_ids(self) -> dict[str, int]:
        """The first id column of each field that has one."""
        first = {name: at for at, name in enumerate(self.schema.categorical)}
        at = len(first)
        for bag in self.padded:
            first[bag.column] = at
            at += self.lengths[bag.column]
        return first

    @cached_property
    def id_columns(self) -> tuple[str, ...]:
        """The field of each id column."""
        padded = [bag.column for bag in self.padded for _ in range(self.lengths[bag.column])]
        return (*self.schema.categorical, *padded)

    @cached_property
    def weight_columns(self) -> tuple[str, ...]:
        """The padded bag of each column of weights."""
        weighted = [bag for bag in self.padded if bag.weights is not None]
        return tuple(bag.column for bag in weighted for _ in range(self.lengths[bag.column]))

    @cached_property
    def _wide(self) -> NDArray[np.bool_]:
        """Whether an id column's ids take two columns of the feature matrix."""
        return np.array([self.rows_of(name) > LARGEST_EXACT for name in self.id_columns], bool)

    @cached_property
    def _first_row(self) -> torch.Tensor:
        """The smallest id of each id column."""
        return torch.zeros(len(self.id_columns), dtype=torch.int64)

    @cached_property
    def _last_row(self) -> torch.Tensor:
        """The largest id of each id column."""
        return torch.tensor([self.rows_of(name) - 1 for name in self.id_columns], dtype=torch.int64)

    @property
    def width(self) -> int:
        """Columns of the feature matrix after the embedded ones."""
        ids = len(self.id_columns) + int(self._wide.sum())
        return len(self.schema.numeric) + ids + len(self.weight_columns)

    def rows_of(self, field: str) -> int:
        """How many ids a field can have."""
        tables = {item.name: item.table for item in self.schema.fields}
        return self.schema.table_rows[tables[field]]

    def ids(self, batch: SparseBatch) -> NDArray[np.int32]:
        """Ids by column, int32[B, columns]; -1 where a categorical field has none."""
        matrix = np.full((batch.num_examples, len(self.id_columns)), self.padding, np.int32)
        for name in self.schema.categorical:
            matrix[:, self.first_ids[name]] = batch.scalar_ids[:, batch.field_names.index(name)]
        for bag in self.padded:
            values, offsets, _ = _present(batch, bag.column)
            first, length = self.first_ids[bag.column], self.lengths[bag.column]
            rows, places, kept = _positions(offsets, length)
            matrix[rows, first + places] = values[kept]
        return matrix

    def numbers(self, batch: SparseBatch) -> NDArray[np.float32]:
        """The feature matrix after the embedded columns, float32[B, width]."""
        ids = self.ids(batch)
        ids[ids < 0] = self.padding
        low = np.where(self._wide, ids % LOW, ids)
        high = ids[:, self._wide] // LOW
        parts = (batch.dense, low, high, self.weights(batch))
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")

    def weights(self, batch: SparseBatch) -> NDArray[np.float32]:
        """Weights of padded bags, 0 at positions that are left."""
        matrix = np.zeros((batch.num_examples, len(self.weight_columns)), np.float32)
        at = 0
        for bag in self.padded:
            if bag.weights is not None:
                _, offsets, weights = _present(batch, bag.column)
                rows, places, kept = _positions(offsets, self.lengths[bag.column])
                matrix[rows, at + places] = 1.0 if weights is None else weights[kept]
                at += self.lengths[bag.column]
        return matrix

    def shown(self, batch: SparseBatch, dtype: torch.dtype = torch.float32) -> FieldTensors:
        """The tensors of a batch, numbers in the wanted precision."""
        numbers = torch.from_numpy(self.numbers(batch).astype(np.float64)).to(dtype)
        ragged = {}
        for bag in self.ragged:
            values, offsets, weights = _present(batch, bag.column)
            if weights is None and bag.weights is not None:
                weights = np.ones(len(values), np.float32)
            ragged[bag.column] = RaggedBag(
                torch.from_numpy(values),
                torch.from_numpy(offsets[:-1].copy()),
                None if bag.weights is None else torch.from_numpy(weights).to(dtype),
            )
        return self._named(numbers, ragged)

    def read_back(self, numbers: torch.Tensor) -> FieldTensors:
        """The same from the feature matrix after the embedded columns; ragged bags hold a made-up id each."""
        size = numbers.shape[0]
        ragged = {
            bag.column: RaggedBag(
                torch.zeros(size, dtype=torch.int64),
                torch.arange(size),
                None if bag.weights is None else numbers.new_ones(size),
            )
            for bag in self.ragged
        }
        return self._named(numbers, ragged)

    def _named(
        self, numbers: torch.Tensor, ragged: Mapping[str, RaggedBag]
    ) -> dict[str, torch.Tensor | RaggedBag]:
        """Columns by name."""
        named: dict[str, torch.Tensor | RaggedBag] = {}
        at = len(self.schema.numeric)
        for column, item in enumerate(self.schema.numeric):
            named[item.column] = numbers[:, column]
        total = len(self.id_columns)
        ids = numbers[:, at : at + total].long()
        if self._wide.any():
            wide = [int(column) for column in np.flatnonzero(self._wide)]
            high = numbers[:, at + total : at + total + len(wide)].long() * LOW
            columns = [
                ids[:, c] + high[:, wide.index(c)] if c in wide else ids[:, c] for c in range(total)
            ]
            ids = torch.stack(columns, dim=1)
        # Rows that a tower makes up for itself must be rows of tables, too.
        ids = ids.clamp(self._first_row, self._last_row)
        for name in self.schema.categorical:
            named[name] = ids[:, self.first_ids[name]]
        weights_at = numbers.shape[1] - len(self.weight_columns)
        for bag in self.padded:
            length, first = self.lengths[bag.column], self.first_ids[bag.column]
            named[bag.column] = ids[:, first : first + length]
            if bag.weights is not None:
                named[bag.weights] = numbers[:, weights_at : weights_at + length]
                weights_at += length
        return {**named, **ragged}


def _whole(value: object) -> bool:
    """Whether the value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _present(
    batch: SparseBatch, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
    """Values, offsets and weights of a bag without its padding."""
    bag = batch.bags[name]
    kept = bag.values >= 0
    if kept.all():
        return bag.values, bag.offsets, bag.weights
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    weights = None if bag.weights is None else bag.weights[kept]
    return bag.values[kept], before[bag.offsets], weights


def _positions(
    offsets: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(example, position, place in the values) of every id among the first `length` of its list."""
    counts = np.minimum(np.diff(offsets), length)
    rows = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    places = np.arange(len(rows)) - starts[rows]
    return rows, places, offsets[:-1][rows] + places
