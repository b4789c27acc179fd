"""Training in JAX: the parameters that the torch backend gives, with the same keys."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import dpads
from dpads import jax_backend, training
from dpads.accounting.ledger import Ledger
from dpads.errors import CheckpointError, ConfigError
from dpads.jax_hosts import Devices
from dpads.plan import Plan, resolve
from dpads.release_stages import ReleaseStages
from dpads.selection import Selection
from dpads.training import Performance, Trainer, TrainingSettings

ROWS = 900
MODELS = [
    dpads.models.Logistic(),
    dpads.models.Mlp(embedding_dim=3, hidden=(6,)),
    dpads.models.Dcn(embedding_dim=2, cross_layers=1, hidden=(4,)),
]


def log(seed: int, *, count: bool = False) -> pl.DataFrame:
    """Scalars with gaps, a weighted bag with repeats, a shared table, users of one to three rows."""
    rng = np.random.default_rng(seed)
    tags = [rng.integers(0, 9, rng.integers(0, 5)).astype(str).tolist() for _ in range(ROWS)]
    ids = rng.integers(0, 40, (ROWS, 2)).astype(str)
    return pl.DataFrame(
        {
            "y": rng.poisson(0.4, ROWS) if count else rng.integers(0, 2, ROWS),
            "a": pl.Series(ids[:, 0]).set(pl.Series(rng.random(ROWS) < 0.1), None),
            "b": ids[:, 1],
            "tags": tags,
            "w": [rng.uniform(0, 2, len(some)).round(2).tolist() for some in tags],
            "x": rng.normal(size=ROWS),
            "t": rng.uniform(0.1, 2.0, ROWS),
            "u": np.repeat(np.arange(ROWS // 2), 2).astype(str),
        }
    )


def schema_of(*, count: bool = False) -> dpads.FeatureSchema:
    return dpads.FeatureSchema(
        task="count" if count else "ctr",
        label="y",
        categorical=["a", "b"],
        bags=[dpads.Bag("tags", weights="w")],
        numeric=["x"],
        tables={"shared": ["a", "b"]},
        buckets={"shared": 60, "tags": 20},
        exposure="t" if count else None,
        user="u",
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    found = {}
    for count in (False, True):
        folder = tmp_path_factory.mktemp("logs")
        log(1, count=count).write_parquet(folder / "log.parquet")
        schema = schema_of(count=count)
        found[count] = dpads.prepare(folder / "log.parquet", schema, out=folder / "store")
    return found


def plan_of(noise: float = 1.0, iterations: int = 6, **more: Any) -> Plan:
    units = ROWS // 2 if more.get("unit") == "user" else ROWS
    spec = dpads.PrivacySpec(
        noise_multiplier=noise, delta=1e-6, sampling_prob=60 / units, iterations=iterations, **more
    )
    return resolve(spec, expected_batch_size=60, epochs=None, l2_clip_norm=0.3)


def settings_of(backend: str, **more: Any) -> TrainingSettings:
    values = {
        "table_optimizer": dpads.Sgd(learning_rate=0.5, schedule="linear", weight_decay=0.01),
        "tower_optimizer": dpads.Adam(learning_rate=0.01, weight_decay=0.001),
        **more,
    }
    return TrainingSettings(backend=backend, noise_seed=3, **values)


@pytest.fixture(autouse=True)
def same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are bound to the backend; here both get the same, so that their noise can be compared."""
    monkeypatch.setattr(training, "digest_of", lambda _: "both")


def trainer_of(
    backend: str,
    store: Any,
    model: Any = MODELS[0],
    plan: Plan | None = None,
    performance: Performance | None = None,
    folder: Path | None = None,
    **more: Any,
) -> Trainer:
    return Trainer(
        store,
        model,
        plan or plan_of(),
        settings_of(backend, **more),
        performance or Performance(),
        Ledger(),
        folder,
    )


def alike(first: Any, second: Any, tolerance: float = 1e-6) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-4, atol=tolerance, err_msg=name)


def trained(backend: str, *args: Any, **more: Any) -> dict[str, np.ndarray]:
    trainer = trainer_of(backend, *args, **more)
    trainer.run()
    return trainer.model.state()


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_jax_is_torch(stores: Any, model: Any, noise: float) -> None:
    both = [trained(name, stores[False], model, plan_of(noise)) for name in ("torch", "jax")]
    alike(*both)


@pytest.mark.parametrize("unit", ["user", "example"])
def test_jax_is_torch_for_counts_and_users(stores: Any, unit: str) -> None:
    store = stores[True].capped(2, seed=0)
    plan = plan_of(unit=unit, max_examples_per_unit=2)
    both = [trained(name, store, MODELS[1], plan) for name in ("torch", "jax")]
    alike(*both)


@pytest.mark.parametrize(
    "optimizer", [dpads.Sgd(learning_rate=0.1, weight_decay=0.01), dpads.AdamBC(learning_rate=0.01)]
)
def test_tower_optimizers_are_those_of_torch(stores: Any, optimizer: Any) -> None:
    both = [
        trained(name, stores[False], MODELS[1], tower_optimizer=optimizer)
        for name in ("torch", "jax")
    ]
    alike(*both)


def test_dense_noise_and_pieces_of_batches_are_those_of_torch(stores: Any) -> None:
    alike(*(trained(name, stores[False], table_noise="dense") for name in ("torch", "jax")))
    pieces = Performance(physical_batch_size=25)
    whole = trained("jax", stores[False])
    alike(whole, trained("jax", stores[False], performance=pieces), 3e-6)


@pytest.mark.parametrize("table_noise", [pytest.param("lazy", marks=pytest.mark.slow), "dense"])
def test_rows_that_are_not_selected_stay_zero_as_in_torch(
    stores: Any, monkeypatch: pytest.MonkeyPatch, table_noise: str
) -> None:
    rng = np.random.default_rng(0)
    some = Selection(
        {name: rng.random(rows) < 0.5 for name, rows in schema_of().table_rows.items()}
    )
    monkeypatch.setattr(ReleaseStages, "begin", lambda *_: some)
    both = [trained(name, stores[False], table_noise=table_noise) for name in ("torch", "jax")]
    alike(*both)
    for name, rows in some.tables.items():
        assert not both[1][f"tables.{name}"][~rows].any()
        assert both[1][f"tables.{name}"][rows].all()


def test_several_devices_refuse_pieces_before_anything_is_on_the_ledger(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Several(Devices):
        """Says that there are two, once it is asked for pieces."""

        def __init__(self, hosts: Any) -> None:
            super().__init__(hosts)
            self.asked = False

        @property
        def count(self) -> int:
            return 2 if sys._getframe(1).f_code.co_name == "check_pieces" else 1

        @count.setter
        def count(self, _: int) -> None:
            """There is no telling it."""

    monkeypatch.setattr(jax_backend, "Devices", Several)
    ledger = Ledger()
    with pytest.raises(ConfigError, match="2 devices take whole, got physical_batch_size"):
        Trainer(
            stores[False],
            MODELS[0],
            plan_of(),
            settings_of("jax"),
            Performance(physical_batch_size=25),
            ledger,
        )
    assert not ledger.entries


def test_a_resumed_run_ends_with_the_same_parameters(stores: Any, tmp_path: Path) -> None:
    store = stores[False]
    trainer = trainer_of("jax", store, MODELS[1], folder=tmp_path / "c")
    for _ in range(3):
        trainer.step()
    trainer.save()
    trainer.step()
    args: tuple[Any, ...] = (store, MODELS[1], plan_of())
    resumed = Trainer.resume(tmp_path / "c", *args, settings_of("jax"), Performance(), Ledger())
    assert (resumed.iteration, resumed.replayed) == (3, 1)
    resumed.run()
    whole = trained("jax", store, MODELS[1])
    for name, value in resumed.model.state().items():
        np.testing.assert_array_equal(value, whole[name])
    with pytest.raises(CheckpointError, match="settings changed"):
        Trainer.resume(tmp_path / "c", *args, settings_of("torch"), Performance(), Ledger())


def test_a_read_in_the_middle_is_that_of_torch(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_backend, "FLUSH_ROWS", 7)  # many stretches of rows, the last one short
    read = {}
    for name in ("torch", "jax"):
        trainer = trainer_of(name, stores[False], MODELS[1])
        for _ in range(3):
            trainer.step()
        read[name] = [trainer.read_model().state()]
        trainer.run()
        read[name].append(trainer.model.state())
    alike(read["torch"][0], read["jax"][0])
    alike(read["torch"][1], read["jax"][1])


def test_a_model_without_a_tower_in_jax_and_an_unknown_backend_are_refused(stores: Any) -> None:
    class Other(dpads.models.Logistic):
        name = "other"
        jax_tower = dpads.models.Description.jax_tower

    with pytest.raises(ConfigError, match=r'backend "jax" .*logistic.*got "other"'):
        trainer_of("jax", stores[False], Other())
    with pytest.raises(ConfigError, match=r'Unknown backend "jaxx"\. Did you mean "jax"\?'):
        trainer_of("jaxx", stores[False])


def test_a_schema_without_numbers_in_several_chunks_is_clipped_as_in_torch() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=9)
    model, rng = dpads.models.Logistic().init(schema), np.random.default_rng(0)
    batch = dpads.SparseBatch.from_arrays(
        ids={"a": rng.integers(-1, 9, 2500)},
        dense=np.empty((2500, 0), np.float32),
        labels=rng.integers(0, 2, 2500),
    )
    both = [
        dpads.clipped_gradients(model, batch, l2_clip_norm=0.3, backend=name)
        for name in ("torch", "jax")
    ]
    np.testing.assert_allclose(both[0].norms, both[1].norms, rtol=1e-6)
    np.testing.assert_allclose(both[0].tables["a"][1], both[1].tables["a"][1], rtol=1e-5)


@pytest.mark.parametrize("chunk", [16, 1024])
def test_scalar_columns_in_chunks_train_as_in_torch(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(1).write_parquet(tmp_path / "log.parquet")
    schema = dpads.FeatureSchema(
        task="ctr", label="y", categorical=["a", "b"], numeric=["x"], weight="t",
        buckets={"a": 60, "b": 7},
    )  # fmt: skip
    store = dpads.prepare(tmp_path / "log.parquet", schema, out=tmp_path / "store")
    monkeypatch.setattr(jax_backend, "MOST_AT_A_TIME", chunk)
    model = dpads.models.Mlp(embedding_dim="auto", hidden=(4,))  # a width for each table
    alike(*(trained(name, store, model) for name in ("torch", "jax")))


def test_a_user_with_more_rows_than_a_chunk_is_clipped_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_backend, "MOST_AT_A_TIME", 512)
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "y": rng.integers(0, 2, 3000),
            "a": rng.integers(0, 9, 3000).astype(str),
            "u": np.repeat(np.arange(2), 1500).astype(str),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], user="u", buckets=9)
    store = dpads.prepare(tmp_path / "log.parquet", schema, out=tmp_path / "store")
    spec = dpads.PrivacySpec(
        noise_multiplier=1e-3,
        delta=1e-6,
        unit="user",
        max_examples_per_unit=1500,
        sampling_prob=1.0,
        iterations=2,
    )
    found = [
        dpads.train(
            store,
            model=dpads.models.Logistic(),
            privacy=spec,
            expected_batch_size=1,
            backend=name,
            noise_seed=1,
        )
        for name in ("torch", "jax")
    ]
    alike(*(run.model.state() for run in found))
