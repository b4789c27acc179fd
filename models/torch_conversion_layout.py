"""Where a user's torch module reads its embeddings: feature columns for what each call returns.

nn.Embedding on ids [B, 3], width 4        three stretches of 4 columns, one read each
nn.EmbeddingBag on ids [B, 3], width 4     one stretch of 4 columns, three reads are added to it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.errors import ConfigError
from dpads.kernels import lookup
from dpads.kernels.lookup import Places
from dpads.models.layout import MAX_GROUP_ROWS, Layout, Slot, TableGroup
from dpads.models.torch_fields import Inputs
from dpads.schema import Field


@dataclass(frozen=True)
class Source:
    """What one call of an embedding reads, and how.

    Attributes:
        table: the table's name.
        dim: width of its rows.
        ids: id columns, one per position of the call's ids; none for a ragged bag.
        bag: the ragged bag, or None.
        shape: shape of the ids, the examples' axis left out.
        axis: which axis of the ids the examples were.
        pooling: "sum" or "mean" of an `nn.EmbeddingBag`, None of an `nn.Embedding`.
        weights: columns of weights, one per position; none where every id counts once.
        weighted: whether a ragged bag's weights are used.
        padding_idx: the id that reads nothing, or None.
    """

    table: str
    dim: int
    ids: tuple[int, ...]
    bag: str | None
    shape: tuple[int, ...]
    axis: int
    pooling: str | None
    weights: tuple[int, ...]
    weighted: bool
    padding_idx: int | None

    @property
    def stretches(self) -> int:
        """How many row widths its values take."""
        return len(self.ids) if self.pooling is None else 1


@dataclass(frozen=True)
class Read:
    """A source and the feature columns `column : column + dim * stretches` that it fills."""

    source: Source
    column: int


@dataclass(frozen=True)
class ReadGroup(TableGroup):
    """Tables of equal width, read as the module's calls read them.

    Attributes:
        reads: the calls, in feature order.
        inputs: the id columns.
    """

    reads: tuple[Read, ...]
    inputs: Inputs

    @property
    def rows_may_repeat(self) -> bool:
        """Whether one example can read a row twice."""
        tables = [read.source.table for read in self.reads]
        single = all(len(r.source.ids) == 1 and r.source.pooling is None for r in self.reads)
        return not single or len(set(tables)) < len(tables)

    def places(self, batch: SparseBatch) -> Places:
        """Lists the places where the batch reads this group."""
        ids, size, bases = self.inputs.ids(batch), batch.num_examples, self.bases
        counts = np.zeros(size, np.int64)
        single = [read for read in self.reads if read.source.pooling is None]
        scalars = np.concatenate(
            [np.empty((size, 0), np.int32), *(_without(ids, read.source) for read in single)],
            axis=1,
            dtype=np.int32,
        )
        every = np.arange(scalars.shape[1])
        lookup.count_scalars(scalars, every, counts)
        pooled = [read for read in self.reads if read.source.pooling is not None]
        bags = [_bag(self.inputs, ids, batch, read.source) for read in pooled]
        for values, ends, _ in bags:
            lookup.count_bag(values, ends, counts)
        places = lookup.empty_places(counts)
        cursor = places.offsets[:-1].copy()
        lookup.place_scalars(
            scalars,
            every,
            np.array([bases[r.source.table] for r in single for _ in r.source.ids], np.int64),
            np.array(
                [r.column + k * self.dim for r in single for k in range(r.source.stretches)],
                np.int32,
            ),
            places,
            cursor,
        )
        for read, (values, ends, weights) in zip(pooled, bags, strict=True):
            mean = read.source.pooling == "mean"
            base = bases[read.source.table]
            lookup.place_bag(values, ends, weights, mean, base, read.column, places, cursor)
        return places


@dataclass(frozen=True)
class ReadLayout(Layout):
    """The layout of a converted module.

    Attributes:
        inputs: the columns after the embedded ones.
    """

    inputs: Inputs

    @property
    def embedded(self) -> int:
        """Feature columns that embeddings fill."""
        return sum(r.source.stretches * g.dim for g in self.read_groups for r in g.reads)

    @property
    def width(self) -> int:
        """Columns of the feature matrix."""
        return self.embedded + self.inputs.width

    @property
    def read_groups(self) -> tuple[ReadGroup, ...]:
        """The groups, as what they are."""
        return tuple(group for group in self.groups if isinstance(group, ReadGroup))

    @property
    def reads(self) -> dict[Source, Read]:
        """Where each source's values are."""
        return {read.source: read for group in self.read_groups for read in group.reads}

    def numbers(self, batch: SparseBatch) -> NDArray[np.float32]:
        """Numeric features, ids and weights."""
        return self.inputs.numbers(batch)


def build_read_layout(
    inputs: Inputs, rows: Mapping[str, int], sources: Sequence[Source]
) -> ReadLayout:
    """Lays out what the calls read; equal calls share their columns.

    Args:
        inputs: the id columns.
        rows: rows of each table.
        sources: of all calls.

    Raises:
        ConfigError: tables of one width have more rows than noise has addresses.
    """
    fields = {item.name: item for item in inputs.schema.fields}
    groups, column = [], 0
    for dim in dict.fromkeys(source.dim for source in sources):
        reads, slots = [], []
        for source in dict.fromkeys(s for s in sources if s.dim == dim):
            reads.append(Read(source, column))
            slots += _slots(inputs, fields, source, column)
            column += dim * source.stretches
        own = {read.source.table: rows[read.source.table] for read in reads}
        group = ReadGroup(f"tables.{dim}", dim, own, tuple(slots), tuple(reads), inputs)
        if group.num_rows > MAX_GROUP_ROWS:
            raise ConfigError(
                f"Embeddings of width {dim} have {group.num_rows:,} rows together; noise has addresses for "
                f"{MAX_GROUP_ROWS:,}. Use fewer rows."
            )
        groups.append(group)
    return ReadLayout(tuple(groups), len(inputs.schema.numeric), inputs)


def _slots(inputs: Inputs, fields: Mapping[str, Field], source: Source, column: int) -> list[Slot]:
    """One slot per field that the source reads."""
    if source.bag is not None:
        return [Slot(fields[source.bag], source.table, column)]
    step = source.dim if source.pooling is None else 0
    return [
        Slot(fields[inputs.id_columns[c]], source.table, column + k * step)
        for k, c in enumerate(source.ids)
    ]


def _without(ids: NDArray[np.int32], source: Source) -> NDArray[np.int32]:
    """The ids of a source, -1 where they read nothing."""
    own = ids[:, list(source.ids)]
    if source.padding_idx is not None:
        own[own == source.padding_idx] = -1
    return own


def _bag(
    inputs: Inputs, ids: NDArray[np.int32], batch: SparseBatch, source: Source
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Values, offsets and weights (empty: every id counts once) of a pooled source."""
    if source.bag is not None:
        bag = batch.bags[source.bag]
        values = bag.values
        if source.padding_idx is not None:
            values = np.where(values == source.padding_idx, -1, values)
        weights = bag.weights if source.weighted else None
        return values, bag.offsets, np.empty(0, np.float32) if weights is None else weights
    own = _without(ids, source)
    ends = np.arange(len(own) + 1, dtype=np.int64) * own.shape[1]
    factors = inputs.weights(batch)[:, list(source.weights)].reshape(-1)
    return own.astype(np.int64).reshape(-1), ends, factors
