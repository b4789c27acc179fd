"""Recalibration and the counted prior: what rows put in, what is fitted, the ledger, resumption."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_runs import kinds, stop_at

import dpads
from dpads import recalibration as stage
from dpads.accounting.checks import ClaimLevel
from dpads.accounting.ledger import Ledger
from dpads.accounting.releases import Release, Wanted
from dpads.errors import ConfigError
from dpads.label_sums import LabelBounds, unit_batches
from dpads.models.calibration import Buckets, ScaleAndBias
from dpads.noise import RunKeys
from dpads.prior import offset_of
from dpads.private_sums_config import COUNTING, PriorConfig, RecalibrationConfig, wanted_releases
from dpads.recalibration_fit import (
    NODES,
    SPACING,
    Means,
)
from dpads.release_stages import ReleaseStages
from dpads.store import ExampleStore

OFF = RecalibrationConfig(kind="none")
ROWS = 6000
SMALL: dict[str, Any] = {
    "model": dpads.models.Logistic(),
    "privacy": dpads.PrivacySpec(epsilon=8.0, dataset_size=ROWS),
    "expected_batch_size": 500,
    "epochs": 2,
    "noise_seed": 5,
}


def make_store(folder: Path, **schema: Any) -> ExampleStore:
    """A log in which one column decides how likely a label is."""
    rng = np.random.default_rng(3)
    group = rng.integers(0, 6, ROWS)
    logits = -3.0 + 0.6 * group
    counts = rng.poisson(np.exp(0.4 * group - 1.0))
    pl.DataFrame(
        {
            "group": group.astype(str),
            "other": rng.integers(0, 40, ROWS).astype(str),
            "label": (rng.random(ROWS) < 1.0 / (1.0 + np.exp(-logits))).astype(np.int64),
            "count": counts,
            "exposure": rng.choice([0.25, 1.0, 4.0], ROWS),
            "weight": rng.choice([0.5, 1.0, 20.0], ROWS),
            "user": rng.integers(0, 1500, ROWS),
        }
    ).write_parquet(folder / "log.parquet")
    asked = {"task": "ctr", "label": "label", **schema}
    public = dpads.FeatureSchema(categorical=["group", "other"], buckets=64, **asked)
    return dpads.prepare(folder / "log.parquet", public, out=folder / "store")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ExampleStore:
    return make_store(tmp_path_factory.mktemp("clicks"), user="user")


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> ExampleStore:
    folder = tmp_path_factory.mktemp("counts")
    return make_store(folder, task="count", label="count", exposure="exposure")


# What a row, and a unit, put in.


def read_vectors(
    store: ExampleStore,
    privacy: dpads.PrivacySpec,
    config: RecalibrationConfig,
    monkeypatch: pytest.MonkeyPatch,
    scale: float = 3.0,
) -> NDArray[np.float64]:
    """Every unit's vector before it is clipped, float64[units, coordinates]."""
    model = dpads.models.Logistic().init(store.schema, seed=0)
    rng = np.random.default_rng(0)
    for array in model.arrays.values():  # logits far apart, beyond the nodes too
        array[...] = rng.normal(0.0, scale, array.shape)
    dense: list[NDArray[np.float64]] = []

    def instead(_: Release, size: int, *args: Any) -> NDArray[np.float64]:
        for vectors in args[-2]():
            number = len(vectors.offsets) - 1
            units = np.repeat(np.arange(number), np.diff(vectors.offsets))
            whole = np.zeros((number, size))
            np.add.at(whole, (units, vectors.places), vectors.values)
            dense.append(whole)
        return np.zeros(size)

    monkeypatch.setattr(stage, "noisy_sum", instead)
    release = Release(kind="recalibration", share=0.1, l2_clip_norm=1.0, noise_multiplier=1.0)
    stage.recalibrated(release, model, store, privacy, config, RunKeys(b"k" * 32, "aa"), Ledger())
    return np.concatenate(dense)


def bound_of(store: ExampleStore, config: RecalibrationConfig) -> float:
    """The norm bound that a configuration reserves for its recalibration."""
    prior, selection = PriorConfig(), dpads.SelectionConfig()
    (wanted,) = wanted_releases(store.schema, prior, selection, config)
    return wanted.l2_clip_norm


USERS = dpads.PrivacySpec(epsilon=8.0, unit="user", max_examples_per_unit=3)


@pytest.mark.parametrize("unit", ["example", "user"])
def test_no_unit_is_longer_than_the_norm_bound_whatever_its_rows(
    unit: str, store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing is cut because of labels, which would move the calibration."""
    privacy, rows = SMALL["privacy"], store
    if unit == "user":
        privacy, rows = USERS, store.capped(3, seed=1)
    norms = np.linalg.norm(read_vectors(rows, privacy, RecalibrationConfig(), monkeypatch), axis=1)
    bound = bound_of(store, RecalibrationConfig())
    assert norms.max() <= bound
    assert norms.max() > 0.9 * bound  # and the bound is no larger than it has to be


@pytest.mark.parametrize("largest_exposure", [0.5, 1.0, 4.0])
def test_counts_and_exposures_are_cut_to_public_bounds(
    largest_exposure: float, counts: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RecalibrationConfig(largest_count=3, largest_exposure=largest_exposure)
    norms = np.linalg.norm(
        read_vectors(counts, SMALL["privacy"], config, monkeypatch, scale=1.0), axis=1
    )
    assert 0.5 * bound_of(counts, config) < norms.max() <= bound_of(counts, config)


def test_weights_are_cut_to_a_public_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weighted = make_store(tmp_path, weight="weight")
    config = RecalibrationConfig(largest_weight=2.0)
    vectors = read_vectors(weighted, SMALL["privacy"], config, monkeypatch)
    assert np.linalg.norm(vectors, axis=1).max() <= bound_of(weighted, config)
    # Weights 0.5, 1 and 20 count as a quarter, a half and one.
    rows = np.round(vectors[:, 1 + len(NODES) :].sum(axis=1) / COUNTING, 6)
    assert set(rows.tolist()) == {0.25, 0.5, 1.0}


def test_sums_are_those_of_the_rows_one_by_one(
    store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against plain Python: hat functions, residuals, the mean over a user's rows."""
    capped = store.capped(3, seed=1)
    vectors = read_vectors(capped, USERS, RecalibrationConfig(), monkeypatch)
    model = dpads.models.Logistic().init(store.schema, seed=0)
    rng = np.random.default_rng(0)
    for array in model.arrays.values():
        array[...] = rng.normal(0.0, 3.0, array.shape)
    offsets = capped.user_offsets
    assert offsets is not None
    for unit in (0, 1, 17, len(offsets) - 2):
        rows = np.arange(offsets[unit], offsets[unit + 1])
        batch = capped.read(rows)
        expected = np.zeros(stage.COORDINATES)
        for logit, label in zip(
            model.tower.logits(model.features(batch)).tolist(), batch.labels.tolist(), strict=True
        ):
            share = 1.0 / len(rows)
            at = min(max(logit, -12.0), 4.0)
            for number, node in enumerate(NODES.tolist()):
                hat = max(0.0, 1.0 - abs(at - node) / SPACING)
                residual = share * (label - 1.0 / (1.0 + math.exp(-node)))
                expected[0] += hat * residual
                expected[1 + number] += hat * residual
                expected[1 + len(NODES) + number] += hat * share * COUNTING
        np.testing.assert_allclose(vectors[unit], expected, atol=2e-6)


def test_a_row_whose_logit_is_not_a_number_makes_its_unit_count_as_nothing() -> None:
    logits = np.array([0.3, math.nan, -2.0])
    vectors = stage.row_vectors(
        logits, np.ones(3), np.ones(3), Means("ctr", 1.0), np.array([0, 2, 3])
    )
    assert np.isnan(vectors.values[5:10]).all()
    assert np.isfinite(vectors.values[10:]).all()


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.floats(-40, 40), st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
        min_size=1,
        max_size=6,
    )
)
def test_hat_functions_share_a_row_between_two_nodes(
    rows: list[tuple[float, float, float]],
) -> None:
    logits, labels, weights = (np.array(column) for column in zip(*rows, strict=True))
    vectors = stage.row_vectors(logits, labels * weights, weights, Means("ctr", 1.0), None)
    for number in range(len(rows)):
        entry = vectors.values[5 * number : 5 * number + 5]
        assert np.linalg.norm(entry) <= math.sqrt(2.0 + COUNTING**2) * weights[number] * (1 + 1e-12)
        assert entry[1] + entry[2] == pytest.approx(entry[0])
        assert entry[3] + entry[4] == pytest.approx(COUNTING * weights[number])


# In a run.


def test_private_runs_are_recalibrated_by_default_and_say_what_it_did(store: ExampleStore) -> None:
    run = dpads.train(store, **{**SMALL, "noise_seed": None}, test=0.3)
    assert kinds(run.ledger) == ["training", "training_finished", "recalibration", "evaluation"]
    assert isinstance(run.model.output.calibration, ScaleAndBias)
    assert run.ledger.joint_event() == run.plan.event()
    assert run.plan.loss.epsilon <= 8.0
    before = run.metrics["before_recalibration"]
    assert before["auc"] == pytest.approx(run.metrics["auc"], abs=1e-6)
    assert before["calibration"] != run.metrics["calibration"]
    assert run.statement().claim_level is ClaimLevel.FORMAL
    assert run.statement().epsilon == pytest.approx(8.0, abs=0.02)


def test_a_model_that_predicts_too_little_is_put_right(store: ExampleStore) -> None:
    low = dpads.train(store, **SMALL, test=0.3, prior=PriorConfig(kind="public", rate=0.002))
    before = low.metrics["before_recalibration"]
    assert before["calibration"] < 0.8
    assert abs(math.log(low.metrics["calibration"])) < 0.5 * abs(math.log(before["calibration"]))
    assert low.metrics["log_loss"] < before["log_loss"]


@pytest.mark.parametrize("unit", ["example", "user"])
@pytest.mark.parametrize("kind", ["scale_and_bias", "buckets"])
def test_runs_in_a_folder_verify(unit: str, kind: Any, store: ExampleStore, tmp_path: Path) -> None:
    privacy = USERS if unit == "user" else SMALL["privacy"]
    run = dpads.train(
        store,
        **{**SMALL, "privacy": privacy, "noise_seed": None},
        recalibration=RecalibrationConfig(kind=kind, share=0.05),
        prior=PriorConfig(kind="dp_count", share=0.03),
        out=tmp_path / "run",
    )
    assert kinds(run.ledger) == ["dp_count", "training", "training_finished", "recalibration"]
    assert dpads.verify(tmp_path / "run").first_failure is None
    assert dpads.verify(tmp_path / "run" / "statement.json").first_failure is None
    again = dpads.Run.load(tmp_path / "run")
    assert again.model.output == run.model.output
    assert isinstance(
        again.model.output.calibration, Buckets if kind == "buckets" else ScaleAndBias
    )
    assert again.config == run.config
    np.testing.assert_array_equal(again.predict(store), run.predict(store))


def test_counts_are_recalibrated(counts: ExampleStore) -> None:
    privacy = dpads.PrivacySpec(epsilon=8.0, dataset_size=ROWS)
    run = dpads.train(
        counts,
        **{**SMALL, "privacy": privacy},
        test=0.3,
        prior=PriorConfig(kind="public", rate=0.2),
    )
    before = run.metrics["before_recalibration"]
    assert abs(math.log(run.metrics["calibration"])) < abs(math.log(before["calibration"]))


def test_without_noise_nothing_is_fitted(store: ExampleStore) -> None:
    run = dpads.train(
        store,
        **{**SMALL, "privacy": dpads.PrivacySpec(noise_multiplier=0, dataset_size=ROWS)},
        prior=PriorConfig(kind="dp_count"),
    )
    assert kinds(run.ledger) == ["training", "training_finished"]
    assert run.model.output.calibration is None
    assert run.model.output.offset == 0.0


def test_weights_that_nothing_bounds_are_not_recalibrated(tmp_path: Path) -> None:
    weighted = make_store(tmp_path, weight="weight")
    assert kinds(dpads.train(weighted, **SMALL).ledger) == ["training", "training_finished"]
    with pytest.raises(ConfigError, match="largest_weight"):
        dpads.train(weighted, **SMALL, recalibration=RecalibrationConfig(kind="scale_and_bias"))
    bounded = dpads.train(weighted, **SMALL, recalibration=RecalibrationConfig(largest_weight=20.0))
    assert kinds(bounded.ledger)[-1] == "recalibration"


# The prior.


def test_a_counted_prior_is_the_rate_of_the_rows(store: ExampleStore) -> None:
    run = dpads.train(store, **SMALL, prior=PriorConfig(kind="dp_count", share=0.2))
    labels = store.read(np.arange(ROWS)).labels
    rate = float(labels.mean())
    assert run.model.output.offset == pytest.approx(math.log(rate / (1 - rate)), abs=0.15)


def test_a_public_prior_is_no_access(store: ExampleStore) -> None:
    run = dpads.train(
        store, **SMALL, prior=PriorConfig(kind="public", rate=0.25), recalibration=OFF
    )
    assert kinds(run.ledger) == ["training", "training_finished"]
    assert run.model.output.offset == pytest.approx(math.log(0.25 / 0.75))
    with pytest.raises(ConfigError, match="below 1"):
        dpads.train(store, **SMALL, prior=PriorConfig(kind="public", rate=2.0))


def test_weights_of_classes_move_where_the_output_starts(store: ExampleStore) -> None:
    model = dpads.models.Logistic().init(store.schema, seed=0)
    output = dataclasses.replace(model.output, positive_weight=4.0, negative_weight=0.5)
    offset = offset_of(0.1, store.schema, output)
    # Predictions take the weights back: before the first iteration they are the rate.
    predicted = dataclasses.replace(output, offset=offset).predict("ctr", np.zeros(1), None)
    assert predicted[0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "public"}, "rate"),
        ({"rate": 0.1}, "rate"),
        ({"kind": "public", "rate": -1.0}, "> 0"),
        ({"kind": "counted"}, "zero, public, dp_count"),
        ({"kind": "dp_count", "share": 2.0}, "in \\(0, 1\\)"),
    ],
)
def test_priors_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PriorConfig(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "isotonic"}, "scale_and_bias, buckets, none"),
        ({"share": 0.0}, "in \\(0, 1\\)"),
        ({"largest_count": 0}, "largest_count"),
        ({"largest_exposure": math.inf}, "largest_exposure"),
        ({"largest_weight": -1.0}, "largest_weight"),
    ],
)
def test_recalibrations_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecalibrationConfig(**keys)


# The ledger, and runs that are cut off.


def test_the_entry_is_on_the_ledger_before_a_row_is_read(
    store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time units are read for a sum, the last entry is that sum's."""
    ledgers: list[Ledger] = []
    last: list[str] = []
    begin = ReleaseStages.begin

    def watched(stages: ReleaseStages, *args: Any) -> Any:
        ledgers.append(stages.ledger)
        return begin(stages, *args)

    def read(*args: Any) -> Any:
        for item in unit_batches(*args):
            last.append(ledgers[-1].entries[-1].kind)
            yield item

    monkeypatch.setattr(ReleaseStages, "begin", watched)
    for module in ("dpads.prior", "dpads.recalibration"):
        monkeypatch.setattr(f"{module}.unit_batches", read)
    dpads.train(store, **SMALL, prior=PriorConfig(kind="dp_count"))
    assert last == ["dp_count", "recalibration"]


class StopError(Exception):
    """Somebody pulls the plug."""


@pytest.mark.parametrize("where", ["count", "iteration", "sum", "fit", "files"])
def test_a_run_that_is_cut_off_ends_like_one_that_is_not(
    where: str, store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**SMALL, "prior": PriorConfig(kind="dp_count"), "privacy": SMALL["privacy"]}
    whole = dpads.train(store, **asked, out=tmp_path / "whole")

    def stop(*_: Any, **__: Any) -> Any:
        raise StopError

    with monkeypatch.context() as cut:
        if where == "count":
            cut.setattr("dpads.private_sums.add_clipped", stop)
        elif where == "sum":
            cut.setattr("dpads.recalibration.row_vectors", stop)
        elif where == "fit":
            cut.setattr("dpads.recalibration.fit_scale_and_bias", stop)
        elif where == "files":
            cut.setattr("dpads.run.Run.write", stop)
        progress = stop_at(4) if where == "iteration" else None
        with pytest.raises((StopError, KeyboardInterrupt)):
            dpads.train(store, **asked, out=tmp_path / "cut", on_progress=progress)
    resumed = dpads.run_training.train_config(
        whole.config, store=store, out=tmp_path / "cut", resume=True
    )
    assert kinds(resumed.ledger) == kinds(whole.ledger)
    assert resumed.model.output == whole.model.output
    for name, array in whole.model.state().items():
        np.testing.assert_array_equal(resumed.model.state()[name], array)


def test_keys_are_kept_before_the_first_entry(
    store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise_seed: what was drawn once is drawn again, so it is charged once."""
    drawn: list[float] = []
    counted = dpads.release_stages.counted_offset  # type: ignore[attr-defined]

    def watched(*args: Any) -> float:
        drawn.append(counted(*args))
        if len(drawn) == 1:
            raise StopError
        return drawn[-1]

    monkeypatch.setattr("dpads.release_stages.counted_offset", watched)
    asked = {**SMALL, "noise_seed": None, "prior": PriorConfig(kind="dp_count")}
    with pytest.raises(StopError):
        dpads.train(store, **asked, out=tmp_path / "run")
    partial = tmp_path / "run.partial"
    assert kinds(Ledger.load(partial / "ledger.jsonl")) == ["dp_count"]
    config = dpads.config.load_config(partial / "config.toml")
    run = dpads.run_training.train_config(config, store=store, out=tmp_path / "run", resume=True)
    assert drawn[0] == drawn[1] == run.model.output.offset
    assert kinds(run.ledger).count("dp_count") == 1


def test_a_release_of_which_the_keys_are_lost_is_not_made_again(
    store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**SMALL, "noise_seed": None, "prior": PriorConfig(kind="dp_count")}

    def stop(*_: Any) -> Any:
        raise StopError

    with monkeypatch.context() as cut:
        cut.setattr("dpads.private_sums.add_clipped", stop)
        with pytest.raises(StopError):
            dpads.train(store, **asked, out=tmp_path / "run")
    import shutil

    shutil.rmtree(tmp_path / "run.partial" / "checkpoints")
    config = dpads.config.load_config(tmp_path / "run.partial" / "config.toml")
    with pytest.raises(dpads.CheckpointError, match="privacy is spent"):
        dpads.run_training.train_config(config, store=store, out=tmp_path / "run", resume=True)


def test_wanted_releases_are_functions_of_public_numbers(store: ExampleStore) -> None:
    found = wanted_releases(
        store.schema,
        PriorConfig(kind="dp_count"),
        dpads.SelectionConfig(),
        RecalibrationConfig(),
    )
    assert found == (
        Wanted(kind="dp_count", share=0.01, l2_clip_norm=math.sqrt(1.25)),
        Wanted(kind="recalibration", share=0.02, l2_clip_norm=math.sqrt(2.25)),
    )


def test_bounds_of_a_row(counts: ExampleStore) -> None:
    bounds = LabelBounds.of(counts.schema, RecalibrationConfig(largest_count=3))
    batch = counts.read(np.arange(500))
    assert batch.exposure is not None
    exposure, label = bounds.exposure(batch), bounds.label(batch)
    assert exposure.max() == 1.0
    cut = batch.exposure > 1.0
    rates = (
        batch.labels[cut] / batch.exposure[cut]
    )  # at four times the exposure, a quarter of the count
    np.testing.assert_allclose(label[cut], np.minimum(rates, 3.0))
    assert label.max() == 3.0
