"""Layers of every kind in a converted module are exact: norms, recurrences, parametrisations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import ROWS
from opacus.layers import DPLSTM
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch_users import clipped_by_autograd

import dpads

SCHEMA = dpads.FeatureSchema(
    task="ctr", label="y", numeric=["n"], categorical=["a"], bags=["t"], buckets=ROWS
)
LENGTHS = {"t": 3}


class User(nn.Module):
    """An embedding, a layer under test, and a linear layer."""

    lengths = LENGTHS

    def __init__(self, layer: nn.Module, forward: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.a = nn.Embedding(ROWS, 4)
        self.t = nn.Embedding(ROWS, 4, padding_idx=0)
        self.layer = layer
        self.out = nn.Linear(4, 1)
        self.call = forward

    def forward(self, columns: Any) -> torch.Tensor:
        return self.call(self, columns)


def single(self: Any, c: Any) -> torch.Tensor:
    logits: torch.Tensor = self.out(self.layer(self.a(c["a"]) + self.t(c["t"]).sum(1)))
    return logits


def sequence(self: Any, c: Any) -> torch.Tensor:
    hidden = self.layer(self.t(c["t"]) + self.a(c["a"])[:, None])
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    logits: torch.Tensor = self.out(hidden[:, -1])
    return logits


def pair(self: Any, c: Any) -> torch.Tensor:
    logits: torch.Tensor = self.out(self.layer(self.a(c["a"]), self.t(c["t"]).sum(1)))
    return logits


def names_float32(self: Any, c: Any) -> torch.Tensor:
    logits = torch.zeros(c["a"].shape[0])
    logits += single(self, c)[:, 0] * c["n"].float() + torch.ones(1, dtype=torch.float32)
    return logits * torch.tensor(2.0).to(torch.float32)


CASES = {
    "linear": (lambda: nn.Linear(4, 4), single),
    "linear without bias": (lambda: nn.Linear(4, 4, bias=False), single),
    "linear at every position": (lambda: nn.Linear(4, 4), sequence),
    "weight_norm": (lambda: weight_norm(nn.Linear(4, 4)), single),
    "layer_norm": (lambda: nn.LayerNorm(4), sequence),
    "layer_norm without bias": (lambda: nn.LayerNorm(4, bias=False), sequence),
    "group_norm": (lambda: nn.GroupNorm(2, 4), single),
    "rms_norm": (lambda: nn.RMSNorm(4), single),
    "prelu": (lambda: nn.PReLU(4), single),
    "bilinear": (lambda: nn.Bilinear(4, 4, 4), pair),
    "rnn": (lambda: nn.RNN(4, 4, batch_first=True), sequence),
    "lstm": (lambda: DPLSTM(4, 4, batch_first=True), sequence),
    "transformer": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4), nn.LayerNorm(4)),
        sequence,
    ),
    "float32 by name": (lambda: nn.Linear(4, 4), names_float32),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, about Bilinear
def test_a_layer_is_exact(name: str) -> None:
    make, forward = CASES[name]
    torch.manual_seed(4)
    module = User(make(), forward)
    model = dpads.models.from_torch(module, SCHEMA, lengths=LENGTHS).init(SCHEMA)
    rng = np.random.default_rng(5)
    ends = np.concatenate([[0], np.cumsum(rng.integers(0, 5, 8))])
    batch = dpads.SparseBatch.from_arrays(
        ids={"a": rng.integers(0, ROWS, 8), "t": (rng.integers(0, ROWS, ends[-1]), ends, None)},
        dense=rng.normal(size=(8, 1)),
        labels=rng.integers(0, 2, 8),
        unit_offsets=[0, 1, 3, 3, 4, 7, 8],
    )
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=0.4)
    norms, total = clipped_by_autograd(module, SCHEMA, batch, 0.4)
    np.testing.assert_allclose(out.norms, norms, rtol=1e-4)
    own = {name for name, _ in module.named_parameters()}
    assert {*out.dense} | {f"{table}.weight" for table in out.tables} == own
    for key, value in out.dense.items():
        np.testing.assert_allclose(value, total[key], rtol=1e-3, atol=1e-5, err_msg=key)


def test_offsets_may_have_the_end_as_well() -> None:
    class Ended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t = nn.EmbeddingBag(ROWS, 1, mode="mean", include_last_offset=True)

        def forward(self, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            return functional.elu(self.t(values, offsets))

    def inputs(columns: Any) -> Any:
        values, offsets, _ = columns["t"]
        return values, torch.cat([offsets, torch.tensor([len(values)])])

    schema = dpads.FeatureSchema(task="ctr", label="y", bags=["t"], buckets=ROWS)
    module = Ended()
    model = dpads.models.from_torch(module, schema, inputs=inputs).init(schema)
    batch = dpads.SparseBatch.from_arrays(
        ids={"t": ([1, 1, 2, 6], [0, 3, 3, 4], None)}, labels=[0, 1, 1]
    )
    norms, _ = clipped_by_autograd(module, schema, batch, 1.0, inputs)
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
    np.testing.assert_allclose(out.norms, norms, rtol=1e-5)
