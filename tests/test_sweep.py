"""A sweep from end to end: runs, ledger, results, noise of its own for every trial, and going on."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sweep_cases import announced, base, digests, sweep_of

import dpads
from dpads import sweep_results, sweeping, training
from dpads.accounting.relation import Relation
from dpads.accounting.tuning import cost_of_composition
from dpads.errors import ConfigError, DataError, RunError, StoreError
from dpads.store import ExampleStore
from dpads.sweep_config import SweepConfig, parse_sweep
from dpads.sweep_engine import OnEvent, TrialEvent
from dpads.sweep_folder import sole_user
from dpads.sweep_results import ALWAYS
from dpads.sweep_stores import open_stores
from dpads.sweep_trial import TrialTask, run_trial

AXES = {
    "privacy.epsilon": [1.0, 3.0],
    "privacy.l2_clip_norm": [0.5, 1.0],
    "training.init_seed": [1, 2],
}


@pytest.fixture(scope="module")
def config(log_folder: Path) -> SweepConfig:
    return sweep_of(AXES, log_folder, reference=True)


@pytest.fixture(scope="module")
def swept(config: SweepConfig, tmp_path_factory: pytest.TempPathFactory) -> dpads.Sweep:
    """Eight private trials and two without noise, by two workers."""
    return dpads.sweep(config, out=tmp_path_factory.mktemp("sweeps") / "a", workers=2, threads=1)


def test_every_trial_is_an_ordinary_run(swept: dpads.Sweep) -> None:
    assert len(swept.trials) == 10
    for trial in swept.trials:
        run = dpads.Run.load(swept.folder_of(trial.name))
        assert run.config.training == trial.config.training
        assert run.config.data.train == (str(swept.path / "store" / "train"),)
        assert run.statement().headline
        assert run.record.performance["threads"] == 1
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (swept.path, swept.path / "trials")]
    assert modes == [0o700, 0o700]
    assert not list(swept.path.glob("trials/*.partial"))


def test_no_trial_is_stated_without_the_others(swept: dpads.Sweep) -> None:
    asked = hashlib.sha256((swept.path / "sweep.toml").read_bytes()).hexdigest()
    for trial in swept.trials:
        run = dpads.Run.load(swept.folder_of(trial.name))
        kinds = [entry.kind for entry in run.ledger.entries]
        fitted = ["recalibration"] if run.plan.is_private else []
        assert kinds == ["trial", "training", "training_finished", *fitted, "evaluation"]
        entry = run.ledger.entries[0]
        assert (entry.treatment, entry.details) == ("not_covered", {"sweep": asked, "trials": 10})
        statement = run.statement()
        assert statement.claim_level == ("none" if trial.reference else "conditional")
        assert trial.reference or "9 other trials" in statement.headline


def test_results_have_a_row_for_each_trial(swept: dpads.Sweep) -> None:
    table = pl.read_parquet(swept.path / "results.parquet")
    assert table.equals(swept.results)
    assert table["trial"].to_list() == [trial.name for trial in swept.trials]
    assert set(table["status"]) == {"done"}
    assert table["error"].null_count() == 10
    assert set(table.columns) >= {*AXES, *ALWAYS, "auc_loss", "auc_loss_low", "ece_low"}
    types = {
        "reference": pl.Boolean,
        "privacy.epsilon": pl.Float64,
        "privacy.unit": pl.String,
        "training.expected_batch_size": pl.Int64,
        "training.init_seed": pl.Int64,
        "auc_loss": pl.Float64,
        "ece_low": pl.Float64,
        "iterations": pl.Int64,
        "memory_bytes": pl.Int64,
    }
    assert {name: table.schema[name] for name in types} == types
    for row in table.iter_rows(named=True):
        run = dpads.Run.load(swept.path / row["run"])
        assert row["auc_loss"] == run.metrics["auc_loss"]
        assert [row["auc_loss_low"], row["auc_loss_high"]] == run.metrics["intervals"]["auc_loss"]
        assert row["noise_multiplier"] == run.plan.mechanism.noise_multiplier
        assert row["iterations"] == 20
        assert row["epsilon"] == (math.inf if row["reference"] else run.plan.loss.epsilon)
        assert row["privacy.epsilon"] >= row["epsilon"]
        assert row["seconds"] > 0
        assert row["memory_bytes"] is None or row["memory_bytes"] > 50_000_000


def test_the_increase_is_over_the_model_without_noise_of_the_same_seed(swept: dpads.Sweep) -> None:
    table = swept.results
    bare = {row["training.init_seed"]: row for row in table.filter("reference").to_dicts()}
    assert set(bare) == {1, 2}
    for row in table.to_dicts():
        loss = bare[row["training.init_seed"]]["auc_loss"]
        for end in ("", "_low", "_high"):
            expected = (row[f"auc_loss{end}"] - loss) / loss
            assert row[f"relative_increase{end}"] == pytest.approx(expected)


def test_the_ledger_has_every_trial_once(swept: dpads.Sweep) -> None:
    kinds = {t.name: "reference" if t.reference else "tuning" for t in swept.trials}
    expected = {(name, kind): 1 for name, own in kinds.items() for kind in (own, "evaluation")}
    assert announced(swept.path) == expected
    assert {e.rows for e in swept.ledger.entries if e.kind == "evaluation"} == {"declared_test"}


def test_the_cost_is_that_of_all_private_trials_composed(swept: dpads.Sweep) -> None:
    events = [
        dpads.Run.load(swept.folder_of(trial.name)).plan.event()
        for trial in swept.trials
        if not trial.reference
    ]
    (cost,) = swept.costs
    whole = cost_of_composition(events, cost.delta, Relation.ADD_OR_REMOVE_ONE)
    assert cost.trials == 8
    assert cost.epsilon == pytest.approx(whole.loss.epsilon)
    assert json.loads((swept.path / "sweep.json").read_text())["cost"] == [cost.to_dict()]


def test_two_trials_that_differ_in_one_setting_share_no_noise(
    swept: dpads.Sweep, train_store: ExampleStore
) -> None:
    """Rows that no example reads hold nothing but noise."""
    read = np.unique(train_store.read(np.arange(len(train_store))).scalar_ids[:, 0])
    name = train_store.schema.fields[0].name
    noise = {
        trial.name: np.delete(
            dpads.Run.load(swept.folder_of(trial.name)).model.tables[name], read, axis=0
        ).ravel()
        for trial in swept.trials
        if not trial.reference
    }
    values = np.array(list(noise.values()))
    assert values.shape[1] > 150
    correlation = np.corrcoef(values)
    first, second = np.triu_indices(8, 1)
    assert np.abs(correlation[first, second]).max() < 5 / np.sqrt(values.shape[1])
    # Models leave on a public grid, a thousandth of the noise's scale, where few meet by chance.
    assert (values[first] == values[second]).mean(axis=1).max() < 0.03


def test_starting_again_touches_nothing_that_has_ended(
    swept: dpads.Sweep, config: SweepConfig
) -> None:
    before, ledger = digests(swept.path), swept.ledger.head
    again = dpads.sweep(config, out=swept.path)
    assert digests(swept.path) == before
    assert again.ledger.head == ledger
    assert again.results.equals(swept.results)
    assert dpads.Sweep.open(swept.path).trials == swept.trials


def test_a_folder_of_another_sweep_is_refused_by_the_keys_that_differ(
    swept: dpads.Sweep, log_folder: Path, tmp_path: Path
) -> None:
    other = sweep_of({**AXES, "privacy.epsilon": [1.0, 4.0]}, log_folder, rows="public")
    with pytest.raises(
        ConfigError, match=r"another sweep: axes\.privacy\.epsilon, reference, rows differ"
    ):
        dpads.sweep(other, out=swept.path)
    document = base(log_folder, training={"epochs": 3})
    other = parse_sweep({"base": document, "axes": AXES, "reference": True}, base=Path())
    with pytest.raises(ConfigError, match=r"another sweep: base\.training\.epochs differ"):
        dpads.sweep(other, out=swept.path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="is no sweep"):
        dpads.sweep(other, out=tmp_path / "full")
    with pytest.raises(ConfigError, match="found a file"):
        dpads.sweep(other, out=tmp_path / "full" / "file")
    with pytest.raises(ConfigError, match="expected the folder of a sweep"):
        dpads.Sweep.open(tmp_path)


def test_two_processes_never_run_one_sweep(swept: dpads.Sweep, config: SweepConfig) -> None:
    with sole_user(swept.path), pytest.raises(RunError, match="another process runs this sweep"):
        dpads.sweep(config, out=swept.path)


def test_a_disk_that_fills_keeps_the_results_so_far(
    swept: dpads.Sweep, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (swept.path / "results.parquet").read_bytes()

    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(sweep_results, "write_bytes", full)
    with pytest.raises(RunError, match=r"No space left on device.*is kept.*start the sweep again"):
        dpads.sweep(config, out=swept.path)
    assert (swept.path / "results.parquet").read_bytes() == before
    monkeypatch.undo()
    assert dpads.sweep(config, out=swept.path).results.height == 10


def test_threads_stay_as_interrupted_trials_began_with_them(
    swept: dpads.Sweep, config: SweepConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(swept.path, folder)
    (folder / "trials" / "0003").rename(folder / "trials" / "0003.partial")
    assert dpads.Sweep.open(folder).results.height == 10
    with pytest.raises(ConfigError, match="Expected threads = 1"):
        dpads.sweep(config, out=folder, threads=2)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run here, and no report is written: both take seconds."""

    def run(tasks: list[TrialTask], *, workers: int, on_event: OnEvent) -> None:
        for task in tasks:
            outcome = run_trial(task)
            on_event(TrialEvent(trial=task.name, kind="finished", outcome=outcome))

    monkeypatch.setattr(sweeping, "run_trials", run)
    monkeypatch.setattr(dpads.Sweep, "report", lambda _: None)


@pytest.mark.usefixtures("in_this_process")
def test_a_whole_run_that_was_not_renamed_is_done(swept: dpads.Sweep, config: SweepConfig) -> None:
    """As a crash leaves it between the run's last file and its name."""
    before, results = digests(swept.path), swept.results
    trial = swept.folder_of("0003")
    trial.rename(trial.with_name("0003.partial"))
    again = dpads.sweep(config, out=swept.path)
    assert again.results.equals(results)
    assert digests(swept.path) == before
    assert announced(swept.path)["0003", "tuning"] == 1


@pytest.mark.usefixtures("in_this_process")
def test_a_failed_trial_is_left_alone_until_it_is_retried(
    log_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep_of({"privacy.epsilon": [1, 3]}, log_folder)
    began: list[object] = []

    def room_for_one(estimate: object) -> None:
        began.append(estimate)
        if len(began) == 2:
            raise ConfigError("no room")

    monkeypatch.setattr(training, "check_memory", room_for_one)
    for again, status in ((False, "failed"), (False, "failed"), (True, "done")):
        swept = dpads.sweep(config, out=tmp_path / "s", threads=1, retry_failed=again)
        assert swept.results["status"].to_list() == ["done", status]
        if status == "failed":
            assert swept.results["error"].to_list() == [None, "no room"]
            assert swept.results["auc_loss"].null_count() == 1
            assert len(began) == 2
    assert len(began) == 3
    assert announced(swept.path)["0002", "tuning"] == 1  # it had failed before it read a row


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"engine": "dask"}, 'unknown value \'dask\'. Known: "local", "ray"'),
        ({"address": "a:1"}, 'address with engine = "ray" alone'),
        ({"workers": 0}, "workers to be a positive integer"),
        ({"threads": 10_000}, "threads to be at most"),
        ({"out": None}, "Expected out"),
    ],
)
def test_bad_arguments_are_refused(
    config: SweepConfig, tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dpads.sweep(config, **{"out": tmp_path / "s", **keys})  # type: ignore[arg-type]


def test_logs_that_share_a_file_are_refused_before_they_are_prepared(
    log_folder: Path, tmp_path: Path
) -> None:
    document = base(log_folder)
    (tmp_path / "link.parquet").symlink_to(log_folder / "train.parquet")
    document["data"]["test"] = str(tmp_path / "link.parquet")
    config = parse_sweep({"base": document, "axes": AXES}, base=Path())
    with pytest.raises(ConfigError, match="share a log"):
        dpads.sweep(config, out=tmp_path / "s")
    assert not (tmp_path / "s" / "store").exists()


def test_bad_rows_are_refused_before_a_trial_runs(
    log_folder: Path, train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path
) -> None:
    document = base(log_folder)
    document["data"]["test"] = str(tmp_path / "gone.parquet")
    config = parse_sweep({"base": document, "axes": AXES}, base=Path())
    with pytest.raises(DataError, match=r"^data\.test: .*gone"):
        dpads.sweep(config, out=tmp_path / "a")
    document = base(schema={"buckets": 300})
    document["data"] = {"train": str(train_store.path), "test": str(test_store.path)}
    config = parse_sweep({"base": document, "axes": AXES}, base=Path())
    with pytest.raises(StoreError, match="another schema: buckets"):
        dpads.sweep(config, out=tmp_path / "b")
    document = base()
    document["data"] = {"train": str(train_store.path), "test": str(test_store.path)}
    del document["privacy"]["dataset_size"]
    axes = {"training.expected_batch_size": [100, 5000]}
    config = parse_sweep({"base": document, "axes": axes}, base=Path())
    with pytest.raises(
        ConfigError, match=r"with training\.expected_batch_size = 5000: .*in the store"
    ):
        dpads.sweep(config, out=tmp_path / "c")


def test_stores_are_used_where_they_are(
    train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path
) -> None:
    document = base()
    document["data"] = {"train": str(train_store.path), "test": str(test_store.path)}
    config = parse_sweep({"base": document, "axes": AXES}, base=Path())
    stores = open_stores(config, tmp_path / "store", None)
    assert stores.train.path == train_store.path
    assert stores.test_rows == "declared_test"
    assert not list((tmp_path / "store").iterdir())
    document["data"]["test"] = str(train_store.path)
    same = parse_sweep({"base": document, "axes": AXES}, base=Path())
    assert open_stores(same, tmp_path / "store", None).test_rows == "train_and_test"


def test_rows_that_another_split_trains_on_are_no_test_rows(
    train_store: ExampleStore, tmp_path: Path
) -> None:
    document = base()
    document["data"] = {"train": str(train_store.path), "test": 0.2}
    one = parse_sweep({"base": document, "axes": {"data.split_seed": [1]}}, base=Path())
    two = parse_sweep({"base": document, "axes": {"data.split_seed": [1, 2]}}, base=Path())
    assert open_stores(one, tmp_path / "store", None).test_rows == "test"
    assert open_stores(two, tmp_path / "store", None).test_rows == "train_and_test"


def test_of_several_models_without_noise_the_best_over_all_seeds_is_the_baseline() -> None:
    config = sweep_of(
        {
            "privacy.epsilon": [math.inf],
            "training.expected_batch_size": [100, 300],
            "training.init_seed": [1, 2],
        }
    )
    losses = dict(zip((t.name for t in config.trials), (0.2, 0.6, 0.3, 0.4), strict=True))
    found = sweep_results._baselines([(t, losses[t.name]) for t in config.trials])
    # 100 has the lowest loss of all, 300 the lowest mean.
    assert {
        trial.settings["training.init_seed"]: found[trial.group] for trial in config.trials
    } == {
        1: 0.3,
        2: 0.4,
    }


def test_settings_of_any_type_make_a_column() -> None:
    for values, kind in (
        ([1, None], pl.Int64),
        ([1, 2.5, None], pl.Float64),
        ([True, None], pl.Boolean),
        (["a", None], pl.String),
        (["auto", 8, None], pl.String),
        ([None, None], pl.Boolean),
    ):
        series = sweep_results._series("x", values)
        assert series.dtype == kind
        assert series.null_count() == values.count(None)
    assert sweep_results._series("x", ["auto", 8]).to_list() == ['"auto"', "8"]
    assert sweep_results._plain({"name": "mlp", "hidden": [8]}) == '{"hidden": [8], "name": "mlp"}'


def test_what_is_known_of_work_orders_trials() -> None:
    from dpads.sweep_progress import work_of

    config = sweep_of({"privacy.epsilon": [1]}).trials[0].config
    wide = sweep_of({"model": [{"name": "mlp", "embedding_dim": 16, "hidden": [512, 512]}]})
    assert work_of(config, 200) > work_of(config, 100)
    assert work_of(wide.trials[0].config, 100) > work_of(config, 100)
    larger = dataclasses.replace(
        config, training=dataclasses.replace(config.training, expected_batch_size=3000)
    )
    assert work_of(larger, 100) > work_of(config, 100)
