"""What each call of an embedding is given, compared with the columns of made-up rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dpads.batch import SparseBatch
from dpads.errors import ConfigError
from dpads.models.torch_conversion import Lookup
from dpads.models.torch_fields import FieldTensors, Inputs, RaggedBag


@dataclass(frozen=True)
class Candidates:
    """What one call may read, as far as one batch tells.

    Attributes:
        shape: shape of the ids, the examples' axis left out.
        bags: ragged bags; empty unless the ids are ragged.
        ids: for each position, id columns that are equal to it.
        weights: for each position, columns of weights that are; none where no weights are given.
        weighted: whether weights are given.
    """

    shape: tuple[int, ...]
    bags: frozenset[str]
    ids: tuple[frozenset[int], ...]
    weights: tuple[frozenset[int], ...]
    weighted: bool

    @property
    def is_possible(self) -> bool:
        """Whether every position has a column."""
        return bool(self.bags) or (bool(self.ids) and all((*self.ids, *self.weights)))

    def and_in(self, other: Candidates) -> Candidates | None:
        """Those of two batches; None where they differ in shape."""
        if (self.shape, len(self.ids), len(self.weights), self.weighted) != (
            other.shape,
            len(other.ids),
            len(other.weights),
            other.weighted,
        ):
            return None
        return Candidates(
            self.shape,
            self.bags & other.bags,
            tuple(a & b for a, b in zip(self.ids, other.ids, strict=True)),
            tuple(a & b for a, b in zip(self.weights, other.weights, strict=True)),
            self.weighted,
        )


@dataclass(frozen=True)
class Seen:
    """One call of an embedding: what it may read, by the axis that may be the examples'."""

    lookup: Lookup
    by_axis: Mapping[int, Candidates]


class Recording:
    """Compares what calls are given with the columns of one batch; returns made-up values.

    Args:
        batch: the batch.
        inputs: which columns there are.
        fields: the tensors that the module is called on.
    """

    def __init__(self, batch: SparseBatch, inputs: Inputs, fields: FieldTensors) -> None:
        self._size = batch.num_examples
        self._ids = torch.from_numpy(inputs.ids(batch)).long()
        self._weights = torch.from_numpy(inputs.weights(batch))
        self._ragged = {n: v for n, v in fields.items() if isinstance(v, RaggedBag)}
        self._generator = torch.Generator().manual_seed(1)
        self.seen: list[Seen] = []

    def visit(
        self,
        lookup: Lookup,
        ids: torch.Tensor,
        offsets: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        """Notes what the call reads."""
        found = self._candidates(lookup, ids, offsets, weights)
        if not found:
            raise ConfigError(self._refusal(lookup, ids, offsets, weights))
        self.seen.append(Seen(lookup, found))
        whole = (self._size,) if lookup.is_bag else tuple(ids.shape)
        return torch.randn((*whole, lookup.embedding_dim), generator=self._generator)

    def _candidates(
        self,
        lookup: Lookup,
        ids: torch.Tensor,
        offsets: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> dict[int, Candidates]:
        """What the call may read, by axis."""
        if offsets is not None:
            own = offsets[:-1] if lookup.include_last_offset else offsets
            bags = frozenset(
                name
                for name, bag in self._ragged.items()
                if torch.equal(ids, bag.values)
                and torch.equal(own, bag.offsets)
                and (
                    weights is None
                    or (bag.weights is not None and torch.equal(weights, bag.weights))
                )
            )
            return {0: Candidates((), bags, (), (), weights is not None)} if bags else {}
        found = {}
        for axis in range(1 if lookup.is_bag else ids.dim()):
            if ids.shape[axis] == self._size:
                moved = ids.movedim(axis, 0)
                by = (
                    ()
                    if weights is None
                    else _equal(weights.reshape(self._size, -1), self._weights)
                )
                found[axis] = Candidates(
                    tuple(moved.shape[1:]),
                    frozenset(),
                    _equal(moved.reshape(self._size, -1), self._ids),
                    by,
                    weights is not None,
                )
        return {axis: each for axis, each in found.items() if each.is_possible}

    def _refusal(
        self,
        lookup: Lookup,
        ids: torch.Tensor,
        offsets: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> str:
        """Why a call reads no column."""
        start = f'Embedding "{lookup.name}": expected the ids of a column of the schema, got '
        if not lookup.is_bag and any(torch.equal(ids, b.values) for b in self._ragged.values()):
            return start + (
                "those of a ragged bag, which only nn.EmbeddingBag can pool. Pass lengths = {column: "
                "positions} to from_torch, and the bag is padded to one length."
            )
        if weights is not None and self._candidates(lookup, ids, offsets, None):
            return start + (
                "per_sample_weights that are not the bag's own. Name their column in the schema, "
                'dpads.Bag(column, "sum", weights), or multiply outside of the embedding.'
            )
        if self._size not in ids.shape and offsets is None:
            return start + (
                f"ids of shape {list(ids.shape)} for {self._size} examples, such as numbers of positions. "
                "Use an nn.Parameter for rows that every example reads."
            )
        return start + (
            "ids that forward computes. Compute them upstream, as a column of the log, and pass ids as "
            "they are: no offsets, no remainders, no float32 for ids beyond 2^24."
        )


def _equal(wanted: torch.Tensor, columns: torch.Tensor) -> tuple[frozenset[int], ...]:
    """For each wanted column, which columns are equal to it."""
    return tuple(
        frozenset(int(c) for c in (one[:, None] == columns).all(dim=0).nonzero().reshape(-1))
        for one in wanted.unbind(dim=1)
    )
