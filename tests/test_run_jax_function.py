"""Runs whose model is a user's function in JAX: saved, loaded with and without it, started from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_calls import done, dpads_command
from jax import numpy as jnp
from small_runs import PRIVACY, SMALL

import dpads
from dpads.errors import ConfigError
from dpads.models.jax_layers import linear

pytestmark = pytest.mark.slow  # each compiles a step


def apply(params: Any, embedded: Any, dense: Any) -> Any:
    """A layer that keeps its gradients in factors, and parameters that do not."""
    parts = jnp.concatenate([embedded["device"], embedded["interests"], dense])
    return linear(params, "out", jnp.tanh(parts) * params["gain"])


def other(params: Any, embedded: Any, dense: Any) -> Any:
    return linear(params, "out", jnp.concatenate([embedded["device"], dense])) * params["gain"]


def made(schema: dpads.FeatureSchema, seed: int = 0, function: Any = apply) -> Any:
    rng, width = np.random.default_rng(seed), 7 if function is apply else 4
    params = {
        "out.weight": 0.1 * rng.normal(size=(1, width)),
        "out.bias": np.zeros(1),
        "gain": np.ones(width if function is apply else 1),
    }
    return dpads.models.from_jax(function, params, schema, embedding_dim=3)


@pytest.fixture(scope="module")
def schema() -> dpads.FeatureSchema:
    return dpads.FeatureSchema(
        task="ctr", label="click", numeric=["page_depth"], categorical=["device"],
        bags=["interests"], buckets=100,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(
    schema: dpads.FeatureSchema, log_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dpads.ExampleStore:
    out = tmp_path_factory.mktemp("function") / "store"
    return dpads.prepare(log_folder / "train.parquet", schema, out=out)


@pytest.fixture(scope="module")
def run(
    store: dpads.ExampleStore,
    schema: dpads.FeatureSchema,
    tmp_path_factory: pytest.TempPathFactory,
) -> dpads.Run:
    out = tmp_path_factory.mktemp("function") / "run"
    how = {**SMALL, "model": made(schema), "backend": "jax"}
    return dpads.train(store, **how, test=0.2, out=out)


def test_it_is_loaded_with_the_function(
    run: dpads.Run, store: dpads.ExampleStore, schema: dpads.FeatureSchema
) -> None:
    assert run.path is not None
    again = dpads.Run.load(run.path, model=made(schema, seed=1))
    np.testing.assert_array_equal(again.predict(store), run.predict(store))
    for name, value in made(schema).init(schema).dense.items():
        assert not np.array_equal(run.model.dense[name], value)


def test_its_statement_asks_a_person(run: dpads.Run) -> None:
    assert run.path is not None
    statement = run.statement()
    assert statement.claim_level == "conditional"
    apart = next(c for c in statement.data["checks"] if c["id"] == "model.examples_apart")
    assert "rules for gradients and operations" in apart["assumption"]
    assert "came with a function in JAX" in run.ledger.entries[0].description
    assert dpads.verify(run.path).ok


def test_without_the_function_all_but_the_model_is_there(
    run: dpads.Run, store: dpads.ExampleStore, tmp_path: Path
) -> None:
    assert run.path is not None
    bare = dpads.Run.load(run.path)
    assert bare.statement().data == run.statement().data
    assert "JaxFunction" in repr(bare)
    with pytest.raises(ConfigError, match=r"dpads\.Run\.load\(path, model=dpads\.models\.from_jax"):
        bare.predict(store)
    assert done("statement", run.path).startswith("# ")
    result = dpads_command("predict", run.path, store.path, "--out", tmp_path / "p.parquet")
    assert result.exit_code == 2
    assert "from_jax" in result.stderr
    assert not list(tmp_path.iterdir())


def test_another_function_is_refused(
    run: dpads.Run, schema: dpads.FeatureSchema, store: dpads.ExampleStore
) -> None:
    assert run.path is not None
    with pytest.raises(ConfigError, match="its layers or columns differ"):
        dpads.Run.load(run.path, model=made(schema, function=other))
    with pytest.raises(ConfigError, match="JAX function"):
        dpads.Run.load(run.path, model=dpads.models.Logistic())
    more = made(dataclasses.replace(schema, buckets=50))
    with pytest.raises(ConfigError, match="another schema"):
        dpads.train(store, **{**SMALL, "model": more, "backend": "jax"})


def test_exports_say_what_to_do_instead(run: dpads.Run, tmp_path: Path) -> None:
    assert run.path is not None
    for export in (run.to_torch, run.export_torch, lambda: run.export_onnx(tmp_path / "m.onnx")):
        with pytest.raises(ConfigError, match=r"JAX function.*run\.model\.dense"):
            export()
    result = dpads_command("export", run.path, "--out", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "which no export holds" in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_function_that_is_made_again_starts_from_its_earlier_run(
    store: dpads.ExampleStore, schema: dpads.FeatureSchema, tmp_path: Path
) -> None:
    fixed = dpads.PrivacySpec(noise_multiplier=1.0, dataset_size=PRIVACY.dataset_size)
    common = {**SMALL, "privacy": fixed, "epochs": 1, "backend": "jax"}
    first = dpads.train(store, **{**common, "model": made(schema)}, out=tmp_path / "a")
    later = dpads.train(
        store, **{**common, "model": made(schema, seed=1)}, start_from=first, out=tmp_path / "b"
    )
    treatments = [e.treatment for e in later.ledger.entries if e.kind == "earlier_run"]
    assert treatments == ["covered_by_accounting", "public_data_only"]
    assert dpads.verify(tmp_path / "b").ok
    with pytest.raises(ConfigError, match=r"same model.*differs in"):
        dpads.train(store, **{**common, "backend": "torch"}, start_from=first, out=tmp_path / "c")
