"""scikit-learn's estimators: its conventions, the same model as `dpads.train`, and an honest ledger."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import d2_tweedie_score, roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks
from small_runs import kinds

import dpads
from dpads.errors import ConfigError, DataError
from dpads.estimators import as_table
from dpads.schema import FeatureSchema
from dpads.synthetic import SyntheticLog

PRIVACY = dpads.PrivacySpec(epsilon=3.0, dataset_size=3000)
FAST: dict[str, Any] = {"expected_batch_size": 300, "epochs": 2}
# Without noise, and with all rows in every batch: nothing random, whatever the store's key.
EXACT: dict[str, Any] = {
    "privacy": dpads.PrivacySpec(noise_multiplier=0.0, dataset_size=3000),
    "expected_batch_size": 3000,
    "epochs": 3,
    "l2_clip_norm": float("inf"),
}


def classifier(schema: FeatureSchema, **changes: Any) -> dpads.DPClassifier:
    options = {"privacy": PRIVACY, **FAST, **changes}
    return dpads.DPClassifier(schema, dpads.models.Logistic(), **options)


@pytest.fixture(scope="module")
def rows(click_log: SyntheticLog) -> tuple[pa.Table, Any]:
    table = click_log.table[:3000]
    return table.drop_columns("click"), table["click"].to_numpy()


@pytest.fixture(scope="module")
def fitted(click_log: SyntheticLog, rows: Any) -> dpads.DPClassifier:
    return classifier(click_log.schema).fit(*rows)


def test_it_is_the_model_that_train_makes(
    fitted: dpads.DPClassifier,
    click_log: SyntheticLog,
    train_store: dpads.ExampleStore,
    rows: Any,
) -> None:
    run = dpads.train(train_store, model=dpads.models.Logistic(), **EXACT)
    exact = classifier(click_log.schema, **EXACT).fit(*rows)
    np.testing.assert_allclose(exact.predict_proba(rows[0])[:, 1], run.predict(train_store), 1e-5)
    assert exact.run_.plan == run.plan
    assert len(set(run.predict(train_store).tolist())) > 1000
    assert (fitted.run_.statement().epsilon or 9) <= 3.0


def test_parameters_are_those_of_train() -> None:
    """Each with its default, but what a fit cannot have: rows to test on, and callbacks."""
    train = inspect.signature(dpads.train).parameters
    own = inspect.signature(dpads.DPClassifier).parameters
    assert set(train) - set(own) == {
        "store", "test", "split_seed", "reference", "start_from", "start_from_public", "statement",
        "on_progress", "on_rows", "on_statement",
    }  # fmt: skip
    assert set(own) - set(train) == {"schema"}
    for name in set(own) - {"schema", "model", "privacy"}:
        assert own[name].default == train[name].default, name
    assert inspect.signature(dpads.DPCountRegressor) == inspect.signature(dpads.DPClassifier)


def test_every_parameter_reaches_the_training(
    click_log: SyntheticLog, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpads import estimators

    class DoneError(Exception):
        pass

    seen: dict[str, Any] = {}

    def train(store: Any, **options: Any) -> Any:
        seen.update(options)
        raise DoneError

    monkeypatch.setattr(estimators, "train", train)
    model = classifier(
        click_log.schema, init_seed=8, l2_clip_norm=0.5, out="x", positive_weight=2.0
    )
    with pytest.raises(DoneError):
        model.fit(*rows)
    assert seen == {k: v for k, v in model.get_params(deep=False).items() if k != "schema"}


@pytest.mark.parametrize("kind", [dpads.DPClassifier, dpads.DPCountRegressor])
def test_the_checks_of_scikit_learn_that_apply(kind: Any) -> None:
    """Those that need no data (rows here have named columns and a schema) and allow frozen defaults."""
    for check in (
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_estimator_tags_renamed,
        checks.check_valid_tag_types,
        checks.check_mixin_order,
        checks.check_no_attributes_set_in_init,
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_get_params_invariance,
        checks.check_set_params,
    ):
        check(kind.__name__, kind())


def test_clone_keeps_parameters_and_drops_what_was_fitted(fitted: dpads.DPClassifier) -> None:
    other = clone(fitted)
    assert not hasattr(other, "run_")
    assert other.get_params() == fitted.get_params()
    other.set_params(epochs=3, privacy=dpads.PrivacySpec(epsilon=1.0))
    assert fitted.epochs == 2
    with pytest.raises(NotFittedError):
        other.predict(pa.table({}))
    with pytest.raises(ValueError, match="Invalid parameter"):
        other.set_params(epsilon=1.0)


def test_probabilities_classes_and_scores(fitted: dpads.DPClassifier, rows: Any) -> None:
    table, y = rows
    p = fitted.predict_proba(table)
    assert p.shape == (3000, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    np.testing.assert_array_equal(fitted.predict(table), (p[:, 1] > 0.5).astype(int))
    np.testing.assert_allclose(
        fitted.decision_function(table), np.log(p[:, 1] / p[:, 0]), rtol=1e-5
    )
    assert fitted.classes_.tolist() == [0, 1]
    assert fitted.score(table, y) == pytest.approx(roc_auc_score(y, p[:, 1]))
    assert fitted.n_features_in_ == len(table.column_names)
    assert fitted.feature_names_in_.tolist() == table.column_names


def test_a_score_is_an_exact_read_that_the_ledger_has(
    click_log: SyntheticLog, rows: Any, tmp_path: Path
) -> None:
    model = classifier(click_log.schema, out=tmp_path / "run").fit(*rows)
    assert model.run_.statement().claim_level == "formal"
    model.score(*rows)
    ledger = dpads.Run.load(tmp_path / "run").ledger
    assert kinds(ledger)[-1] == "evaluation"
    assert ledger.entries[-1].rows == "train_and_test"
    assert model.run_.statement().claim_level == "conditional"
    with pytest.raises(ConfigError, match="exists already"):
        model.fit(*rows)  # a second fit never writes over the first


def test_frames_tables_and_batches_are_the_same_rows(fitted: dpads.DPClassifier, rows: Any) -> None:
    table, _ = rows

    class Foreign:
        """A frame of another library, as pandas' speak Arrow."""

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return table[:50].__arrow_c_stream__(requested_schema)

    frame: Any = pl.from_arrow(table[:50])
    want = fitted.predict_proba(table[:50])
    for same in (frame, frame.lazy(), table[:50].combine_chunks().to_batches()[0], Foreign()):
        np.testing.assert_array_equal(fitted.predict_proba(same), want)
    for wrong in ("log.parquet", [[1, 2]], np.zeros(3)):
        with pytest.raises(ConfigError, match=r"polars\.read_parquet"):
            as_table(wrong)


def test_a_pipeline_of_frames(click_log: SyntheticLog, rows: Any) -> None:
    table, y = rows
    frame: Any = pl.from_arrow(table)

    def upper(data: pl.DataFrame) -> pl.DataFrame:
        return data.with_columns(pl.col("device").cast(pl.String).str.to_uppercase())

    steps = [("upper", FunctionTransformer(upper)), ("model", classifier(click_log.schema))]
    pipeline = Pipeline(steps).set_params(model__epochs=1)
    pipeline.fit(frame, y)
    assert pipeline.named_steps["model"].epochs == 1
    assert pipeline.predict_proba(frame[:5]).shape == (5, 2)
    np.testing.assert_array_equal(
        pipeline.predict_proba(frame)[:, 1],
        pipeline.named_steps["model"].predict_proba(upper(frame))[:, 1],
    )


def test_a_matrix_has_columns_x0_and_so_on() -> None:
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(2000, 3))
    y = rng.random(2000) < 1 / (1 + np.exp(-2 * matrix[:, 1]))
    schema = FeatureSchema(task="ctr", label="y", numeric=["x0", "x1", "x2"])
    model = classifier(schema, privacy=dpads.PrivacySpec(epsilon=8.0), expected_batch_size=200)
    model.set_params(tower_optimizer=dpads.Adam(learning_rate=0.05), epochs=5)
    assert model.fit(matrix, y).score(matrix, y) > 0.7
    assert not hasattr(model, "feature_names_in_")
    assert model.n_features_in_ == 3
    folds = cross_val_predict(model, matrix, y, cv=2, method="predict_proba")
    assert folds.shape == (2000, 2)


def test_counts_with_exposure_and_weights() -> None:
    rng = np.random.default_rng(6)
    seconds = rng.uniform(0.5, 4.0, 3000)
    group = rng.integers(0, 4, 3000)
    y = rng.poisson(seconds * np.array([0.1, 0.4, 0.8, 1.5])[group])
    frame = pl.DataFrame({"group": group, "seconds": seconds, "w": np.ones(3000)})
    schema = FeatureSchema(
        task="count", label="n", categorical=["group"], exposure="seconds", weight="w", buckets=50
    )
    model = dpads.DPCountRegressor(
        schema, dpads.models.Logistic(), dpads.PrivacySpec(epsilon=8.0, dataset_size=3000),
        expected_batch_size=300, epochs=4, table_optimizer=dpads.Sgd(learning_rate=1.0),
        tower_optimizer=dpads.Adam(learning_rate=0.05),
    )  # fmt: skip
    model.fit(frame, y, sample_weight=rng.uniform(0.5, 1.5, 3000))
    means = model.predict(frame)
    assert means.dtype == np.float64
    doubled = model.predict(frame.with_columns(pl.col("seconds") * 2))
    np.testing.assert_allclose(doubled, 2 * means, rtol=1e-5)
    assert model.score(frame, y) == pytest.approx(d2_tweedie_score(y, means, power=1))
    assert model.score(frame, y) > 0.2


def test_weights_that_are_given_take_the_place_of_those_of_the_rows(
    rows: Any, click_log: SyntheticLog
) -> None:
    table, y = rows
    schema = FeatureSchema.from_dict({**click_log.schema.to_dict(), "weight": "w"})
    one, two = np.ones(3000), np.where(y > 0, 5.0, 1.0)
    given = classifier(schema, **EXACT).fit(table, y, sample_weight=two)
    there = classifier(schema, **EXACT).fit(table.append_column("w", pa.array(two)), y)
    over = table.append_column("w", pa.array(one))
    replaced = classifier(schema, **EXACT).fit(over, y, sample_weight=two)
    for other in (there, replaced):
        np.testing.assert_allclose(other.predict_proba(table), given.predict_proba(table), 1e-5)
    plain = classifier(schema, **EXACT).fit(over, y)
    assert plain.predict_proba(table)[:, 1].mean() < given.predict_proba(table)[:, 1].mean()


def test_wrong_use_is_told(click_log: SyntheticLog, rows: Any, tmp_path: Path) -> None:
    table, y = rows
    good = classifier(click_log.schema, out=tmp_path / "run")
    for name in ("schema", "model", "privacy"):
        with pytest.raises(ConfigError, match=f"Expected {name} to be a .*, got NoneType"):
            clone(good).set_params(**{name: None}).fit(table, y)
    counts = FeatureSchema(task="count", label="n", categorical=["device"])
    with pytest.raises(ConfigError, match="DPCountRegressor for counts"):
        clone(good).set_params(schema=counts).fit(table, y)
    with pytest.raises(ConfigError, match='task count, got "ctr"'):
        dpads.DPCountRegressor(click_log.schema, good.model, PRIVACY).fit(table, y)
    with pytest.raises(DataError, match="expected 3000 values"):
        good.fit(table, y[:-1])
    with pytest.raises(ConfigError, match="names no weight"):
        good.fit(table, y, sample_weight=np.ones(3000))
    with pytest.raises(DataError, match='"click": expected 0 or 1'):
        good.fit(table, y + 1)
    with pytest.raises(DataError, match='"device"'):
        good.fit(table.drop_columns("device"), y)
    assert not hasattr(good, "run_")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["ctr", "count"])
def test_a_score_renews_the_statement_on_disk(
    click_log: SyntheticLog, rows: Any, tmp_path: Path, task: str
) -> None:
    """The ledger and the statement in the folder say that labels were read without noise."""
    table, y = rows
    out = tmp_path / "run"
    if task == "ctr":
        model: Any = classifier(click_log.schema, out=out)
    else:
        schema = FeatureSchema.from_dict({**click_log.schema.to_dict(), "task": "count"})
        model = dpads.DPCountRegressor(schema, dpads.models.Logistic(), PRIVACY, **FAST, out=out)
    model.fit(table, y)
    before = (out / "statement.md").read_text()
    model.score(table, y)
    assert dpads.verify(out).first_failure is None
    written = dpads.Run.load(out).statement()
    assert written.data["ledgers"][0]["entries"] == len(model.run_.ledger.entries)
    assert "rows that may be training rows" in (out / "statement.md").read_text()
    assert "rows that may be training rows" not in before
