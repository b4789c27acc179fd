"""Runs with backend = "jax", as users start them: the same model as torch's, and a statement of its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from cli_calls import CONFIG, done, dpads_command
from small_runs import SMALL, kinds, stop_at

import dpads
from dpads import training
from dpads.errors import ConfigError, MissingDependencyError
from dpads.report import build_statement
from dpads.run_training import train_config

ROOT = Path(__file__).parents[1]
MLP = dpads.models.Mlp(embedding_dim=3, hidden=(6,))
NO_NOISE = dpads.PrivacySpec(noise_multiplier=0.0, dataset_size=3000)
IN_JAX: dict[str, Any] = {**SMALL, "backend": "jax"}
EVERYTHING: dict[str, Any] = {
    "prior": dpads.PriorConfig(kind="dp_count"),
    "selection": dpads.SelectionConfig(kind="noisy_count", threshold=20.0),
    "positive_weight": 3.0,
}


@pytest.fixture(scope="module")
def folder(log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs, config.toml, and a run in JAX."""
    folder = tmp_path_factory.mktemp("cli")
    for name in ("train.parquet", "test.parquet"):
        shutil.copy(log_folder / name, folder)
    (folder / "config.toml").write_text(CONFIG + 'backend = "jax"\n')
    done("train", folder / "config.toml", "--set", "data.test=0.2", "--out", folder / "run")
    return folder


def test_a_session_from_logs_to_a_statement(folder: Path, tmp_path: Path) -> None:
    run, predictions = folder / "run", tmp_path / "p.parquet"
    done("predict", run, folder / "test.parquet", "--out", predictions)
    column = parquet.read_table(predictions)["prediction"].to_numpy()
    frame = parquet.read_table(folder / "test.parquet")
    loaded = dpads.Run.load(run)
    np.testing.assert_array_equal(loaded.predict(frame)["prediction"].to_numpy(), column)
    assert 0.5 < loaded.metrics["auc"] < 1.0
    statement = json.loads(done("statement", run, "--format", "json"))
    assert statement["claim_level"] == "formal"
    assert statement["mechanism"]["backend"] == "jax"
    versions = statement["transparency"]["versions"]
    assert {"jax", "jaxlib", "optax", "jax devices"} <= set(versions)
    assert versions["jax platform"] == "cpu"
    assert loaded.record.settings["backend"] == "jax"
    assert tomllib.loads((run / "config.toml").read_text())["training"]["backend"] == "jax"
    assert kinds(loaded.ledger)[:2] == ["training", "training_finished"]
    done("verify", run)
    assert "auc" in done("evaluate", run, folder / "test.parquet")
    done("verify", run)


def test_a_statement_tells_processors_from_other_devices(folder: Path) -> None:
    run = dpads.Run.load(folder / "run")
    on_gpu = {**run.record.versions, "jax platform": "gpu"}
    record = dataclasses.replace(run.record, versions=on_gpu)
    for one, backend in ((run.record, "jax"), (record, "jax-gpu")):
        data = build_statement(run.plan, one, run.ledger, created_at=one.created_at).data
        assert data["mechanism"]["backend"] == backend


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_no_file_describes_a_model_of_ones_own(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"from Python: .*dpads\.models\.from_{name}"):
        dpads.config.load_config(folder / "config.toml", [f"model.name={name}"])


def test_the_configuration_names_the_backends(folder: Path) -> None:
    result = dpads_command("train", folder / "config.toml", "--set", "training.backend=jaxx")
    assert result.exit_code == 2
    words = " ".join(result.stderr.split())
    assert "training.backend: expected 'torch' or 'jax', got 'jaxx'" in words


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As where a package is not installed."""
    for name in list(sys.modules):
        if name.rpartition(".")[2].startswith("jax_") and name.startswith("dpads."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("package", ["jax", "optax"])
def test_a_missing_package_is_told_before_anything_is_read_or_made(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, package)
    (tmp_path / "config.toml").write_text(CONFIG)  # the logs are not there either
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ranges = {item.partition(">")[0]: item for item in found}
    config = dpads.config.load_config(tmp_path / "config.toml", ["training.backend=jax"])
    with pytest.raises(MissingDependencyError) as caught:
        train_config(config, out=tmp_path / "run")
    line = f"Install it: pip install '{ranges['jax']}' '{ranges['optax']}'"
    assert str(caught.value) == f'backend = "jax" needs the package {package}. {line}'
    assert [item.name for item in tmp_path.iterdir()] == ["config.toml"]


def test_a_sweep_and_a_selection_tell_of_a_missing_package_before_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "optax")
    (tmp_path / "config.toml").write_text(CONFIG)
    sweep = 'base = "config.toml"\n[axes]\n"training.backend" = ["torch", "jax"]\n'
    (tmp_path / "sweep.toml").write_text(sweep)
    for begin in (dpads.sweep, dpads.tune):
        with pytest.raises(MissingDependencyError, match="optax"):
            begin(tmp_path / "sweep.toml", out=tmp_path / "out")
    assert {item.name for item in tmp_path.iterdir()} == {"config.toml", "sweep.toml"}


def test_models_of_another_backend_are_refused_before_anything_is_made(
    train_store: dpads.ExampleStore, tmp_path: Path
) -> None:
    class NoTower(dpads.models.Logistic):
        name = "without a tower"
        jax_tower = dpads.models.Description.jax_tower

    known = {"module": "M", "structure": "", "code": "", "initial": ""}
    torch = dpads.models.TorchModule(**known)
    jax = dpads.models.JaxFunction(function="f", embedding_dim=4, structure="", code="", initial="")
    for model, backend, words in (
        (NoTower(), "jax", r'tower in JAX.*\(dcn, deepfm, dlrm, fm, logistic, mlp\), got "without'),
        (torch, "jax", r'backend "torch" for a torch module, got "jax".*dpads\.models\.from_jax'),
        (jax, "torch", r'backend "jax" for a JAX function, got "torch".*dpads\.models\.from_torch'),
        (jax, "jax", r"JAX function f, which no file holds.*from_jax\(apply, params, schema\)"),
        (dpads.models.Logistic(), "jaxx", r'Unknown backend "jaxx"\. Did you mean "jax"\?'),
    ):
        with pytest.raises(ConfigError, match=words):
            dpads.train(
                train_store,
                **{**SMALL, "model": model},
                backend=backend,  # type: ignore[arg-type]
                out=tmp_path / "run",
            )
    assert not list(tmp_path.iterdir())


def test_a_run_of_jax_is_read_without_jax(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    without(monkeypatch, "jax")
    loaded = dpads.Run.load(run)
    assert len(loaded.predict(parquet.read_table(folder / "test.parquet"))) == 1000
    assert dpads.verify(run).ok


def test_what_is_fitted_by_scikit_learn_goes_through_the_backend() -> None:
    model = dpads.DPClassifier(model=MLP, backend="jax")
    assert model.get_params()["backend"] == "jax"
    log = dpads.synthetic.click_log(100, seed=0)
    torch = dpads.models.TorchModule(module="M", structure="", code="", initial="")
    model.set_params(schema=log.schema, privacy=dpads.PrivacySpec(epsilon=3.0), model=torch)
    with pytest.raises(ConfigError, match='backend "torch" for a torch module'):
        model.fit(log.table.drop_columns("click"), log.table["click"].to_numpy())


@pytest.mark.slow
@pytest.mark.parametrize("model", [dpads.models.Logistic(), MLP, dpads.models.Fm(embedding_dim=3)])
def test_without_noise_predictions_are_those_of_torch(
    train_store: dpads.ExampleStore, test_store: dpads.ExampleStore, model: Any
) -> None:
    found = []
    for backend in ("torch", "jax"):
        how = {**SMALL, "model": model, "privacy": NO_NOISE, "backend": backend}
        # coins come from keys that are bound to the backend: with all units in each batch none matters
        how |= {"expected_batch_size": 3000, "epochs": 20, "l2_clip_norm": 0.1}
        run = dpads.train(train_store, **how, test=test_store, reference=True)
        found.append((run.predict(test_store), run.metrics))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    assert found[1][1]["reference"]["auc"] == pytest.approx(found[0][1]["reference"]["auc"], 1e-4)
    increases = [metrics["relative_increase"] for _, metrics in found]
    assert increases[1] == pytest.approx(increases[0], abs=1e-3)


@pytest.mark.slow
def test_everything_beside_training_works_and_is_stated(
    train_store: dpads.ExampleStore, test_store: dpads.ExampleStore, tmp_path: Path
) -> None:
    ledgers = []
    for backend in ("torch", "jax"):
        out = tmp_path / backend
        run = dpads.train(
            train_store,
            **{**SMALL, "model": MLP, **EVERYTHING},
            backend=backend,  # type: ignore[arg-type]
            test=test_store,
            reference=True,
            out=out,
        )
        ledgers.append(kinds(run.ledger))
        assert dpads.verify(out).ok
        assert run.model.output.calibration is not None
        assert {"before_recalibration", "reference", "relative_increase"} <= run.metrics.keys()
        zero = np.concatenate([~rows.any(axis=1) for rows in run.model.tables.values()])
        assert 0 < zero.sum() < len(zero)  # rows that were not selected
    assert ledgers[0] == ledgers[1]


@pytest.mark.slow
def test_counts_and_users(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    import polars as pl

    rows = 400
    frame = pl.DataFrame(
        {
            "y": rng.poisson(0.5, rows),
            "a": rng.integers(0, 20, rows).astype(str),
            "x": rng.normal(size=rows),
            "t": rng.uniform(0.5, 2.0, rows),
            "u": np.repeat(np.arange(rows // 2), 2).astype(str),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    schema = dpads.FeatureSchema(
        task="count",
        label="y",
        categorical=["a"],
        numeric=["x"],
        exposure="t",
        user="u",
        buckets=30,
    )
    store = dpads.prepare(tmp_path / "log.parquet", schema, out=tmp_path / "store")
    privacy = dpads.PrivacySpec(
        epsilon=3.0, dataset_size=200, unit="user", max_examples_per_unit=2, delta=1e-6
    )
    found = []
    for name, spec in (("private", privacy), ("torch", None), ("jax", None)):
        noiseless = dataclasses.replace(privacy, epsilon=None, noise_multiplier=0.0)
        run = dpads.train(
            store,
            model=MLP,
            privacy=spec or noiseless,
            expected_batch_size=200,
            epochs=10,
            backend="torch" if name == "torch" else "jax",
            test=0.2,
            out=tmp_path / name,
        )
        found.append(run.predict(frame)["prediction"].to_numpy())
    assert dpads.verify(tmp_path / "private").ok
    assert (
        dpads.Run.load(tmp_path / "private").statement().data["mechanism"]["clipping"]["scope"]
        == "per_user"
    )
    np.testing.assert_allclose(found[2], found[1], rtol=1e-4)


@pytest.mark.slow
def test_interrupted_and_resumed_is_the_same_to_the_bit(
    train_store: dpads.ExampleStore,
    test_store: dpads.ExampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    common = {**IN_JAX, "test": test_store, "noise_seed": 5}
    straight = dpads.train(train_store, **common, out=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        dpads.train(train_store, **common, out=tmp_path / "cut", on_progress=stop_at(7))
    other = dataclasses.replace(
        straight.config, training=dataclasses.replace(straight.config.training, backend="torch")
    )
    with pytest.raises(ConfigError, match=r"training\.backend differ"):
        train_config(other, store=train_store, out=tmp_path / "cut", resume=True)
    resumed = train_config(
        straight.config, store=train_store, test=test_store, out=tmp_path / "cut", resume=True
    )
    for name, array in straight.model.state().items():
        np.testing.assert_array_equal(resumed.model.state()[name], array)
    assert resumed.metrics == straight.metrics
    assert resumed.record.replayed


@pytest.mark.slow
def test_a_run_starts_from_one_of_another_backend(
    train_store: dpads.ExampleStore, tmp_path: Path
) -> None:
    fixed = dpads.PrivacySpec(noise_multiplier=1.0, dataset_size=3000)
    common = {**SMALL, "privacy": fixed, "epochs": 1}
    first = dpads.train(train_store, **common, out=tmp_path / "a")
    later = dpads.train(train_store, **common, backend="jax", start_from=first, out=tmp_path / "b")
    assert kinds(later.ledger)[0] == "earlier_run"
    assert dpads.verify(tmp_path / "b").ok


@pytest.mark.slow
def test_the_backend_can_be_an_axis(folder: Path, tmp_path: Path) -> None:
    text = (folder / "config.toml").read_text()
    (folder / "base.toml").write_text(text.replace('backend = "jax"\n', ""))
    sweep = 'base = "base.toml"\nreference = true\n[axes]\n"training.backend" = ["torch", "jax"]\n'
    (folder / "sweep.toml").write_text(sweep)
    found = dpads.sweep(folder / "sweep.toml", out=tmp_path / "out", workers=1)
    assert found.results["status"].to_list() == ["done"] * 3
    runs = [dpads.Run.load(found.folder_of(trial.name)) for trial in found.trials]
    assert [run.config.training.backend for run in runs] == ["torch", "jax", "torch"]
