"""Noise on the tower: every coordinate of every parameter its own draw, at the accounted scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import dpads
from dpads.clipping import ClippedSum, Workspace, clip_batch
from dpads.kernels import workers
from dpads.kernels.gaussian import normals
from dpads.noise import NOISED_AT_A_TIME, NoiseMechanism, RunKeys, public_grid
from dpads.row_sums import batch_reads

KEYS = RunKeys(bytes(32), "ab")
STDDEV, DIVISOR = 1.7, 512.0
SHAPES = {"wide": (3, NOISED_AT_A_TIME), "odd": (3, 7), "long": (2 * NOISED_AT_A_TIME + 5,)}


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    yield
    workers.set_threads(None)


def sums(seed: int = 0) -> ClippedSum:
    rng = np.random.default_rng(seed)
    dense = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return ClippedSum(dense, {}, 1.0)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_gradient_is_sum_plus_addressed_noise_on_the_grid_over_the_divisor(
    threads: int,
) -> None:
    workers.set_threads(threads)
    mechanism = NoiseMechanism(KEYS, noise_stddev=STDDEV, divisor=DIVISOR)
    total = sums()
    noisy = mechanism.privatize(total, 5)
    grid = public_grid(STDDEV)
    for name, value in noisy.values.items():
        draws = normals(KEYS.key("tower_noise", name), 5, value.size).astype(np.float64)
        exact = total.dense[name] + STDDEV * draws.reshape(value.shape)
        assert np.array_equal(value, (np.rint(exact / grid) * grid / DIVISOR).astype(np.float32))


def test_no_draw_serves_two_coordinates_parameters_or_iterations() -> None:
    mechanism = NoiseMechanism(KEYS, noise_stddev=STDDEV, divisor=DIVISOR)
    zeros = ClippedSum({name: np.zeros(shape) for name, shape in SHAPES.items()}, {}, 1.0)
    first, second = (mechanism.privatize(zeros, t).values for t in (0, 1))
    stretches = [
        values[name].reshape(-1)[at : at + NOISED_AT_A_TIME].astype(np.float64)
        for values in (first, second)
        for name in ("wide", "long")
        for at in (0, NOISED_AT_A_TIME)
    ]
    correlation = np.corrcoef(stretches)
    off_diagonal = correlation[~np.eye(len(stretches), dtype=bool)]
    assert np.abs(off_diagonal).max() < 6 / np.sqrt(NOISED_AT_A_TIME)
    spread = np.concatenate(stretches).std() * DIVISOR
    assert spread == pytest.approx(STDDEV, rel=0.01)


def batch_of(size: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return dpads.SparseBatch.from_arrays(
        ids={"a": rng.integers(0, 50, size), "b": rng.integers(-1, 50, size)},
        dense=rng.normal(size=(size, 3)),
        labels=rng.integers(0, 2, size),
    )


def test_memory_used_again_and_other_threads_leave_the_clipped_sum_as_it_is() -> None:
    schema = dpads.FeatureSchema(
        task="ctr", label="y", numeric=["n", "m", "o"], categorical=["a", "b"], buckets=50
    )
    model = dpads.models.Mlp(embedding_dim=4, hidden=(9, 5)).init(schema, seed=1)
    space = Workspace()
    for threads, size in ((1, 2500), (3, 2500), (2, 700), (2, 0), (3, 65), (2, 2500)):
        batch = batch_of(size, seed=size)
        reads = batch_reads(model, batch)
        workers.set_threads(1)
        expected, norms = clip_batch(model, batch, reads, 0.3)
        workers.set_threads(threads)
        found, again = clip_batch(model, batch, reads, 0.3, space)
        np.testing.assert_allclose(again, norms, rtol=1e-5)
        for name, value in expected.dense.items():
            np.testing.assert_allclose(found.dense[name], value, rtol=1e-5, atol=1e-5)
        for name, rows in expected.groups.items():
            assert np.array_equal(found.groups[name].rows, rows.rows)
            np.testing.assert_allclose(found.groups[name].values, rows.values, rtol=1e-5, atol=1e-6)
