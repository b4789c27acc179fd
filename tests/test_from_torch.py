"""A user's torch module under dpads has the clipped gradients that autograd finds one unit at a time."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import as_dense, batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch_users import USERS, clipped_by_autograd, schema_for

import dpads
from dpads.batch import SparseBatch
from dpads.models.user_module import TorchModule

TASKS = ["ctr", "count"]


@cache
def converted(kind: type[nn.Module], task: str) -> tuple[nn.Module, Any, TorchModule, Any]:
    """A module with random parameters, its schema, its description, and a model to move about."""
    torch.manual_seed(3)
    module = kind()
    schema = schema_for(kind, task)
    description = dpads.models.from_torch(module, schema, lengths=kind.lengths)
    return module, schema, description, description.init(schema)


def without_missing(batch: SparseBatch) -> SparseBatch:
    """Categorical fields as a store has them: every one has an id."""
    return dataclasses.replace(batch, scalar_ids=np.maximum(batch.scalar_ids, 0))


def table_of(name: str) -> str:
    """The table of an embedding's weight."""
    return "tables." + name.removesuffix(".weight")


def moved(module: nn.Module, seed: int) -> nn.Module:
    """A copy with random parameters; rows of padding stay zero."""
    twin = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in twin.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
        for layer in twin.modules():
            if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
                layer.weight[layer.padding_idx] = 0
    return twin


def put(model: Any, module: nn.Module) -> None:
    """Writes a module's parameters into a model."""
    for name, value in module.named_parameters():
        array = value.detach().numpy()
        own = model.dense[name] if name in model.dense else model.tables[table_of(name)[7:]]
        own[...] = array


@pytest.mark.parametrize("kind", USERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_equals_autograd_on_the_users_module_one_unit_at_a_time(
    kind: type[nn.Module], task: str, data: Any
) -> None:
    module, schema, _, model = converted(kind, task)
    batch = without_missing(data.draw(batches(schema)))
    clip = data.draw(st.sampled_from([0.1, 1.0, 30.0, float("inf")]))
    twin = moved(module, data.draw(st.integers(0, 100)))
    put(model, twin)
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=clip)
    norms, total = clipped_by_autograd(twin, schema, batch, clip)
    np.testing.assert_allclose(out.norms, norms, rtol=5e-5, atol=1e-5)
    found = as_dense(model, out)
    assert len(found) == len(total)
    scale = max([1.0, *(float(np.abs(t).max(initial=0.0)) for t in total.values())])
    for name, expected in total.items():
        own = found[f"dense.{name}"] if f"dense.{name}" in found else found[table_of(name)]
        np.testing.assert_allclose(own, expected, rtol=2e-4, atol=4e-6 * scale, err_msg=name)
