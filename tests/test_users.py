"""Users as units: capped by their own rows alone, clipped as one, added or removed as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from brute_force import clipped, perturb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_logs import WITH_USER, log, make, rows_of

import dpads
from dpads.accounting.ledger import Ledger
from dpads.clipping import clip_batch
from dpads.drawing import BatchSource
from dpads.plan import PrivacySpec, resolve
from dpads.rounding import cancellation_floor
from dpads.row_sums import batch_reads
from dpads.sampling import Grouping, PoissonSampler
from dpads.training import Performance, Trainer, TrainingSettings
from dpads.units import units_of

KEY = np.arange(8, dtype=np.uint32)
MODELS = [dpads.models.Logistic(), dpads.models.Mlp(embedding_dim=3, hidden=(5,))]
SPEC = PrivacySpec(
    noise_multiplier=0.0,
    delta=1e-6,
    unit="user",
    max_examples_per_unit=3,
    sampling_prob=1.0,
    iterations=1,
)


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """60 rows of 12 users, some of them identical."""
    rows = log(50, seed=4, users=12)
    return pl.concat([rows, rows[:10]])


@pytest.fixture(scope="module")
def store(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> dpads.ExampleStore:
    return make(frame, WITH_USER, tmp_path_factory.mktemp("users"))


def kept_of(store: dpads.ExampleStore, frame: pl.DataFrame, cap: int) -> dict[int, list[Any]]:
    """Each user's kept rows, in some fixed order."""
    capped = store.capped(cap, seed=5)
    rows = rows_of(capped.read(np.arange(len(capped))))
    users = frame["uid"].to_numpy()[capped.input_rows]
    return {
        int(user): sorted(
            repr(row) for row, owner in zip(rows, users, strict=True) if owner == user
        )
        for user in set(users.tolist())
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(data=st.data())
def test_kept_rows_of_everybody_else_do_not_change(
    frame: pl.DataFrame, store: dpads.ExampleStore, data: Any, tmp_path_factory: Any
) -> None:
    cap = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    user = int(rng.integers(0, 12))
    before = kept_of(store, frame, cap)
    assert max(map(len, before.values())) <= cap
    others = frame.filter(pl.col("uid") != user)
    more = pl.concat(
        [frame, log(6, seed=int(rng.integers(1, 99))).with_columns(uid=pl.lit(user, pl.Int64))]
    )
    for changed in (others, more.sample(fraction=1.0, shuffle=True, seed=int(rng.integers(0, 99)))):
        after = kept_of(make(changed, WITH_USER, tmp_path_factory.mktemp("changed")), changed, cap)
        for name, rows in before.items():
            if name != user:
                assert after[name] == rows
    assert user not in kept_of(make(others, WITH_USER, tmp_path_factory.mktemp("o")), others, cap)


def test_capping_keeps_as_many_as_it_may_and_a_second_time_changes_nothing(
    frame: pl.DataFrame, store: dpads.ExampleStore
) -> None:
    counts = frame["uid"].value_counts()["count"].to_numpy()
    for cap in (1, 3, 100):
        capped = store.capped(cap, seed=0)
        assert len(capped) == np.minimum(counts, cap).sum()
        assert capped.num_users == store.num_users
        assert capped.capped(cap, seed=1) is capped
    assert store.capped(100, seed=0) is store


def test_bad_caps_and_logs_without_users_are_refused(train_store: Any, store: Any) -> None:
    for cap in (0, -1, True):
        with pytest.raises(dpads.StoreError, match="at least 1"):
            store.capped(cap, seed=0)
    with pytest.raises(dpads.SchemaError, match="user"):
        train_store.capped(3, seed=0)
    with pytest.raises(dpads.ConfigError, match=r"no user has more than.*capped"):
        units_of(store, SPEC)
    with pytest.raises(dpads.ConfigError, match="max_examples_per_unit"):
        PrivacySpec(epsilon=1.0, unit="user")
    with pytest.raises(dpads.ConfigError, match="whole number >= 1"):
        PrivacySpec(epsilon=1.0, unit="user", max_examples_per_unit=0)


def test_a_batch_of_users_holds_all_of_their_kept_rows(store: Any) -> None:
    capped = store.capped(3, seed=0)
    units = units_of(capped, SPEC)
    for drawn in ([], [4], [0, 3, 11], list(range(12))):
        batch = units.read(np.array(drawn, np.int64))
        assert batch.num_units == len(drawn)
        expected = [np.arange(*capped.user_offsets[[u, u + 1]]) for u in drawn]
        rows = np.concatenate([*expected, np.zeros(0, np.int64)])
        assert rows_of(batch) == rows_of(capped.read(rows))
        np.testing.assert_array_equal(np.diff(batch.unit_offsets), [len(e) for e in expected])


@pytest.mark.parametrize("description", MODELS, ids=lambda m: m.name)
@pytest.mark.parametrize("pieces", [None, 7, 1])
def test_one_iteration_is_the_sum_of_users_clipped_as_one(
    store: Any, description: Any, pieces: int | None
) -> None:
    capped = store.capped(3, seed=0)
    plan = resolve(SPEC, expected_batch_size=10, epochs=None, l2_clip_norm=0.4)
    sgd = dpads.Sgd(learning_rate=0.5)
    trainer = Trainer(
        capped,
        description,
        plan,
        TrainingSettings(noise_seed=1, table_optimizer=sgd, tower_optimizer=sgd),
        Performance(threads=1, physical_batch_size=pieces),
        Ledger(),
    )
    perturb(trainer.model, 3)
    before = {name: value.astype(np.float64) for name, value in trainer.model.state().items()}
    batch = units_of(capped, SPEC).read(np.arange(capped.num_users))
    norms, sums = clipped(trainer.model, batch, 0.4)
    assert (norms > 0.4).any()
    trainer.run()
    for name, value in trainer.model.state().items():
        np.testing.assert_allclose(value, before[name] - 0.05 * sums[name], rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("description", MODELS, ids=lambda m: m.name)
def test_a_user_more_or_less_moves_the_sum_by_at_most_the_sensitivity(
    store: Any, description: Any
) -> None:
    capped = store.capped(3, seed=0)
    model = perturb(description.init(capped.schema, seed=1), 3)
    sampler = PoissonSampler(0.7, 4, KEY)
    source = BatchSource(units_of(capped, SPEC), model, sampler, Grouping(3, KEY), None)

    def total(users: Any) -> dict[str, np.ndarray]:
        batch = units_of(capped, SPEC).read(users)
        out = clip_batch(model, batch, batch_reads(model, batch), 0.3)[0]
        full = {f"dense.{name}": value for name, value in out.dense.items()}
        for group in model.layout.groups:
            array = np.zeros((group.num_rows, group.dim))
            array[out.groups[group.name].rows] = out.groups[group.name].values
            full[group.name] = array
        return full

    for iteration in range(4):
        users = source.take(iteration).units
        whole = total(users)
        for user in users:
            part = total(users[users != user])
            square = sum(float(((whole[n] - part[n]) ** 2).sum()) for n in whole)
            assert np.sqrt(square) <= 0.3 * (1 + 2.0**-10)


def test_rows_of_many_users_that_nearly_cancel_stay_within_the_sensitivity() -> None:
    # Every user has four rows whose gradients almost cancel: rounding is of the order of the parts, not of
    # what is left of them, and 65,536 users' parts are in the sum.
    users, cap = 65_536, 4
    schema = dpads.FeatureSchema(task="ctr", label="y", numeric=["n"], categorical=["a"], buckets=3)
    model = dpads.models.Mlp(embedding_dim=2, hidden=(4,)).init(schema, seed=1)
    rng = np.random.default_rng(0)
    dense = np.repeat(rng.uniform(500, 900, users), cap)[:, None]
    dense *= 1 + rng.normal(0, 1e-6, dense.shape)
    # at weight zero the logit's gradient is 1/2 - y: two rows of each label
    for value in model.dense.values():
        value[...] = np.where(value == 0, 0, value) * 1e-6
    labels = np.tile([0, 1, 0, 1], users)
    ids = np.ones(users * cap, np.int64)
    floor = cancellation_floor(model.tower, users, cap)

    def total(first: int, last: int) -> Any:
        rows = slice(cap * first, cap * last)
        batch = dpads.SparseBatch.from_arrays(
            ids={"a": ids[rows]},
            dense=dense[rows],
            labels=labels[rows],
            unit_offsets=np.arange(0, cap * (last - first) + 1, cap),
        )
        reads = batch_reads(model, batch)
        return clip_batch(model, batch, reads, 1e-3, floor=floor)[0]

    whole = total(0, users)
    for part in (total(1, users), total(0, users - 1)):
        square = sum(float(((whole.dense[n] - part.dense[n]) ** 2).sum()) for n in whole.dense)
        for name, sums in whole.groups.items():
            square += float(((sums.values - part.groups[name].values) ** 2).sum())
        assert np.sqrt(square) <= 1e-3 * (1 + 2.0**-10)


@pytest.fixture(scope="module")
def user_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    log(3000, seed=1, users=400).write_parquet(path)
    return path


@pytest.mark.parametrize("unit", ["user", "example"])
def test_a_run_enforces_the_cap_and_states_the_unit(
    user_log: Path, tmp_path: Path, unit: str
) -> None:
    store = dpads.prepare(user_log, WITH_USER, out=tmp_path / "store")
    run = dpads.train(
        store,
        model=MODELS[0],
        privacy=PrivacySpec(noise_multiplier=1.0, delta=1e-6, unit=unit, max_examples_per_unit=4),
        expected_batch_size=50,
        epochs=1,
        statement={"tuning": "none", "asserted_by": "Ann, lead"},
        out=tmp_path / "run",
    )
    units = store.num_users if unit == "user" else len(store.capped(4, seed=7))
    assert run.plan.dataset_size == units
    assert run.plan.mechanism.sampling_prob == 50 / units
    data = run.statement().data
    bound = data["definition"]["unit_of_privacy"]["contribution_bound"]
    assert (bound["max_examples_per_user"], bound["enforced"]) == (4, True)
    assert data["guarantees"][0]["unit"] == unit
    users = [g for g in data["guarantees"] if g["unit"] == "user" and g["notion"] == "approx_dp"]
    assert [g["group_size"] for g in users] == ([1] if unit == "user" else [4])
    assert users[0]["value"]["epsilon"] >= data["guarantees"][0]["value"]["epsilon"]


def test_a_resumed_run_of_users_ends_with_the_same_parameters_to_the_bit(
    user_log: Path, tmp_path: Path
) -> None:
    store = dpads.prepare(user_log, WITH_USER, out=tmp_path / "store").capped(2, seed=0)
    spec = PrivacySpec(noise_multiplier=1.0, delta=1e-6, unit="user", max_examples_per_unit=2)
    plan = resolve(spec, expected_batch_size=40, epochs=1, store_units=store.num_users)
    parts = (store, MODELS[1], plan, TrainingSettings(noise_seed=3), Performance(threads=1))
    whole = Trainer(*parts, Ledger())
    whole.run()
    cut = Trainer(*parts, Ledger(), tmp_path / "c")
    for _ in range(4):
        cut.step()
    cut.save()
    cut.step()
    resumed = Trainer.resume(tmp_path / "c", *parts, Ledger())
    resumed.run()
    for name, value in whole.model.state().items():
        np.testing.assert_array_equal(resumed.model.state()[name], value)


def test_plan_and_split_of_everybody_else_are_the_same_without_a_user(
    frame: pl.DataFrame, store: dpads.ExampleStore, tmp_path: Path
) -> None:
    spec = PrivacySpec(epsilon=2.0, dataset_size=12, unit="user", max_examples_per_unit=3)
    plans, sides = [], []
    for name, rows in (("all", frame), ("fewer", frame.filter(pl.col("uid") != 5))):
        one = make(rows, WITH_USER, tmp_path, name)
        train, test = one.split(0.4, seed=2)
        capped = train.capped(3, seed=2)
        plans.append(
            resolve(spec, expected_batch_size=3, epochs=2, store_units=capped.num_users).to_json()
        )
        users = rows["uid"].to_numpy()
        sides.append([set(users[side.input_rows].tolist()) - {5} for side in (capped, test)])
    assert plans[0] == plans[1]
    assert sides[0] == sides[1]


def test_cancelling_rows_of_a_user_lose_no_digits_where_gradients_are_tiny() -> None:
    # Each row alone is far beyond the clip norm, and the factor times its gradient is no normal float32.
    # Dropped from one of two rows that cancel, what is left would be eight times the clip norm.
    schema = dpads.FeatureSchema(
        task="ctr", label="y", numeric=[dpads.Numeric("n", transform="identity")], weight="v"
    )
    model = dpads.models.Logistic().init(schema)
    for clip_norm, x in ((1e-6, 6.7e32), (1e-2, 6.7e36)):
        batch = dpads.SparseBatch.from_arrays(
            ids={},
            dense=[[x], [x]],
            labels=[0, 1],
            weights=[2.4e-38, 2.3e-38],
            unit_offsets=[0, 2],
        )
        out = dpads.clipped_gradients(model, batch, l2_clip_norm=clip_norm)
        square = sum(float((v.astype(float) ** 2).sum()) for v in out.dense.values())
        assert np.sqrt(square) <= clip_norm * (1 + 1e-6)
