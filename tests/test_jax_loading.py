"""Batches on their way to devices: cut, padded and placed, with nothing lost on the way."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest
from host_threads import together
from hypothesis import given, settings
from hypothesis import strategies as st

import dpads
from dpads.drawing import Piece
from dpads.hosts import Hosts
from dpads.jax_batches import Sizes, bucket, repeated_pairs, shares_of
from dpads.jax_hosts import Devices
from dpads.jax_loading import Loaded, Loader
from dpads.jax_rows import Rows
from dpads.kernels.lookup import Places
from dpads.kernels.merge import merge_runs
from dpads.row_sums import Reads, batch_reads

SCHEMA = dpads.FeatureSchema(
    task="ctr",
    label="y",
    categorical=["a", "b"],
    bags=[dpads.Bag("tags", weights="w")],
    numeric=["x"],
    tables={"shared": ["a", "b"]},
    buckets=7,
)


@given(
    numbers=st.sets(st.integers(0, 99)),
    devices=st.integers(1, 8),
    spare=st.integers(0, 3),
    data=st.data(),
)
def test_rows_are_found_where_they_were_put(
    numbers: set[int], devices: int, spare: int, data: Any
) -> None:
    block = -(-100 // devices)
    rows = Rows.of(np.array(sorted(numbers), np.int64), devices, block)
    size = rows.most + spare
    arranged = rows.arranged(rows.numbers, size, -1)
    assert arranged.shape == (devices * size,)
    assert sorted(arranged[arranged >= 0].tolist()) == sorted(numbers)
    for device, own in enumerate(arranged.reshape(devices, size)):
        held = own[own >= 0]
        assert np.all(held // block == device)
        assert np.all(np.diff(held) > 0)
        assert np.all(own[: len(held)] >= 0)  # padding comes last
    wanted = data.draw(st.lists(st.sampled_from(sorted(numbers)))) if numbers else []
    found = rows.positions(np.array(wanted, np.int64), size)
    assert arranged[found].tolist() == wanted
    assert arranged[rows.positions(rows.numbers, size)].tolist() == sorted(numbers)


@given(
    places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=20),
    first=st.integers(0, 4),
)
def test_places_that_share_unit_and_row_are_paired(
    places: list[tuple[int, int]], first: int
) -> None:
    places = sorted(places, key=lambda item: item[0])  # places come example by example
    units = np.array([unit for unit, _ in places], np.int32)
    chunks = (units >= first).astype(np.int32)  # two of them, of whole units
    rows = np.array([row for _, row in places], np.int64)
    nothing = np.zeros(len(rows), np.int32)
    reads = Reads(
        Places(rows, nothing, nothing.astype(np.float32), units, np.zeros(1, np.int64)),
        merge_runs(rows),
    )
    found = repeated_pairs(reads, units, chunks, 2)
    several = [key for key in set(places) if places.count(key) > 1]
    assert sorted(set(found.numbers.tolist())) == list(range(len(several)))
    assert np.all(np.diff(found.numbers) >= 0)
    for chunk, (begin, end) in enumerate(pairwise(found.cuts)):
        assert np.all(chunks[found.places[begin:end]] == chunk)
    assert sorted(found.places.tolist()) == [
        k for k, key in enumerate(places) if places.count(key) > 1
    ]
    together: dict[int, set[tuple[int, int]]] = {}
    for place, number in zip(found.places.tolist(), found.numbers.tolist(), strict=True):
        together.setdefault(number, set()).add(places[place])
    assert sorted(next(iter(keys)) for keys in together.values()) == sorted(several)
    assert all(len(keys) == 1 for keys in together.values())


def batch_of(size: int, unit_offsets: np.ndarray | None) -> dpads.SparseBatch:
    rng = np.random.default_rng(size)
    lengths = rng.integers(0, 4, size)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.integers(-1, 7, offsets[-1])
    return dpads.SparseBatch.from_arrays(
        ids={
            "a": rng.integers(-1, 7, size),
            "b": rng.integers(0, 7, size),
            "tags": (values, offsets, rng.random(len(values))),
        },
        dense=rng.normal(size=(size, 1)),
        labels=rng.integers(0, 2, size),
        weights=rng.random(size),
        unit_offsets=unit_offsets,
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("users", [False, True])
@pytest.mark.parametrize("size", [0, 1, 12])
def test_a_batch_is_cut_into_whole_units_in_order(count: int, users: bool, size: int) -> None:
    model = dpads.models.Logistic().init(SCHEMA)
    offsets = None
    groups: np.ndarray | None = np.array([0, size // 3, size // 3, size])
    if users:
        offsets, groups = np.array([0, *range(min(size, 2), size + 1, 2)][: size + 1]), None
        offsets = np.unique(np.append(offsets, size))
    batch = batch_of(size, offsets)
    piece = Piece(batch, batch_reads(model, batch), groups)
    shares = shares_of(piece, model, {}, count)
    assert len(shares) == count
    for name in ("scalar_ids", "dense", "labels", "weights"):
        parts = [getattr(share.batch, name) for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(batch, name))
    (group,) = piece.reads
    rows = [share.reads[group].places.rows for share in shares]
    np.testing.assert_array_equal(np.concatenate(rows), piece.reads[group].places.rows)
    assert sum(share.batch.num_units for share in shares) == batch.num_units
    if users:
        lengths = [np.diff(share.batch.unit_offsets) for share in shares]
        np.testing.assert_array_equal(np.concatenate(lengths), np.diff(offsets))
    else:
        assert sum(len(share.groups) - 1 for share in shares) == 3
        assert all(share.groups[-1] == share.batch.num_examples for share in shares)


@pytest.mark.parametrize("devices", [2, 3])
@settings(max_examples=50)
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=8), at=st.integers(0, 7))
def test_a_unit_more_changes_no_other_devices_groups(
    devices: int, sizes: list[int], at: int
) -> None:
    """Groups go to devices by public numbers: one longer group leaves the others where they were."""
    at %= len(sizes)
    model = dpads.models.Logistic().init(SCHEMA)
    found = []
    for more in (0, 1):
        lengths = [size + (more if i == at else 0) for i, size in enumerate(sizes)]
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        batch = batch_of(int(bounds[-1]), None)
        shares = shares_of(Piece(batch, batch_reads(model, batch), bounds), model, {}, devices)
        found.append([np.diff(share.groups) for share in shares])
    changed = 0
    for before, after in zip(*found, strict=True):
        assert len(before) == len(after)
        changed += int((before != after).sum())
    assert changed == 1


def test_sizes_grow_and_never_shrink() -> None:
    sizes = Sizes()
    found = [sizes.of("units", count) for count in (0, 3, 100, 20, 0, 113)]
    assert found == sorted(found)
    assert found[2] >= 100
    assert found[-1] >= 113
    assert [bucket(n) for n in (0, 1, 16, 17, 24, 25, 33, 1000)] == [
        16,
        16,
        16,
        18,
        24,
        26,
        36,
        1024,
    ]


def test_processes_agree_on_sizes_and_rows_however_unequal_their_batches() -> None:
    model, sizes = dpads.models.Mlp(embedding_dim=2, hidden=(3,)).init(SCHEMA), (3, 0, 400)

    def work(hosts: Hosts) -> Loaded:
        loader = Loader(model, Devices(hosts), at_a_time=96)
        batch = batch_of(sizes[hosts.number], None)
        groups = np.array([0, batch.num_examples])
        return loader.load(Piece(batch, batch_reads(model, batch), groups))

    first, *others = together(3, work)
    for other in others:
        for mine, its in zip(
            jax.tree.leaves(first.batch), jax.tree.leaves(other.batch), strict=True
        ):
            assert mine.shape == its.shape
        for name, rows in first.rows.items():
            assert len(rows.numbers) > 0
            np.testing.assert_array_equal(rows.numbers, other.rows[name].numbers)
            np.testing.assert_array_equal(first.touched[name], other.touched[name])
