"""Brute force: torch autograd in float64, one unit at a time, written from the definition alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import dpads

ROWS = 7


@cache
def module_of(model: Any) -> torch.nn.Module:
    """The tower's definition in float64; test_models.py compares it with the papers' equations."""
    return copy.deepcopy(model.tower.module).double()


def pooled(table: torch.Tensor, batch: Any, field: Any, i: int) -> torch.Tensor:
    """What a field of example i reads in a table."""
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    if not field.is_bag:
        row = int(batch.scalar_ids[i, batch.field_names.index(field.name)])
        return table[row] if row >= 0 else total
    bag = batch.bags[field.name]
    used = 0
    for k in range(bag.offsets[i], bag.offsets[i + 1]):
        if bag.values[k] >= 0:
            weight = 1.0 if bag.weights is None else float(bag.weights[k])
            total = total + weight * table[int(bag.values[k])]
            used += 1
    return total / used if field.pooling == "mean" and used else total


def logit(model: Any, params: dict[str, torch.Tensor], batch: Any, i: int) -> torch.Tensor:
    """The logit of example i from tables and tower parameters in float64."""
    slots = [slot for group in model.layout.groups for slot in group.slots]
    parts = [
        pooled(params["tables." + slot.table], batch, slot.field, i)
        for slot in sorted(slots, key=lambda slot: slot.column)
    ]
    features = torch.cat([*parts, torch.from_numpy(batch.dense[i].astype(np.float64))])
    dense = {name: params["dense." + name] for name in model.dense}
    logits: torch.Tensor = torch.func.functional_call(module_of(model), dense, (features[None],))
    return logits[0] + model.output.offset


def table_of(schema: Any, name: str) -> str:
    """The table of a column."""
    return next((t for t, members in schema.tables.items() if name in members), name)


def unit_loss(
    model: Any, params: dict[str, torch.Tensor], batch: Any, first: int, last: int
) -> torch.Tensor:
    """Sum of the losses of examples first:last."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(first, last):
        z = logit(model, params, batch, i)
        y = float(batch.labels[i])
        if model.schema.task == "count":
            exposure = 1.0 if batch.exposure is None else float(batch.exposure[i])
            log_mean = z + np.log(exposure)
            loss = log_mean.exp() - y * log_mean
        else:
            loss = torch.nn.functional.softplus(z) - y * z
        total = total + loss * (1.0 if batch.weights is None else float(batch.weights[i]))
    return total


def clipped(
    model: Any, batch: Any, l2_clip_norm: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Norms of the units, and the sums of clipped gradients of every parameter."""
    params = {
        name: torch.from_numpy(value.astype(np.float64)).requires_grad_(True)
        for name, value in model.state().items()
    }
    total = {name: np.zeros(tuple(value.shape)) for name, value in params.items()}
    norms = []
    offsets = batch.unit_offsets
    if offsets is None:
        offsets = np.arange(batch.num_examples + 1)
    for first, last in pairwise(offsets):
        loss = unit_loss(model, params, batch, int(first), int(last))
        if last > first:
            found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        else:
            found = (None,) * len(params)
        grads = {
            n: np.zeros(tuple(p.shape)) if g is None else g.numpy()
            for (n, p), g in zip(params.items(), found, strict=True)
        }
        norm = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        norms.append(norm)
        factor = min(1.0, l2_clip_norm / norm) if norm > 0 else 1.0
        for name, g in grads.items():
            total[name] += factor * g
    return np.array(norms), total


def as_dense(model: Any, out: Any) -> dict[str, np.ndarray]:
    """ClippedGradients as full arrays, one per parameter."""
    full = {f"dense.{name}": value.astype(np.float64) for name, value in out.dense.items()}
    for name, (rows, values) in out.tables.items():
        assert len(set(rows.tolist())) == len(rows)
        assert np.all(rows >= 0)
        array = np.zeros(model.tables[name].shape)
        array[rows] = values
        full[f"tables.{name}"] = array
    return full


def schema_of(task: str = "ctr", weights: bool = True, numeric: int = 2) -> Any:
    """Scalars, a shared table, a summed bag with weights, and a mean bag."""
    return dpads.FeatureSchema(
        task=task,
        label="y",
        numeric=[f"n{k}" for k in range(numeric)],
        categorical=["a", "b", "c"],
        bags=[dpads.Bag("s", "sum", "w" if weights else None), dpads.Bag("m", "mean")],
        tables={"shared": ["b", "c", "m"]},
        buckets=ROWS,
    )


def perturb(model: Any, seed: int) -> Any:
    """Random parameters, so that no gradient is zero by accident."""
    rng = np.random.default_rng(seed)
    for value in [*model.tables.values(), *model.dense.values()]:
        value[...] = rng.normal(0, 0.5, value.shape)
    return model


@st.composite
def batches(draw: Callable[..., Any], schema: Any, units: bool = True) -> Any:
    """Batches of any shape: empty, repeated ids, padding, empty bags, user units of several examples."""
    size = draw(st.integers(0, 6))
    ids = st.integers(-1, ROWS - 1)
    fields: dict[str, Any] = {
        name: np.array(draw(st.lists(ids, min_size=size, max_size=size)), np.int64)
        for name in schema.categorical
    }
    for bag in schema.bags:
        lists = draw(st.lists(st.lists(ids, max_size=5), min_size=size, max_size=size))
        values = np.array([v for one in lists for v in one], np.int64)
        offsets = np.cumsum([0, *map(len, lists)])
        weights = None
        if bag.weights is not None:
            numbers = st.floats(0, 3, width=32)
            weights = draw(st.lists(numbers, min_size=len(values), max_size=len(values)))
        fields[bag.column] = (values, offsets, weights)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    count = schema.task == "count"
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=3))) if units else []
    return dpads.SparseBatch.from_arrays(
        ids=fields,
        dense=rng.normal(0, 2, (size, len(schema.numeric))),
        labels=rng.poisson(1.5, size) if count else rng.integers(0, 2, size),
        weights=rng.uniform(0, 2, size) if draw(st.booleans()) else None,
        exposure=rng.uniform(0.1, 2, size) if count else None,
        unit_offsets=[0, *cuts, size] if units and draw(st.booleans()) else None,
    )
