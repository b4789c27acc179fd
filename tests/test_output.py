from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import brute_force
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpads
from dpads.errors import ConfigError, SchemaError
from dpads.models.calibration import Buckets, ScaleAndBias
from dpads.models.output import Output

SCHEMA = brute_force.schema_of()


def model_of(output: Output, seed: int = 1) -> Any:
    model = brute_force.perturb(dpads.models.Logistic().init(SCHEMA), seed)
    model.output = output
    return model


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_weights_of_classes_are_factors_of_the_losses_before_clipping(data: Any) -> None:
    batch = data.draw(brute_force.batches(SCHEMA))
    given_weights = np.ones(batch.num_examples) if batch.weights is None else batch.weights
    factors = np.where(batch.labels > 0, 3.0, 0.5)
    weighted = dataclasses.replace(batch, weights=(given_weights * factors).astype(np.float32))
    plain = model_of(Output())
    model = model_of(Output(positive_weight=3.0, negative_weight=0.5))
    np.testing.assert_allclose(model.losses(batch), plain.losses(weighted), rtol=1e-12)
    ours = dpads.clipped_gradients(model, batch, l2_clip_norm=0.7)
    norms, sums = brute_force.clipped(plain, weighted, 0.7)
    np.testing.assert_allclose(ours.norms, norms, rtol=1e-5, atol=1e-6)
    for name, value in brute_force.as_dense(model, ours).items():
        np.testing.assert_allclose(value, sums[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["ctr", "count"])
@pytest.mark.parametrize(
    "description", [dpads.models.Logistic(), dpads.models.Mlp(embedding_dim=3, hidden=(4,))]
)
def test_an_offset_is_a_bias_that_is_not_trained(task: Any, description: Any) -> None:
    schema = brute_force.schema_of(task)
    rng = np.random.default_rng(0)
    batch = dpads.SparseBatch.from_arrays(
        ids={
            **{name: rng.integers(-1, 7, 40) for name in "abc"},
            "s": (rng.integers(-1, 7, 40), np.arange(41), rng.random(40)),
            "m": (rng.integers(-1, 7, 40), np.arange(41), None),
        },
        dense=rng.normal(size=(40, 2)),
        labels=rng.integers(0, 2, 40),
        exposure=rng.random(40) + 0.1 if task == "count" else None,
    )
    model = brute_force.perturb(description.init(schema), 3)
    model.output = Output(offset=-1.25)
    other = brute_force.perturb(description.init(schema), 3)
    bias = next(v for n, v in other.dense.items() if n in ("linear.bias", "output.bias"))
    bias -= 1.25
    np.testing.assert_allclose(model.losses(batch), other.losses(batch), rtol=1e-6)
    np.testing.assert_allclose(model.predict(batch), other.predict(batch), rtol=1e-5)
    ours, theirs = (dpads.clipped_gradients(m, batch, l2_clip_norm=1.0) for m in (model, other))
    np.testing.assert_allclose(ours.norms, theirs.norms, rtol=1e-5)
    for name, value in ours.dense.items():
        np.testing.assert_allclose(value, theirs.dense[name], rtol=1e-4, atol=1e-5)


def log_of(rows: int, seed: int) -> pl.DataFrame:
    """A log whose rates are known: 0.25 and 0.05."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, rows)
    rate = np.where(kind == 1, 0.25, 0.05)
    return pl.DataFrame({"y": (rng.random(rows) < rate).astype(int), "c": kind.astype(str)})


def without_noise(store: Any, **more: Any) -> Any:
    """Trained to the end without noise and clipping."""
    return dpads.train(
        store,
        model=dpads.models.Logistic(),
        privacy=dpads.PrivacySpec(noise_multiplier=0.0),
        l2_clip_norm=math.inf,
        expected_batch_size=2000,
        epochs=60,
        tower_optimizer=dpads.Sgd(learning_rate=2.0, schedule="linear"),
        table_optimizer=dpads.Sgd(learning_rate=2.0, schedule="linear"),
        **more,
    )


def test_predictions_take_the_weights_of_classes_back(tmp_path: Path) -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["c"], buckets=50)
    log_of(20_000, 1).write_parquet(tmp_path / "log.parquet")
    store = dpads.prepare(tmp_path / "log.parquet", schema, out=tmp_path / "store")
    plain = without_noise(store)
    weighted = without_noise(store, positive_weight=4.0)
    np.testing.assert_allclose(weighted.predict(store), plain.predict(store), rtol=0.1)
    assert weighted.evaluate(store)["calibration"] == pytest.approx(1.0, abs=0.03)
    again = dpads.Run.load(weighted.save(tmp_path / "run"))
    assert again.model.output == weighted.model.output
    np.testing.assert_array_equal(again.predict(store), weighted.predict(store))


def test_predictions_and_metrics_are_about_the_log_before_negatives_were_left_out(
    tmp_path: Path,
) -> None:
    whole = log_of(60_000, 2)
    kept = np.random.default_rng(5).random(len(whole)) < 0.2
    whole.write_parquet(tmp_path / "whole.parquet")
    whole.filter((pl.col("y") == 1) | pl.Series(kept)).write_parquet(tmp_path / "kept.parquet")
    columns: dict[str, Any] = {"task": "ctr", "label": "y", "categorical": ["c"], "buckets": 50}
    schema = dpads.FeatureSchema(**columns, negatives_kept=0.2)
    store = dpads.prepare(tmp_path / "kept.parquet", schema, out=tmp_path / "store")
    run = without_noise(store)
    reference = dpads.prepare(
        tmp_path / "whole.parquet", dpads.FeatureSchema(**columns), out=tmp_path / "whole"
    )
    theirs = without_noise(reference)
    ours = run.evaluate(store)
    expected = theirs.evaluate(reference)
    for name in ("auc", "log_loss", "calibration", "normalized_entropy", "pr_auc"):
        assert ours[name] == pytest.approx(expected[name], rel=0.03), name
    assert np.unique(run.predict(store)) == pytest.approx([0.05, 0.25], rel=0.06)


def test_a_share_of_one_changes_no_fingerprint_and_another_does() -> None:
    columns: dict[str, Any] = {"task": "ctr", "label": "y", "categorical": ["c"]}
    plain = dpads.FeatureSchema(**columns)
    assert dpads.FeatureSchema(**columns, negatives_kept=1).fingerprint() == plain.fingerprint()
    other = dpads.FeatureSchema(**columns, negatives_kept=0.5)
    assert other.fingerprint() != plain.fingerprint()
    assert dpads.FeatureSchema.from_dict(other.to_dict()) == other


@pytest.mark.parametrize("value", [0, -0.5, 1.5, True, "half", float("nan")])
def test_a_share_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(SchemaError, match=r"negatives_kept of \[schema\]: expected a number in"):
        dpads.FeatureSchema(task="ctr", label="y", categorical=["c"], negatives_kept=value)


def test_counts_have_no_classes() -> None:
    with pytest.raises(SchemaError, match="counts have no negatives"):
        dpads.FeatureSchema(task="count", label="y", categorical=["c"], negatives_kept=0.5)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "2"])
def test_a_weight_of_a_class_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="positive_weight to be a number from"):
        Output(positive_weight=value)


CALIBRATIONS = [ScaleAndBias(0.7, -0.2), Buckets((-4.0, 0.0, 2.0), (-5.0, 0.5, 0.5))]


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_an_output_is_plain_data_and_back(calibration: Any) -> None:
    output = Output(offset=-2.0, positive_weight=2.0, negatives_kept=0.1, calibration=calibration)
    assert Output.from_dict(output.to_dict()) == output
    with pytest.raises(KeyError):
        Output.from_dict({**output.to_dict(), "more": 1})


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_calibrated_logits_do_not_fall_and_are_corrected_after(calibration: Any) -> None:
    logits = np.linspace(-30.0, 30.0, 301)
    assert (np.diff(calibration.apply(logits)) >= 0).all()
    output = Output(offset=1.0, positive_weight=2.0, negatives_kept=0.1, calibration=calibration)
    expected = calibration.apply(logits + 1.0 - math.log(2.0)) + math.log(0.1)
    np.testing.assert_allclose(output.logits(logits), expected, rtol=1e-14)


def test_buckets_are_linear_between_and_beyond_nodes() -> None:
    calibration = CALIBRATIONS[1]
    got = calibration.apply(np.array([-6.0, -4.0, -2.0, 1.0, 5.0]))
    assert got.tolist() == [-7.0, -5.0, -2.25, 0.5, 3.5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScaleAndBias(0.0, 0.0),
        lambda: ScaleAndBias(1.0, math.inf),
        lambda: Buckets((0.0,), (0.0,)),
        lambda: Buckets((0.0, 0.0), (0.0, 1.0)),
        lambda: Buckets((0.0, 1.0), (1.0, 0.0)),
    ],
)
def test_calibrations_that_would_change_the_order_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_the_statement_says_that_negatives_were_left_out(tmp_path: Path) -> None:
    log_of(3_000, 1).write_parquet(tmp_path / "log.parquet")
    schema = dpads.FeatureSchema(
        task="ctr", label="y", categorical=["c"], buckets=50, negatives_kept=0.1
    )
    store = dpads.prepare(tmp_path / "log.parquet", schema, out=tmp_path / "store")
    run = dpads.train(
        store,
        model=dpads.models.Logistic(),
        privacy=dpads.PrivacySpec(epsilon=3.0, dataset_size=3000),
        expected_batch_size=300,
        epochs=2,
    )
    text = run.statement().to_markdown()
    assert "a share of 0.1 of them was kept" in " ".join(text.split())
    upstream = [entry for entry in run.ledger.entries if entry.kind == "upstream"]
    assert [entry.treatment for entry in upstream] == ["not_covered"]
