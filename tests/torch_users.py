"""Torch modules as users have them, and autograd on them in float64, one unit at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from brute_force import ROWS
from opacus.layers import DPMultiheadAttention
from torch import nn

import dpads
from dpads.models.torch_fields import RaggedBag

WIDTH = 3


class Pooling(nn.Module):
    """Scalars, one table for two columns, and ragged bags: a weighted sum and a mean with padding."""

    lengths: Mapping[str, int] = {}

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Embedding(ROWS, WIDTH, sparse=True)
        self.shared = nn.Embedding(ROWS, WIDTH)
        self.s = nn.EmbeddingBag(ROWS, WIDTH, mode="sum")
        self.m = nn.EmbeddingBag(ROWS, 2, mode="mean", padding_idx=2, sparse=True)
        self.hidden = nn.Linear(4 * WIDTH + 4, 5)
        self.out = nn.Linear(5, 1)

    def forward(self, columns: Mapping[str, Any]) -> torch.Tensor:
        values, offsets, weights = columns["s"]
        parts = [
            self.a(columns["a"]),
            self.shared(columns["b"]),
            self.shared(columns["c"]),
            self.s(values, offsets, per_sample_weights=weights),
            self.m(*columns["m"][:2]),
            torch.stack([columns["n0"], columns["n1"]], dim=1),
        ]
        logits: torch.Tensor = self.out(torch.relu(self.hidden(torch.cat(parts, dim=1))))
        return logits


class Sequences(nn.Module):
    """Padded bags: a masked mean that forward computes, and bags with and without padding_idx and weights."""

    lengths: Mapping[str, int] = {"s": 3, "m": 4}

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Embedding(ROWS, WIDTH)
        self.padded = nn.EmbeddingBag(ROWS, WIDTH, mode="mean", padding_idx=0)
        self.whole = nn.EmbeddingBag(ROWS, WIDTH, mode="mean")
        self.s = nn.EmbeddingBag(ROWS, WIDTH, mode="sum", padding_idx=0)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.out = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, columns: Mapping[str, Any]) -> torch.Tensor:
        ids = columns["m"]
        mask = (ids != 0).to(self.scale.dtype)[:, :, None]
        mean = (self.m(ids) * mask).sum(1) / (mask.sum(1) + 1.0)
        total = mean * self.padded(ids) + self.whole(ids) * self.scale
        total = total + self.s(columns["s"], per_sample_weights=columns["w"])
        logits: torch.Tensor = self.out(torch.tanh(total)).squeeze(1)
        return logits


class Attention(nn.Module):
    """LayerNorm, attention and Conv1d over a sequence of embedded fields; two embeddings tie one weight."""

    lengths: Mapping[str, int] = {"m": 2}

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Embedding(ROWS, 4, padding_idx=0)
        self.b = nn.Embedding(ROWS, 4)
        self.c = nn.Embedding(ROWS, 4)
        self.c.weight = self.b.weight
        self.positions = nn.Parameter(torch.randn(4, 4))
        self.norm = nn.LayerNorm(4)
        self.attention = DPMultiheadAttention(4, 2, batch_first=True)
        self.conv = nn.Conv1d(4, 3, 2)
        self.out = nn.Linear(9, 1)

    def forward(self, columns: Mapping[str, Any]) -> torch.Tensor:
        pair = torch.stack([columns["b"], columns["c"]], dim=1)
        fields = [self.a(columns["a"])[:, None], self.b(pair), self.c(columns["c"])[:, None]]
        rows = self.norm(torch.cat(fields, dim=1) + self.positions)
        rows = rows + self.attention(rows, rows, rows)[0]
        logits: torch.Tensor = self.out(self.conv(rows.transpose(1, 2)).flatten(1))
        return logits


USERS: list[type[nn.Module]] = [Pooling, Sequences, Attention]


def schema_for(kind: type[nn.Module], task: str) -> dpads.FeatureSchema:
    """The columns that a module reads."""
    return dpads.FeatureSchema(
        task=task,
        label="y",
        numeric=["n0", "n1"],
        categorical=["a", "b", "c"],
        bags=[dpads.Bag("s", "sum", "w"), dpads.Bag("m", "mean")],
        tables={"shared": ["b", "c"]},
        buckets=ROWS,
    )


def columns_of(
    schema: dpads.FeatureSchema,
    batch: Any,
    number: int,
    lengths: Mapping[str, int],
    padding: int = 0,
) -> dict[str, Any]:
    """One example as a user would collate it, numbers in float64."""
    found: dict[str, Any] = {}
    for name in schema.categorical:
        found[name] = torch.tensor(
            [max(int(batch.scalar_ids[number, batch.field_names.index(name)]), padding)]
        )
    for column, item in enumerate(schema.numeric):
        found[item.column] = torch.tensor([float(batch.dense[number, column])], dtype=torch.float64)
    for bag in schema.bags:
        own = batch.bags[bag.column]
        ids, factors = [], []
        for k in range(own.offsets[number], own.offsets[number + 1]):
            if own.values[k] >= 0:
                ids.append(int(own.values[k]))
                factors.append(1.0 if own.weights is None else float(own.weights[k]))
        if bag.column in lengths:
            length = lengths[bag.column]
            more = max(length - len(ids), 0)
            found[bag.column] = torch.tensor([(ids + [padding] * more)[:length]])
            if bag.weights is not None:
                row = (factors + [0.0] * more)[:length]
                found[bag.weights] = torch.tensor([row], dtype=torch.float64)
        else:
            found[bag.column] = RaggedBag(
                torch.tensor(ids, dtype=torch.int64),
                torch.tensor([0]),
                None if bag.weights is None else torch.tensor(factors, dtype=torch.float64),
            )
    return found


def clipped_by_autograd(
    module: nn.Module,
    schema: dpads.FeatureSchema,
    batch: Any,
    l2_clip_norm: float,
    inputs: Any = None,
    padding: int = 0,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Norms of the units, and the sums of clipped gradients of every parameter of the user's module."""
    module = copy.deepcopy(module).double()
    values = {name: value for name, value in module.named_parameters() if value.requires_grad}
    total = {name: np.zeros(tuple(value.shape)) for name, value in values.items()}
    lengths = getattr(module, "lengths", {})
    norms = []
    offsets = batch.unit_offsets
    if offsets is None:
        offsets = np.arange(batch.num_examples + 1)
    for first, last in pairwise(offsets):
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(first, last):
            columns = columns_of(schema, batch, i, lengths, padding)
            given = columns if inputs is None else inputs(columns)
            z = (module(*given) if isinstance(given, tuple) else module(given)).reshape(())
            y = float(batch.labels[i])
            if schema.task == "count":
                log_mean = z + np.log(float(batch.exposure[i]))
                one = log_mean.exp() - y * log_mean
            else:
                one = torch.nn.functional.softplus(z) - y * z
            loss = loss + one * (1.0 if batch.weights is None else float(batch.weights[i]))
        grads = dict.fromkeys(values, None)
        if last > first:
            found = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
            grads = dict(zip(values, found, strict=True))
        arrays = {
            name: np.zeros(tuple(values[name].shape))
            if grad is None
            else (grad.to_dense() if grad.is_sparse else grad).numpy()
            for name, grad in grads.items()
        }
        norm = float(np.sqrt(sum((g**2).sum() for g in arrays.values())))
        norms.append(norm)
        factor = min(1.0, l2_clip_norm / norm) if norm > 0 else 1.0
        for name, g in arrays.items():
            total[name] += factor * g
    return np.array(norms), total
