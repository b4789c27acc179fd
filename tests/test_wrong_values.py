"""Wrong values in Python: an error that says what was expected, never a traceback from inside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from small_runs import SMALL
from torch import nn

import dpads
from dpads.config import parse_config
from dpads.errors import ConfigError, DataError
from dpads.sweep_config import parse_sweep
from dpads.synthetic import SyntheticLog

BASE: dict[str, Any] = {
    "data": {"train": "log.parquet"},
    "schema": {"task": "ctr", "label": "y", "categorical": ["c"], "buckets": 9},
    "model": {"name": "logistic"},
    "privacy": {"epsilon": 3.0, "dataset_size": 400},
}
OPTIMIZER = "Sgd or Adam or AdamBC"
BATCH = "expected_batch_size to be a whole number >= 1"
WRONG: list[tuple[str, Any, str]] = [
    ("prior", "dp_count", r"Expected prior to be a PriorConfig, got str\. Pass prior=dpads\.Prior"),
    ("prior", {"kind": "dp_count"}, "PriorConfig, got dict"),
    ("prior", None, "PriorConfig, got NoneType"),
    ("recalibration", "none", "RecalibrationConfig, got str"),
    ("recalibration", 0.1, "RecalibrationConfig, got float"),
    ("selection", "noisy_count", "SelectionConfig, got str"),
    ("selection", 1, "SelectionConfig, got int"),
    ("table_optimizer", "sgd", f"Expected table_optimizer to be a {OPTIMIZER}, got str"),
    ("tower_optimizer", None, f"Expected tower_optimizer to be a {OPTIMIZER}, got NoneType"),
    ("epochs", "1", "Expected epochs to be a finite number > 0, got '1'"),
    ("epochs", math.nan, "Expected epochs"),
    ("epochs", True, "Expected epochs"),
    ("expected_batch_size", "50", f"Expected {BATCH}, got '50'"),
    ("expected_batch_size", 50.5, f"Expected {BATCH}, got 50.5"),
    ("privacy", 3.0, r"Expected privacy to be a PrivacySpec, got float\. Pass privacy=dpads\.P"),
    ("backend", None, 'Unknown backend "None"'),
    ("init_seed", None, "Expected init_seed to be an integer >= 0, got None"),
    ("split_seed", "a", "Expected split_seed to be a whole number"),
    ("split_seed", 1.5, "Expected split_seed to be a whole number"),
    (
        "positive_weight",
        1e12,
        r"positive_weight to be a number from 0\.0001 to 10000, got 1000000000000",
    ),
    ("negative_weight", 1e-9, "negative_weight to be a number from"),
    ("statement", "x", "Expected statement to be facts by name, got str"),
    ("performance", 4, "Expected performance to be a Performance, got int"),
    ("out", 3, "Expected out to be a str or Path, got int"),
    ("model", nn.Linear(3, 1), r"dpads\.models\.from_torch\(module, schema\)"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_training_says_what_it_expected(
    train_store: dpads.ExampleStore, name: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dpads.train(train_store, **{**SMALL, name: value})


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (dpads.SelectionConfig, {"threshold": 3.0}, 'threshold only with kind = "noisy_count"'),
        (dpads.SelectionConfig, {"share": 0.2}, 'share only with kind = "noisy_count"'),
        (dpads.PriorConfig, {"share": 0.2}, 'share only with kind = "dp_count"'),
        (dpads.PriorConfig, {"kind": "public", "rate": 0.1, "share": 0.2}, "share only with"),
        (dpads.RecalibrationConfig, {"kind": "none", "share": 0.2}, "share only with another kind"),
    ],
)
def test_a_number_that_would_change_nothing_is_refused(
    kind: Any, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**keys)


def test_a_sweep_varies_whether_rows_are_selected_together_with_the_threshold() -> None:
    """Or it could not: where nothing is selected, a threshold is refused."""
    base = {**BASE, "training": {"expected_batch_size": 100, "epochs": 1}}
    kinds = [{"kind": "none"}, {"kind": "noisy_count", "threshold": 3.0}]
    asked = parse_sweep(
        {
            "base": {**base, "data": {"train": "log.parquet", "test": 0.2}},
            "axes": {"selection": kinds},
        },
        base=Path("/"),
    )
    assert [trial.config.selection for trial in asked.trials] == [
        dpads.SelectionConfig(),
        dpads.SelectionConfig(kind="noisy_count", threshold=3.0),
    ]


@pytest.mark.parametrize(
    ("table", "value", "message"),
    [
        (
            "model",
            {"name": "logistic", "hidden": [8]},
            '"model.hidden": model "logistic" knows none',
        ),
        ("model", {"name": "fm", "hidden": [8]}, 'model "fm" knows "embedding_dim"'),
        ("model", "logistic", 'Did you mean model.name = "logistic"'),
        ("recalibration", "none", 'Did you mean recalibration.kind = "none"'),
        ("prior", {"kind": "public", "rate": 3.0}, r"\[prior\] Expected rate below 1"),
    ],
)
def test_a_configuration_says_what_is_wrong_before_a_log_is_read(
    table: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**BASE, table: value}, base=Path("/"))


def test_shares_that_leave_nothing_are_named(train_store: dpads.ExampleStore) -> None:
    prior = dpads.PriorConfig(kind="dp_count", share=0.995)
    with pytest.raises(ConfigError, match=r"got dp_count 0\.995 \+ recalibration 0\.02 = 1\.015"):
        dpads.train(train_store, **SMALL, prior=prior)


def test_estimators_speak_of_their_rows_and_of_no_file(click_log: SyntheticLog) -> None:
    table = click_log.table[:100]
    model = dpads.DPClassifier(click_log.schema, SMALL["model"], SMALL["privacy"], epochs=1)
    y = table["click"].to_numpy()
    with pytest.raises(DataError, match=r'^X: .*"device"'):
        model.fit(table.drop_columns(["click", "device"]), y)
    with pytest.raises(DataError, match="requires y to be passed, but the target y is None"):
        model.fit(table.drop_columns("click"), cast("Any", None))


class Stream:
    """A frame of a library that dpads does not know, as pandas' are: it speaks Arrow's interface."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(schema)


def test_frames_of_others_are_predicted_and_exported(
    train_store: dpads.ExampleStore, click_log: SyntheticLog
) -> None:
    run = dpads.train(train_store, **SMALL)
    rows = click_log.table[3000:3100]
    assert run.predict(Stream(rows)).equals(run.predict(rows))
    own, others = run.export_inputs(rows), run.export_inputs(Stream(rows))
    assert all((own[name] == others[name]).all() for name in own if own[name].dtype.kind == "i")
    with pytest.raises(ConfigError, match=r"pyarrow\.Table\.from_pandas"):
        run.predict([1])
