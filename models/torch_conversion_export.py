"""A converted module with its tables, from tensors by column to logits; torch operations alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from dpads.models.torch_conversion import FeatureModule
from dpads.models.torch_conversion_layout import Read, ReadLayout, Source
from dpads.models.torch_fields import LARGEST_EXACT, LOW


class Reader(nn.Module):
    """Builds the feature matrix from ids and numbers, and calls the module on it.

    Args:
        module: over the feature matrix.
        layout: its columns.
        tables: {table: float32[rows, dim]}.
    """

    def __init__(
        self, module: FeatureModule, layout: ReadLayout, tables: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__()
        self.module = module
        self._inputs = layout.inputs
        self._reads: list[Read] = sorted(layout.reads.values(), key=lambda read: read.column)
        self._names = {name: f"table{number}" for number, name in enumerate(tables)}
        for name, value in tables.items():
            self.register_buffer(self._names[name], value)

    def forward(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits, float32[n].

        Args:
            columns: categorical fields int64[n], bags int64[n, positions], -1 where there is no id; factors
                of weighted bags float32[n, positions]; numeric columns float32[n].
        """
        ids = self._ids(columns)
        weights = self._weights(columns)
        embedded = [self._values(read.source, columns, ids, weights) for read in self._reads]
        shown = torch.where(ids < 0, self._inputs.padding, ids)
        numbers = [columns[item.column][:, None] for item in self._inputs.schema.numeric]
        matrix = torch.cat([*embedded, *numbers, *self._written(shown), weights], dim=1)
        logits: torch.Tensor = self.module(matrix)
        return logits

    def _ids(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Ids by column, int64[n, columns]; -1 where a categorical field has none."""
        scalars = [columns[name][:, None] for name in self._inputs.schema.categorical]
        bags = []
        for bag in self._inputs.padded:
            chosen = _chosen(columns[bag.column], self._inputs.lengths[bag.column])
            packed = torch.where(chosen, columns[bag.column][:, :, None], 0).sum(dim=1)
            bags.append(torch.where(chosen.any(dim=1), packed, self._inputs.padding))
        return torch.cat([*scalars, *bags, self._nothing(columns).long()], dim=1)

    def _weights(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Weights of padded bags, 0 at positions that are left, float32[n, columns]."""
        found = []
        for bag in self._inputs.padded:
            if bag.weights is not None:
                chosen = _chosen(columns[bag.column], self._inputs.lengths[bag.column])
                found.append(torch.where(chosen, columns[bag.weights][:, :, None], 0.0).sum(dim=1))
        return torch.cat([*found, self._nothing(columns)], dim=1)

    def _nothing(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """No columns of as many rows, float32[n, 0]."""
        some = next(iter(columns.values()))
        return torch.zeros((some.shape[0], 0))

    def _written(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Ids as the feature matrix holds them."""
        wide = [
            c
            for c, name in enumerate(self._inputs.id_columns)
            if self._inputs.rows_of(name) > LARGEST_EXACT
        ]
        low = [
            ids[:, c : c + 1] % LOW if c in wide else ids[:, c : c + 1] for c in range(ids.shape[1])
        ]
        high = [ids[:, c : c + 1] // LOW for c in wide]
        return [column.float() for column in (*low, *high)]

    def _values(
        self,
        source: Source,
        columns: Mapping[str, torch.Tensor],
        ids: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """What one call returns, as it lies in the feature matrix."""
        table = self.get_buffer(self._names[source.table])
        own = ids[:, list(source.ids)] if source.bag is None else columns[source.bag]
        read = own >= 0
        if source.padding_idx is not None:
            read = read & (own != source.padding_idx)
        rows = torch.where(read[:, :, None], table[own.clamp(min=0)], 0.0)
        if source.pooling is None:
            return rows.flatten(1)
        if source.weights:
            rows = rows * weights[:, list(source.weights)][:, :, None]
        if source.weighted and source.bag is not None:
            name = next(b.weights for b in self._inputs.ragged if b.column == source.bag)
            assert name is not None
            rows = rows * torch.where(read, columns[name], 0.0)[:, :, None]
        total = rows.sum(dim=1)
        if source.pooling == "mean":
            total = total / read.sum(dim=1, keepdim=True).clamp(min=1)
        return total


def _chosen(ids: torch.Tensor, length: int) -> torch.Tensor:
    """bool[n, positions, length]: whether the id at a position is the k-th that is there."""
    present = ids >= 0
    number = present.cumsum(dim=1) - 1
    return present[:, :, None] & (number[:, :, None] == torch.arange(length))
