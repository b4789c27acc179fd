"""Chunks of whole units: where they are cut, that nothing is lost, and that sums do not depend on it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest
from brute_force import perturb
from hypothesis import given, settings
from hypothesis import strategies as st

import dpads
from dpads import jax_chunks, jax_clip
from dpads.jax_batches import Loading, Share, Sizes, padded
from dpads.jax_chunks import Chunks, cut_up, examples_at_a_time
from dpads.jax_clip import Clip
from dpads.models.jax_losses import JaxTargets
from dpads.row_sums import batch_reads

SCHEMA = dpads.FeatureSchema(
    task="ctr",
    label="y",
    categorical=["a", "b", "c"],
    bags=[dpads.Bag("tags", weights="w")],
    numeric=["x"],
    tables={"shared": ["a", "b"]},
    buckets=7,
)
MODEL = perturb(dpads.models.Mlp(embedding_dim=2, hidden=(3,)).init(SCHEMA), 1)


@pytest.mark.parametrize("expected", [1, 60, 1024, 4096, 65536])
def test_a_chunk_has_room_for_what_is_expected_and_little_more(expected: int) -> None:
    size = examples_at_a_time(expected, 1024)
    assert size % 8 == 0
    assert (
        96 < size < 1.15 * 1024 + 96
    )  # what is cut of a group is too large for float32, but its end
    rng = np.random.default_rng(expected)
    number = max(round(expected / 72), 1)
    chunks = []
    for _ in range(100):
        lengths = rng.multinomial(rng.poisson(expected), np.ones(number) / number)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        chunks.append(Chunks.of_groups(bounds, size).number)
    least = max(round(expected / 1024), 1)
    assert sum(count <= least for count in chunks) >= 95
    assert least * size <= 1.12 * expected + 104
    assert examples_at_a_time(expected, 1024, longest=5000) == 5000


@given(
    lengths=st.lists(st.integers(0, 9), max_size=30),
    size=st.integers(1, 20),
    spare=st.integers(0, 2),
)
def test_chunks_have_whole_groups_and_every_example_once(
    lengths: list[int], size: int, spare: int
) -> None:
    bounds = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)
    chunks = Chunks.of_groups(bounds, size)
    cuts = chunks.cuts.tolist()
    assert (cuts[0], cuts[-1]) == (0, bounds[-1])
    assert all(0 < end - begin <= size for begin, end in pairwise(cuts))
    for begin, end in pairwise(bounds.tolist()):
        inside = [cut for cut in cuts if begin < cut < end]
        assert end - begin > size or not inside  # only what is larger than a chunk is cut
        if inside:
            assert begin in cuts
            assert [cut - begin for cut in inside] == list(range(size, end - begin, size))
    for first, third in zip(cuts, cuts[2:], strict=False):
        assert third - first > size  # two that follow each other do not fit into one
    count = chunks.number + spare
    values = np.arange(1, bounds[-1] + 1)
    arranged = cut_up(values, chunks.cuts, count, size, 0)
    assert arranged.shape == (count, size)
    assert arranged[arranged > 0].tolist() == values.tolist()
    assert arranged.reshape(-1)[chunks.positions()].tolist() == values.tolist()
    within = chunks.groups(chunks.most_groups + spare, count)
    found = []
    for number, own in enumerate(within):
        assert np.all(np.diff(own) >= 0)
        held = chunks.cuts[number + 1] - chunks.cuts[number] if number < chunks.number else 0
        assert (own[0], own[-1]) == (0, held)
        found += [(b + cuts[min(number, chunks.number)], e - b) for b, e in pairwise(own) if e > b]
    marks = sorted({*bounds.tolist(), *cuts})
    assert found == [(b, e - b) for b, e in pairwise(marks)]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    at=st.integers(0, 11),
    size=st.integers(2, 12),
)
def test_a_unit_more_cuts_no_other_group_than_its_own(
    lengths: list[int], at: int, size: int
) -> None:
    at %= len(lengths)
    parts = []
    for more in (0, 1):
        own = [length + (more if i == at else 0) for i, length in enumerate(lengths)]
        bounds = np.concatenate([[0], np.cumsum(own)]).astype(np.int64)
        cuts = Chunks.of_groups(bounds, size).cuts
        parts.append(
            [
                (cuts[(cuts > begin) & (cuts < end)] - begin).tolist()
                for begin, end in pairwise(bounds)
            ]
        )
    assert all(a == b for i, (a, b) in enumerate(zip(*parts, strict=True)) if i != at)


@st.composite
def batches_of_many(draw: Any) -> dpads.SparseBatch:
    """Some tens of examples: rows read twice, padding, bags; units with several examples, or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = None
    if draw(st.booleans()):
        lengths = rng.integers(0, 4, draw(st.integers(0, 25)))
    size = draw(st.integers(0, 40)) if lengths is None else int(lengths.sum())
    of_bag = rng.integers(0, 4, size)
    values = rng.integers(-1, 7, of_bag.sum())
    return dpads.SparseBatch.from_arrays(
        ids={
            "a": rng.integers(-1, 7, size),
            "b": rng.integers(-1, 7, size),
            "c": rng.integers(-1, 7, size),
            "tags": (values, np.concatenate([[0], np.cumsum(of_bag)]), rng.random(len(values))),
        },
        dense=rng.normal(size=(size, 1)),
        labels=rng.integers(0, 2, size),
        weights=rng.random(size),
        unit_offsets=None if lengths is None else np.concatenate([[0], np.cumsum(lengths)]),
    )


@given(batch=batches_of_many(), clip=st.sampled_from([0.05, 0.5, np.inf]))
@settings(max_examples=25)
def test_a_batch_in_many_chunks_is_clipped_as_in_torch(batch: Any, clip: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax_chunks, "LARGEST_GROUP", 4)
        patch.setattr(jax_clip, "MOST_AT_A_TIME", 4)
        found = dpads.clipped_gradients(MODEL, batch, l2_clip_norm=clip, backend="jax")
    expected = dpads.clipped_gradients(MODEL, batch, l2_clip_norm=clip)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-5, atol=1e-6)
    for name, value in expected.dense.items():
        np.testing.assert_allclose(found.dense[name], value, rtol=1e-4, atol=1e-6)
    for name, (rows, values) in expected.tables.items():
        np.testing.assert_array_equal(found.tables[name][0], rows)
        np.testing.assert_allclose(found.tables[name][1], values, rtol=1e-4, atol=1e-6)


@given(batch=batches_of_many(), spare=st.integers(1, 3), size=st.sampled_from([8, 16]))
@settings(max_examples=15)
def test_chunks_without_examples_cost_nothing_and_change_no_bit(
    batch: Any, spare: int, size: int
) -> None:
    clip = jax.jit(
        Clip(MODEL.description.jax_tower(MODEL.layout, "ctr"), MODEL.layout, 0.3, 2.0**-12).sums
    )
    reads = batch_reads(MODEL, batch)
    loading = Loading(Share(batch, reads, None), MODEL.layout, size)
    needs, found = loading.needs(), []
    for more in (0, spare):
        sizes = Sizes()
        for name in needs:
            if "places" in name:
                sizes.of(name, 64)
        rows = {
            name: padded(MODEL.arrays[name][own.runs.rows], 128, 0.0) for name, own in reads.items()
        }
        ready = loading.arrays(
            MODEL.output,
            {**needs, "chunks": 8 + more},
            {name: np.arange(len(own.runs.rows), dtype=np.int32) for name, own in reads.items()},
            dict.fromkeys(reads, 128),
            sizes,
        )
        assert int(ready.chunks[0]) == (needs["chunks"] if batch.num_examples else 0)
        # whatever lies beyond the last chunk that counts is not looked at
        for values in (ready.dense, ready.targets.labels, ready.targets.weights):
            values[int(ready.chunks[0]) :] = 1.0
        with jax.enable_x64(True):
            sums, norms = clip(rows, dict(MODEL.dense), ready)
        assert len(norms) == 8 + more
        found.append([*jax.tree.leaves(sums), loading.norms(np.asarray(norms))])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(one).all()


@pytest.mark.parametrize("expected", [200, 1024, 4096])
@pytest.mark.parametrize("hidden", [(128, 64), (598, 50)])
def test_an_examples_bits_are_its_own_wherever_it_stands_in_a_chunk(
    expected: int, hidden: tuple[int, ...]
) -> None:
    """Chunks and layers of real sizes: a unit more moves all that follow it to other places."""
    schema = dpads.FeatureSchema(
        task="ctr",
        label="y",
        categorical=[f"c{i}" for i in range(26)],
        numeric=[f"n{i}" for i in range(13)],
        buckets=3,
    )
    model = perturb(dpads.models.Mlp(embedding_dim=16, hidden=hidden).init(schema), 2)
    tower, size = (
        model.description.jax_tower(model.layout, "ctr"),
        examples_at_a_time(expected, 1024),
    )
    rng = np.random.default_rng(expected)
    features = rng.normal(size=(size, model.layout.width)).astype(np.float32)
    labels, weights = rng.integers(0, 2, size).astype(np.float32), np.ones(size, np.float32)
    gradients = jax.jit(lambda f, y: tower.gradients(model.dense, f, JaxTargets(y, weights, None)))

    def bits(order: Any) -> list[np.ndarray]:
        with jax.enable_x64(True):
            found = jax.tree.leaves(gradients(features[order], labels[order]))
        return [np.asarray(value) for value in found]

    whole = bits(np.arange(size))
    for order in (np.roll(np.arange(size), 1), rng.permutation(size), np.full(size, size - 1)):
        for one, other in zip(whole, bits(order), strict=True):
            np.testing.assert_array_equal(one[order], other)
