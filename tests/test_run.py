"""Runs: what training leaves, what is on the ledger when, and that nothing is half-written."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SMALL, kinds

import dpads
from dpads import run as run_module
from dpads import run_files as files
from dpads import training
from dpads.accounting.checks import ClaimLevel
from dpads.accounting.ledger import Ledger
from dpads.config import DataConfig, ReferenceConfig, TrainingConfig, load_config
from dpads.errors import (
    ConfigError,
    DpadsError,
    StoreError,
)
from dpads.evaluation import BESIDE_METRICS, metrics
from dpads.run_job import RunProgress
from dpads.run_training import train_config
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.synthetic import SyntheticLog


@pytest.fixture(scope="module")
def whole_run(
    train_store: ExampleStore, test_store: ExampleStore, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run with a reference, on disk; copy it before changing it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    dpads.train(train_store, **SMALL, test=test_store, reference=True, out=out)
    return out


@pytest.fixture
def run_copy(whole_run: Path, tmp_path: Path) -> Path:
    """The run, free to change."""
    return Path(shutil.copytree(whole_run, tmp_path / "copy"))


def test_the_folder_holds_what_the_design_says(whole_run: Path) -> None:
    assert {file.name for file in whole_run.iterdir()} == {
        "run.json", "model.safetensors", "model.json", "ledger.jsonl", "metrics.json",
        "statement.json", "statement.md", "config.toml",
    }  # fmt: skip
    assert not list(whole_run.parent.glob("*.partial"))


def test_metrics_json_has_the_model_the_reference_and_the_increase(whole_run: Path) -> None:
    values = json.loads((whole_run / "metrics.json").read_text())
    wanted = {"auc", "auc_loss", "pr_auc", "log_loss", "normalized_entropy", "calibration", "ece"}
    beside = {"intervals", "calibration_table"}
    others = {"reference", "relative_increase", "before_recalibration"}
    assert wanted | beside | others == set(values)
    assert wanted | beside == set(values["before_recalibration"])
    assert wanted | beside == set(values["reference"])
    low, high = values["intervals"]["auc"]
    assert low < values["auc"] < high
    loss, reference = values["auc_loss"], values["reference"]["auc_loss"]
    assert values["relative_increase"] == pytest.approx(loss / reference - 1)


def test_metrics_are_those_of_the_predictions(
    whole_run: Path, test_store: ExampleStore, click_log: SyntheticLog
) -> None:
    run = dpads.Run.load(whole_run)
    labels = click_log.table[3000:]["click"].to_numpy()
    assert metrics("ctr", labels, run.predict(test_store)) == pytest.approx(
        {k: v for k, v in run.metrics.items() if k not in BESIDE_METRICS}
    )


def test_the_ledger_has_every_access_in_its_order(whole_run: Path) -> None:
    ledger = Ledger.load(whole_run / "ledger.jsonl")
    assert kinds(ledger) == [
        "reference",
        "evaluation",
        "training",
        "training_finished",
        "recalibration",
        "evaluation",
    ]
    treatments = {entry.kind: entry.treatment for entry in ledger.entries}
    assert treatments["reference"] == treatments["evaluation"] == "not_covered"
    assert treatments["training"] == "covered_by_accounting"
    assert treatments["recalibration"] == "covered_by_accounting"


def test_the_statement_is_about_this_run(whole_run: Path) -> None:
    statement = dpads.Run.load(whole_run).statement()
    assert statement.claim_level is ClaimLevel.CONDITIONAL  # a reference saw the rows
    assert "reference" in statement.headline
    for artifact in statement.data["subject"]["artifacts"]:
        content = (whole_run / artifact["path"]).read_bytes()
        assert files.sha256(content) == artifact["sha256"]
    assert (whole_run / "statement.md").read_text() == statement.to_markdown()
    assert statement.epsilon is not None
    assert statement.epsilon <= 3.0


def test_a_run_without_reference_and_test_rows_makes_a_formal_claim(
    train_store: ExampleStore,
) -> None:
    run = dpads.train(train_store, **SMALL)
    assert run.statement().claim_level is ClaimLevel.FORMAL
    assert kinds(run.ledger) == ["training", "training_finished", "recalibration"]
    assert set(run.metrics) == {
        "auc", "auc_loss", "pr_auc", "log_loss", "normalized_entropy", "calibration", "ece",
        "undefined",
    }  # fmt: skip
    assert run.metrics["auc"] is None
    assert "no test rows" in run.metrics["undefined"]["auc"]


def test_what_is_loaded_is_what_was_trained(
    train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path
) -> None:
    run = dpads.train(train_store, **SMALL, out=tmp_path / "run")
    again = dpads.Run.load(tmp_path / "run")
    for name, array in run.model.state().items():
        np.testing.assert_array_equal(again.model.state()[name], array)
    np.testing.assert_array_equal(again.predict(test_store), run.predict(test_store))
    assert again.plan == run.plan
    assert again.config == run.config
    assert again.record == run.record
    assert again.statement().data == run.statement().data


def test_a_run_in_memory_can_be_saved(
    train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path
) -> None:
    run = dpads.train(train_store, **SMALL)
    assert run.path is None
    saved = dpads.Run.load(run.save(tmp_path / "deep" / "saved"))
    assert kinds(saved.ledger) == kinds(run.ledger)
    np.testing.assert_array_equal(saved.predict(test_store), run.predict(test_store))
    with pytest.raises(ConfigError, match="exists already"):
        run.save(tmp_path / "deep" / "saved")


def test_a_saved_run_keeps_its_folder_up_to_date(
    train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path
) -> None:
    run = dpads.train(train_store, **SMALL)
    assert run.save(tmp_path / "first") == run.path
    run.save(tmp_path / "copy")
    run.evaluate(test_store)
    assert run.path == tmp_path / "first"
    saved = dpads.Run.load(tmp_path / "first")
    assert kinds(saved.ledger)[-1] == "evaluation"
    assert saved.statement().data == run.statement().data


def test_test_rows_that_may_be_training_rows_are_called_so(
    train_store: ExampleStore, test_store: ExampleStore, log_folder: Path, tmp_path: Path
) -> None:
    part, rest = train_store.split(0.5, seed=1)
    other, _ = train_store.split(0.5, seed=2)
    log, link = log_folder / "train.parquet", tmp_path / "link.parquet"
    link.symlink_to(log)
    base = dpads.train(train_store, **SMALL).config

    def logs(*names: Path) -> dpads.Run:
        data = DataConfig(train=(str(log),), test=tuple(map(str, names)))
        return train_config(dataclasses.replace(base, data=data))

    small = {**SMALL, "privacy": dpads.PrivacySpec(epsilon=3.0)}
    for run, rows in (
        (dpads.train(train_store, **SMALL, test=test_store), "declared_test"),
        (dpads.train(train_store, **SMALL, test=train_store), "train_and_test"),
        (dpads.train(train_store, **SMALL, test=rest), "train_and_test"),
        (dpads.train(part, **small, test=rest), "test"),
        (dpads.train(part, **small, test=other), "train_and_test"),
        (logs(log_folder / "test.parquet"), "declared_test"),
        (logs(log_folder / "test.parquet", link), "train_and_test"),
    ):
        assert run.ledger.entries[-1].rows == rows
        assert (run.record.test_fingerprint is None) == (rows == "train_and_test")
        levels = {"test": ClaimLevel.FORMAL, "declared_test": ClaimLevel.CONDITIONAL}
        if run.plan.dataset_size_status == "public":
            assert run.statement().claim_level is levels.get(rows, ClaimLevel.CONDITIONAL)
    run = dpads.train(train_store, **SMALL, test=rest)
    run.evaluate(rest)
    assert run.ledger.entries[-1].rows == "train_and_test"


def test_the_configuration_that_is_kept_trains_again(whole_run: Path, tmp_path: Path) -> None:
    config = load_config(whole_run / "config.toml")
    run = train_config(config, out=tmp_path / "again")
    assert run.plan == dpads.Run.load(whole_run).plan
    assert run.config == config


def test_predictions_are_in_input_order(
    click_log: SyntheticLog, log_folder: Path, tmp_path: Path
) -> None:
    """A store that groups rows by user still predicts in the log's order."""
    schema = FeatureSchema.from_dict({**click_log.schema.to_dict(), "user": "user"})
    store = dpads.prepare(log_folder / "train.parquet", schema, out=tmp_path / "by-user")
    assert (np.diff(store.input_rows) < 0).any()
    run = dpads.train(store, **SMALL)
    predictions = run.predict(store)
    assert predictions.dtype == np.float32
    for position in (0, 1, 17, 2999):
        alone = run.model.predict(store.read([position]))
        assert predictions[store.input_rows[position]] == pytest.approx(alone[0], rel=1e-6)
    part, _ = store.split(0.5, seed=1)
    of_part = run.predict(part)
    np.testing.assert_allclose(of_part, predictions[np.sort(part.input_rows)], rtol=1e-6)


def test_an_evaluation_is_on_the_ledger_before_it_reads(
    run_copy: Path, test_store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dpads.Run.load(run_copy)
    before = len(run.ledger.entries)

    def read(*_: object) -> None:
        assert len(Ledger.load(run_copy / "ledger.jsonl").entries) == before + 1
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "evaluate_model", read)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(test_store)
    entry = Ledger.load(run_copy / "ledger.jsonl").entries[-1]
    assert (entry.kind, entry.rows, entry.treatment) == (
        "evaluation",
        "declared_test",
        "not_covered",
    )


def test_an_evaluation_renews_the_statement(
    run_copy: Path, train_store: ExampleStore, test_store: ExampleStore
) -> None:
    run = dpads.Run.load(run_copy)
    assert run.evaluate(test_store)["auc"] == pytest.approx(run.metrics["auc"])
    run.evaluate(train_store)
    assert run.ledger.entries[-1].rows == "train"
    for name in ("statement.json", "statement.md"):
        assert run.ledger.head in (run_copy / name).read_text()
    assert dpads.Run.load(run_copy).statement().data == run.statement().data


def test_the_reference_is_on_the_ledger_before_it_trains(
    train_store: ExampleStore,
    test_store: ExampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(self: object, on_progress: object) -> None:
        ledger = Ledger.load(tmp_path / "run.partial" / "ledger.jsonl")
        assert kinds(ledger) == ["reference"]
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "run", run)
    with pytest.raises(KeyboardInterrupt):
        dpads.train(train_store, **SMALL, test=test_store, reference=True, out=tmp_path / "run")


def test_the_reference_has_neither_noise_nor_clipping_and_optimizers_of_its_own(
    train_store: ExampleStore, test_store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[training.Trainer] = []
    original = training.Trainer.run

    def run(self: training.Trainer, on_progress: Any) -> None:
        built.append(self)
        original(self, on_progress)

    monkeypatch.setattr(training.Trainer, "run", run)
    own = dpads.Sgd(learning_rate=0.125)
    wanted = ReferenceConfig(table_optimizer=own, tower_optimizer=dpads.Adam())
    dpads.train(train_store, **SMALL, test=test_store, reference=wanted)
    plan, settings = built[0]._plan.mechanism, built[0]._settings
    assert plan.noise_multiplier == 0.0
    assert plan.l2_clip_norm == float("inf")
    assert settings.table_optimizer == own
    assert built[1]._plan.mechanism.noise_multiplier > 0


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"privacy": dpads.PrivacySpec(epsilon=1.0)}, None),
        ({"expected_batch_size": 5000}, ConfigError),
        ({"expected_batch_size": 0}, ConfigError),
        ({"l2_clip_norm": 0.0}, ConfigError),
        ({"table_noise": "lasy"}, DpadsError),
        ({"backend": "tensorflow"}, ConfigError),
        ({"reference": True}, ConfigError),
        ({"test": 1.5}, ConfigError),
        ({"table_optimizer": dpads.Adam()}, ConfigError),
        ({"statement": {"publsher": "x"}}, ConfigError),
    ],
    ids=str,
)
def test_wrong_use_leaves_nothing_behind(
    train_store: ExampleStore,
    tmp_path: Path,
    change: dict[str, Any],
    kind: type[Exception] | None,
) -> None:
    out = tmp_path / "runs" / "run"
    if kind is None:
        assert dpads.train(train_store, **{**SMALL, **change}, out=out).path == out
        return
    with pytest.raises(kind):
        dpads.train(train_store, **{**SMALL, **change}, out=out)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_exists_is_refused(train_store: ExampleStore, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        dpads.train(train_store, **SMALL, out=tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_rows_of_another_schema_are_refused(
    whole_run: Path, log_folder: Path, click_log: SyntheticLog, tmp_path: Path
) -> None:
    schema = FeatureSchema.from_dict({**click_log.schema.to_dict(), "buckets": 50})
    store = dpads.prepare(log_folder / "test.parquet", schema, out=tmp_path / "other")
    run = dpads.Run.load(whole_run)
    entries = len(run.ledger.entries)
    for use in (run.predict, run.evaluate):
        with pytest.raises(StoreError, match="another schema"):
            use(store)
    assert len(run.ledger.entries) == entries


def test_a_store_without_labels_is_good_for_predictions_alone(
    whole_run: Path,
    train_store: ExampleStore,
    test_store: ExampleStore,
    log_folder: Path,
    tmp_path: Path,
) -> None:
    store = dpads.prepare(
        log_folder / "test.parquet", test_store.schema, out=tmp_path / "s", labelled=False
    )
    run = dpads.Run.load(whole_run)
    np.testing.assert_array_equal(run.predict(store), run.predict(test_store))
    entries = len(run.ledger.entries)
    part, rest = dpads.ExampleStore.open(store.path).split(0.5, seed=1)
    for use in (
        lambda: run.evaluate(store),
        lambda: run.evaluate(rest),
        lambda: dpads.train(part, **SMALL),
        lambda: dpads.train(train_store, **SMALL, test=store),
    ):
        with pytest.raises(StoreError, match="without labels"):
            use()
    assert len(run.ledger.entries) == entries


def test_without_noise_nothing_is_claimed(train_store: ExampleStore) -> None:
    spec = dpads.PrivacySpec(noise_multiplier=0.0, dataset_size=3000)
    run = dpads.train(train_store, **{**SMALL, "privacy": spec}, l2_clip_norm=float("inf"))
    assert run.statement().claim_level is ClaimLevel.NONE
    assert run.statement().epsilon is None


def test_a_published_noise_seed_voids_the_claim(train_store: ExampleStore) -> None:
    assert dpads.train(train_store, **SMALL, noise_seed=1).statement().claim_level == "none"


def test_progress_shows_both_stages_and_ends_at_the_budget(
    train_store: ExampleStore, test_store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    seen: list[RunProgress] = []
    dpads.train(train_store, **SMALL, test=test_store, reference=True, on_progress=seen.append)
    stages = {stage: [p for p in seen if p.stage == stage] for stage in ("reference", "training")}
    assert all(p.epsilon_spent is None for p in stages["reference"])
    spent = [p.epsilon_spent for p in stages["training"]]
    assert spent == sorted(spent, key=lambda value: value or 0.0)
    assert 2.9 < (spent[-1] or 0.0) <= 3.0
    names = {item.name for item in dataclasses.fields(RunProgress)}
    assert not any("loss" in name or "norm" in name or "batch" in name for name in names)


def test_defaults_are_those_of_the_configuration() -> None:
    defaults = {
        name: p.default
        for name, p in inspect.signature(dpads.train).parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    for item in dataclasses.fields(TrainingConfig):
        assert defaults[item.name] == getattr(TrainingConfig(), item.name), item.name
    assert defaults["l2_clip_norm"] == 1.0


def test_runs_show_no_figures_of_private_rows(whole_run: Path) -> None:
    run = dpads.Run.load(whole_run)
    assert repr(run) == f"Run(Logistic(), path='{whole_run}')"
    assert "3000" not in repr(run)


def test_paths_and_names_are_refused_where_stores_and_models_are_expected() -> None:
    with pytest.raises(ConfigError, match=r"such as dpads.models.Logistic\(\), got str"):
        dpads.train(None, model="logistic", privacy=dpads.PrivacySpec(epsilon=1.0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="store to be an ExampleStore, got str"):
        dpads.train(
            "log.csv",  # type: ignore[arg-type]
            model=dpads.models.Logistic(),
            privacy=dpads.PrivacySpec(epsilon=1.0),
        )


def test_what_happened_upstream_is_on_the_ledger_once(train_store: Any, tmp_path: Path) -> None:
    text = "rows of robots were dropped"
    run = dpads.train(train_store, **SMALL, statement={"upstream": text}, out=tmp_path / "run")
    found = [(e.description, e.treatment) for e in run.ledger.entries if e.kind == "upstream"]
    assert found == [(text, "not_covered")]
    assert kinds(run.ledger)[0] == "upstream"
    rows = [
        a for a in run.statement().data["definition"]["data_accesses"] if a["description"] == text
    ]
    assert [a["filled_by"] for a in rows] == ["human"]
    assert text in run.statement().headline
    assert dpads.verify(tmp_path / "run").ok


def test_a_statement_is_of_the_ledger_as_it_is_on_disk(
    run_copy: Path, train_store: ExampleStore
) -> None:
    # somebody else opened the same run and read its training rows
    one, other = dpads.Run.load(run_copy), dpads.Run.load(run_copy)
    other.evaluate(train_store)
    assert "exact metrics on training rows" in one.statement().headline
