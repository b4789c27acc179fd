"""Rows of tables that are not selected: nobody reads them, no gradient, no noise, zero in the end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import ROWS, batches, perturb, schema_of, table_of, unit_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tables import DIM, STEPS, _mechanism, _touched, _update

import dpads
from dpads.clipping import clip_batch
from dpads.errors import SchemaError
from dpads.models.layout import build_layout
from dpads.row_sums import KnownSums, batch_reads
from dpads.selection import Presence, Selection
from dpads.tables import DenseTables, LazyTables, TableMechanism

MODELS = [dpads.models.Logistic(), dpads.models.Mlp(embedding_dim=3, hidden=(5, 4))]
MECHANISMS = [LazyTables, DenseTables]


def rows_read(schema: Any, batch: Any, first: int, last: int) -> set[tuple[str, int]]:
    """(table, row) of everything that examples first:last read, by the definition."""
    found = {
        (table_of(schema, name), int(batch.scalar_ids[i, batch.field_names.index(name)]))
        for name in schema.categorical
        for i in range(first, last)
    }
    for bag in schema.bags:
        ids = batch.bags[bag.column]
        values = ids.values[ids.offsets[first] : ids.offsets[last]]
        found |= {(table_of(schema, bag.column), int(v)) for v in values}
    return {(table, row) for table, row in found if row >= 0}


def units_of_batch(batch: Any) -> list[tuple[int, int]]:
    bounds = batch.unit_offsets
    return list(pairwise(np.arange(batch.num_examples + 1) if bounds is None else bounds))


@given(data=st.data())
@settings(max_examples=100)
def test_a_unit_adds_one_at_each_row_that_it_reads(data: Any) -> None:
    schema = schema_of()
    batch = data.draw(batches(schema))
    presence = Presence(schema)
    vectors = presence.vectors(batch)
    bases = dict(zip(schema.table_rows, np.cumsum([0, ROWS, ROWS, ROWS]), strict=False))
    assert presence.size == ROWS * len(schema.table_rows)
    units = units_of_batch(batch)
    assert len(vectors.offsets) == len(units) + 1
    for unit, (first, last) in enumerate(units):
        own = slice(vectors.offsets[unit], vectors.offsets[unit + 1])
        expected = {bases[t] + row for t, row in rows_read(schema, batch, int(first), int(last))}
        assert sorted(vectors.places[own].tolist()) == sorted(expected)
        assert (vectors.values[own] == 1.0).all()


def some_rows(schema: Any, seed: int) -> Selection:
    rng = np.random.default_rng(seed)
    return Selection({table: rng.random(rows) < 0.5 for table, rows in schema.table_rows.items()})


def zeroed(model: Any, selection: Selection) -> dict[str, Any]:
    """Sets the rows that are not selected to zero; {group: bool[rows]}."""
    masks = {group.name: selection.of_group(group) for group in model.layout.groups}
    for name, mask in masks.items():
        model.arrays[name][~mask] = 0.0
    return masks


def expected_sums(
    model: Any, selection: Selection, batch: Any, clip: float
) -> tuple[list[float], dict[str, Any]]:
    """Norms and clipped sums where autograd in float64 sees the other rows as constant zeros."""
    leaves, params = {}, {}
    for name, value in model.state().items():
        leaf = torch.from_numpy(value.astype(np.float64)).requires_grad_(True)
        leaves[name], params[name] = leaf, leaf
        if name.startswith("tables."):
            mask = selection.tables[name.removeprefix("tables.")]
            params[name] = leaf * torch.from_numpy(mask.astype(np.float64))[:, None]
    norms: list[float] = []
    total = {name: np.zeros(tuple(leaf.shape)) for name, leaf in leaves.items()}
    for first, last in units_of_batch(batch):
        loss = unit_loss(model, params, batch, int(first), int(last))
        found = [None] * len(leaves)
        if last > first:
            found = torch.autograd.grad(  # type: ignore[assignment]
                loss, list(leaves.values()), allow_unused=True, retain_graph=True
            )
        grads = [
            np.zeros(tuple(leaf.shape)) if g is None else g.numpy()
            for leaf, g in zip(leaves.values(), found, strict=True)
        ]
        norm = float(np.sqrt(sum((g**2).sum() for g in grads)))
        norms.append(norm)
        for name, g in zip(leaves, grads, strict=True):
            total[name] += g * (min(1.0, clip / norm) if norm > 0 else 1.0)
    return norms, total


@pytest.mark.parametrize("description", MODELS, ids=lambda d: d.name)
@given(data=st.data())
@settings(max_examples=60)
def test_other_rows_are_zero_vectors_without_a_gradient(description: Any, data: Any) -> None:
    """Neither in the sum nor in the norm; of a mean they still count."""
    schema = schema_of(data.draw(st.sampled_from(["ctr", "count"])))
    batch = data.draw(batches(schema))
    clip = data.draw(st.sampled_from([0.1, 1.0, float("inf")]))
    model = perturb(description.init(schema, seed=0), data.draw(st.integers(0, 100)))
    selection = some_rows(schema, data.draw(st.integers(0, 100)))
    masks = zeroed(model, selection)
    total, norms = clip_batch(model, batch, batch_reads(model, batch, masks), clip)
    expected_norms, expected = expected_sums(model, selection, batch, clip)
    np.testing.assert_allclose(norms, expected_norms, rtol=2e-5, atol=1e-6)
    scale = max([1.0, *(float(np.abs(t).max(initial=0.0)) for t in expected.values())])
    for group in model.layout.groups:
        sums = total.groups[group.name]
        assert masks[group.name][sums.rows].all()
        array = np.zeros(model.arrays[group.name].shape)
        array[sums.rows] = sums.values
        for table, base in group.bases.items():
            own = array[base : base + group.rows[table]]
            np.testing.assert_allclose(
                own, expected[f"tables.{table}"], rtol=1e-4, atol=2e-6 * scale
            )
    for name, value in total.dense.items():
        np.testing.assert_allclose(value, expected[f"dense.{name}"], rtol=1e-4, atol=2e-6 * scale)


@pytest.mark.parametrize("kind", MECHANISMS)
def test_selected_rows_are_trained_as_if_nothing_were_left_out(kind: type[TableMechanism]) -> None:
    """To the bit: each row's noise is its own. The others are zero and stay so."""
    rows = 30_000
    selected = np.random.default_rng(0).random(rows) < 0.4

    def trained(mask: Any) -> Any:
        array = np.full((rows, DIM), 0.5, np.float32)
        tables = _mechanism(kind, array, _update())
        if mask is not None:
            tables.select(mask)
        for t in range(STEPS):
            read = _touched(t)
            read = read if mask is None else read[mask[read]]
            tables.bring_up_to_date(read)
            tables.step(KnownSums(read, np.full((len(read), DIM), 2.0)))
        tables.flush()
        tables.hide_low_bits()
        return array

    whole, part = trained(None), trained(selected)
    assert np.array_equal(part[selected], whole[selected])
    assert not part[~selected].any()
    assert np.mean(whole[~selected] != 0) > 0.99


def test_parts_of_a_model_share_the_selection_of_a_table() -> None:
    schema = schema_of()
    dims = {"a": 3, "s": 2, "shared": 3}
    layout = build_layout(schema, [("", dims), (".linear", dict.fromkeys(dims, 1))])
    selection = some_rows(schema, 4)
    for group in layout.groups:
        mask = selection.of_group(group)
        assert len(mask) == group.num_rows
        for name, base in group.bases.items():
            table = name.removesuffix(".linear")
            assert np.array_equal(mask[base : base + ROWS], selection.tables[table])


def test_rows_pass_at_the_threshold_and_above_it() -> None:
    presence = Presence(schema_of())
    noisy = np.arange(presence.size, dtype=np.float64)
    tables = presence.selected(noisy, 9.0).tables
    assert list(tables) == ["a", "shared", "s"]
    assert not tables["a"].any()
    assert tables["shared"].tolist() == [False, False, *[True] * 5]
    assert tables["s"].all()


def test_a_selection_is_kept_with_one_bit_a_row() -> None:
    schema = schema_of()
    selection = some_rows(schema, 1)
    arrays = selection.to_arrays()
    assert sum(array.nbytes for array in arrays.values()) == 3
    again = Selection.from_arrays(arrays, schema)
    assert again is not None
    assert again.counts == selection.counts
    for table, rows in selection.tables.items():
        assert np.array_equal(again.tables[table], rows)
    assert Selection.from_arrays({"array.x": np.zeros(3, np.uint8)}, schema) is None


def test_without_tables_there_is_nothing_to_select() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", numeric=["n"])
    with pytest.raises(SchemaError, match="to select rows of tables for"):
        Presence(schema)
