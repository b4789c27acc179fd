"""For every model and task: autograd one unit at a time, the clip norm, bits of one's own, the law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from brute_force import as_dense, batches, clipped, perturb
from hypothesis import given, settings
from hypothesis import strategies as st
from models_under_test import MODELS, TASKS, model_of
from scipy import stats

import dpads
from dpads.accounting.ledger import Ledger
from dpads.clipping import clip_batch
from dpads.kernels.workers import set_threads
from dpads.plan import PrivacySpec, resolve
from dpads.row_sums import batch_reads
from dpads.training import Performance, Trainer, TrainingSettings

every_model = pytest.mark.parametrize(
    "description", MODELS, ids=lambda d: d.name + "-wide" * getattr(d, "wide", False)
)
every_task = pytest.mark.parametrize("task", TASKS)


@every_model
@every_task
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_equals_autograd_one_unit_at_a_time(description: Any, task: str, data: Any) -> None:
    model = model_of(description, task, data.draw(st.sampled_from([0, 2])))
    perturb(model, data.draw(st.integers(0, 100)))
    batch = data.draw(batches(model.schema))
    clip = data.draw(st.sampled_from([0.1, 1.0, 30.0, float("inf")]))
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=clip)
    norms, total = clipped(model, batch, clip)
    np.testing.assert_allclose(out.norms, norms, rtol=3e-5, atol=1e-6)
    found = as_dense(model, out)
    assert set(found) == set(total)
    scale = max([1.0, *(float(np.abs(t).max(initial=0.0)) for t in total.values())])
    for name, expected in total.items():
        np.testing.assert_allclose(
            found[name], expected, rtol=1e-4, atol=4e-6 * scale, err_msg=name
        )


@every_model
@every_task
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_each_unit_adds_at_most_the_clip_norm(description: Any, task: str, data: Any) -> None:
    model = perturb(model_of(description, task), 1)
    batch = data.draw(batches(model.schema))
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=0.25)
    norm = np.sqrt(sum(float((v**2).sum()) for v in as_dense(model, out).values()))
    assert norm <= 0.25 * batch.num_units * (1 + 1e-9) + 1e-12


def rows_of(size: int, seed: int, task: str = "ctr", units: bool = False) -> dict[str, Any]:
    """Arguments of `SparseBatch.from_arrays` for `schema_of`."""
    rng = np.random.default_rng(seed)
    ids: dict[str, Any] = {name: rng.integers(-1, 7, size) for name in "abc"}
    bag = rng.integers(-1, 7, 2 * size)
    ids["s"] = (bag, np.arange(size + 1) * 2, rng.uniform(0, 2, 2 * size))
    ids["m"] = (bag, np.arange(size + 1) * 2, None)
    count = task == "count"
    return {
        "ids": ids,
        "dense": rng.normal(size=(size, 2)),
        "labels": rng.poisson(1.5, size) if count else rng.integers(0, 2, size),
        "exposure": rng.uniform(0.1, 2, size) if count else None,
        "unit_offsets": np.arange(0, size + 1, 2) if units else None,
    }


def taken(rows: dict[str, Any], kept: Any) -> Any:
    """The batch of some of the rows, in the given order."""
    ids, kept = {}, np.asarray(kept, np.int64)
    for name, value in rows["ids"].items():
        if isinstance(value, tuple):
            places = (2 * kept[:, None] + [0, 1]).ravel()
            weights = None if value[2] is None else value[2][places]
            ids[name] = (value[0][places], np.arange(len(kept) + 1) * 2, weights)
        else:
            ids[name] = value[kept]
    others = {
        k: None if rows[k] is None else rows[k][kept] for k in ("dense", "labels", "exposure")
    }
    return dpads.SparseBatch.from_arrays(ids=ids, **others)


@every_model
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("units", [False, True])
def test_a_unit_that_is_not_finite_leaves_the_others_unchanged_to_the_bit(
    description: Any, value: float, units: bool
) -> None:
    size = 40
    rows = rows_of(size, 3, units=units)
    model = perturb(model_of(description), 5)
    for at in (0, 17, 39):
        keep = np.ones(size)
        keep[at] = 0.0  # a loss weight of zero: the same batch with a row that adds zero
        if units:
            keep[at - at % 2 : at - at % 2 + 2] = 0.0
        bad = rows["dense"].copy()
        bad[at] = value
        batch = dpads.SparseBatch.from_arrays(**{**rows, "dense": bad})
        out = dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
        batch = dpads.SparseBatch.from_arrays(**{**rows, "weights": keep})
        without = dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
        if np.isfinite(out.norms[at // 2 if units else at]):
            assert value == 3e38  # large but finite: clipped like any other
            continue
        first, second = as_dense(model, out), as_dense(model, without)
        assert all(np.array_equal(first[name], second[name]) for name in first)


@every_model
@every_task
def test_an_examples_bits_are_its_own(description: Any, task: str) -> None:
    """Norms and the gradients of table rows do not depend on place, neighbours, threads or size."""
    size = 700
    rows = rows_of(size, 4, task)
    model = perturb(model_of(description, task), 2)
    whole = dpads.clipped_gradients(model, taken(rows, np.arange(size)), l2_clip_norm=1.0).norms
    rng = np.random.default_rng(0)
    for kept in (rng.permutation(size), np.arange(0, size, 3), [1], [699], np.arange(257)):
        out = dpads.clipped_gradients(model, taken(rows, np.asarray(kept)), l2_clip_norm=1.0)
        assert np.array_equal(out.norms, whole[kept])
    try:
        set_threads(3)
        out = dpads.clipped_gradients(model, taken(rows, np.arange(size)), l2_clip_norm=1.0)
    finally:
        set_threads(None)
    assert np.array_equal(out.norms, whole)


@every_model
@every_task
def test_an_empty_batch_gives_zeros(description: Any, task: str) -> None:
    model = perturb(model_of(description, task), 1)
    out = dpads.clipped_gradients(model, taken(rows_of(2, 0, task), []), l2_clip_norm=1.0)
    assert len(out.norms) == 0
    assert all(not v.any() for v in as_dense(model, out).values())


@every_model
def test_neighbouring_sums_differ_by_at_most_the_sensitivity(description: Any) -> None:
    from dpads.kernels.clip import MEAN_GROUP

    size, clip = 20 * MEAN_GROUP, 0.05
    rows = {k: v for k, v in rows_of(1, 7).items() if v is not None}
    model = perturb(model_of(description), 3)
    one = {
        name: (
            np.tile(v[0], size),
            np.arange(size + 1) * 2,
            v[2] if v[2] is None else np.tile(v[2], size),
        )
        if isinstance(v, tuple)
        else np.tile(v, size)
        for name, v in rows["ids"].items()
    }
    aligned = {"ids": one, "dense": np.tile(rows["dense"], (size, 1)), "labels": np.ones(size)}
    rng = np.random.default_rng(0)
    aligned["dense"] += 1e-3 * rng.random(aligned["dense"].shape)
    bounds = np.arange(0, size + 1, MEAN_GROUP)

    def total(kept: Any, groups: Any) -> Any:
        batch = taken({**aligned, "exposure": None}, kept)
        sums = clip_batch(model, batch, batch_reads(model, batch), clip, groups=groups)[0]
        parts = [value.ravel() for value in sums.dense.values()]
        return np.concatenate([*parts, *(g.values.ravel() for g in sums.groups.values())])

    whole = total(np.arange(size), bounds)
    for at in (0, size // 2, size - 1):
        fewer = total(np.delete(np.arange(size), at), bounds - (bounds > at))
        assert 0.99 * clip < np.linalg.norm(whole - fewer) <= clip * (1 + 2.0**-10)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """4,000 examples, each with an id of its own among 12,000 rows."""
    folder: Path = tmp_path_factory.mktemp("law")
    rng = np.random.default_rng(0)
    size = 4000
    log = {"y": rng.integers(0, 2, size), "n": rng.normal(size=size)}
    log["a"] = rng.permutation(size)
    log["b"] = rng.integers(0, 5, size)
    pl.DataFrame(log).write_parquet(folder / "log.parquet")
    schema = dpads.FeatureSchema(
        task="ctr", label="y", numeric=["n"], categorical=["a", "b"], buckets={"a": 12_000, "b": 6}
    )
    return dpads.prepare(folder / "log.parquet", schema, out=folder / "store")


@every_model
def test_lazy_noise_has_the_law_of_dense_noise(description: Any, store: Any) -> None:
    iterations, batch = 6, 1000
    spec = PrivacySpec(
        noise_multiplier=2.0, delta=1e-6, sampling_prob=batch / 4000, iterations=iterations
    )
    plan = resolve(spec, expected_batch_size=batch, epochs=None, l2_clip_norm=1.0)

    def moved(table_noise: Any, seed: int) -> dict[str, Any]:
        run = TrainingSettings(
            noise_seed=seed,
            table_noise=table_noise,
            table_optimizer=dpads.Sgd(learning_rate=5.0, schedule="cosine", weight_decay=0.01),
        )
        trainer = Trainer(store, description, plan, run, Performance(threads=1), Ledger())
        start = {name: table.copy() for name, table in trainer.read_model().tables.items()}
        trainer.run()
        trainer.finish()
        model = trainer.read_model()
        return {n: t.astype(float) - start[n] for n, t in model.tables.items()}

    def one_law(ours: Any, theirs: Any) -> bool:
        alike = stats.ks_2samp(ours, theirs).pvalue > 1e-4
        return alike and abs(ours.std() / theirs.std() - 1) < 5 / np.sqrt(ours.size)

    lazy, dense = moved("lazy", 1), moved("dense", 2)
    for name in (name for name in lazy if name.startswith("a")):
        ours, theirs = lazy[name].ravel(), dense[name].ravel()
        assert one_law(ours, theirs)
        assert not one_law(0.9 * ours, theirs)
        assert not one_law(1.1 * ours, theirs)
