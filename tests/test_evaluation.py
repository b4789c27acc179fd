"""Metrics against values worked out by hand, against brute force, and where they are undefined."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpads.errors import DataError
from dpads.evaluation import (
    BINARY_METRICS,
    COUNT_METRICS,
    metrics,
    relative_increase,
)

Y = np.array([0.0, 0.0, 1.0, 1.0, 0.0])
P = np.array([0.1, 0.4, 0.35, 0.8, 0.2])


def value(result: Mapping[str, float | None], name: str) -> float:
    number = result[name]
    assert number is not None
    return number


def test_binary_metrics_worked_out_by_hand() -> None:
    result = metrics("ctr", Y, P)
    assert set(result) == set(BINARY_METRICS)
    assert not result.undefined
    assert value(result, "auc") == pytest.approx(5 / 6)  # 5 of 6 pairs are in order
    assert value(result, "auc_loss") == pytest.approx(1 / 6)
    # precision 1 at the first positive, 2/3 at the second
    assert value(result, "pr_auc") == pytest.approx((1 + 2 / 3) / 2)
    loss = -(math.log(0.9) + math.log(0.6) + math.log(0.35) + math.log(0.8) + math.log(0.8)) / 5
    entropy = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert value(result, "log_loss") == pytest.approx(loss)
    assert value(result, "normalized_entropy") == pytest.approx(loss / entropy)
    assert value(result, "calibration") == pytest.approx(1.85 / 2)
    # five distinct predictions: each has a bin of its own
    assert value(result, "ece") == pytest.approx(np.abs(Y - P).mean())


def test_count_metrics_worked_out_by_hand() -> None:
    y, m = np.array([0.0, 2.0, 1.0]), np.array([0.5, 1.0, 2.0])
    result = metrics("count", y, m)
    assert set(result) == set(COUNT_METRICS)
    assert value(result, "poisson_log_loss") == pytest.approx((0.5 + 1.0 + 2.0 - math.log(2)) / 3)
    assert value(result, "rmse") == pytest.approx(math.sqrt((0.25 + 1 + 1) / 3))
    assert value(result, "calibration") == pytest.approx(3.5 / 3)


def test_poisson_log_loss_is_least_at_the_truth() -> None:
    y = np.array([0.0, 1.0, 3.0, 0.0])
    best = value(metrics("count", y, np.full(4, 1.0)), "poisson_log_loss")
    for other in (0.8, 0.95, 1.05, 1.3):
        assert value(metrics("count", y, np.full(4, other)), "poisson_log_loss") > best


@pytest.mark.parametrize("task", ["ctr", "cvr", "count"])
def test_integer_weights_equal_repetition(task: str) -> None:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 200).astype(float)
    p = rng.uniform(0.01, 0.99, 200)
    w = rng.integers(0, 4, 200)
    weighted = metrics(task, y, p, weights=w)  # type: ignore[arg-type]
    repeated = metrics(task, np.repeat(y, w), np.repeat(p, w))  # type: ignore[arg-type]
    for name in set(weighted) - {"ece"}:  # bins hold equal numbers of rows, whatever their weight
        assert value(weighted, name) == pytest.approx(value(repeated, name)), name


@given(st.data())
def test_auc_equals_brute_force_with_ties(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 30))
    y = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), float)
    p = np.array(data.draw(st.lists(st.integers(0, 8), min_size=n, max_size=n)), float) / 8
    result = metrics("ctr", y, p)
    positives, negatives = p[y == 1], p[y == 0]
    if not len(positives) or not len(negatives):
        assert result["auc"] is None
        return
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    assert value(result, "auc") == pytest.approx(wins.mean())


@given(st.permutations(range(5)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    tied = np.array([0.2, 0.2, 0.2, 0.9, 0.2])
    expected, got = metrics("ctr", Y, tied), metrics("ctr", Y[order], tied[order])
    for name in BINARY_METRICS:
        assert value(got, name) == pytest.approx(value(expected, name))


def test_ece_of_calibrated_predictions_is_small_and_of_shifted_ones_is_the_shift() -> None:
    rng = np.random.default_rng(3)
    p = rng.uniform(0.01, 0.1, 200_000)
    y = (rng.uniform(size=len(p)) < p).astype(float)
    assert value(metrics("ctr", y, p), "ece") < 0.003
    assert value(metrics("ctr", y, p + 0.05), "ece") == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_only(label: float) -> None:
    result = metrics("ctr", np.full(3, label), [0.1, 0.2, 0.3])
    for name in ("auc", "auc_loss", "pr_auc", "normalized_entropy"):
        assert result[name] is None
        assert result.undefined[name] == "the rows hold one class only"
    assert (result["calibration"] is None) == (label == 0.0)
    assert value(result, "log_loss") > 0


def test_no_rows_and_weightless_rows() -> None:
    for result in (metrics("count", [], []), metrics("ctr", Y, P, weights=np.zeros(5))):
        assert set(result.values()) == {None}
        assert set(result.undefined) == set(result)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_are_said(bad: float) -> None:
    result = metrics("ctr", Y, [0.1, bad, 0.2, 0.3, 0.4])
    assert set(result.values()) == {None}
    assert "not all finite" in result.undefined["auc"]


def test_certain_predictions_have_a_finite_loss() -> None:
    result = metrics("ctr", [0, 1], np.array([1.0, 0.0], np.float32))
    assert 15 < value(result, "log_loss") < 17
    assert math.isfinite(value(metrics("count", [3], [0.0]), "poisson_log_loss"))


@pytest.mark.parametrize(
    ("labels", "predictions", "weights", "what"),
    [
        ([0, 1], [0.5], None, "predictions: expected 2 values"),
        ([0, 2], [0.5, 0.5], None, "labels: expected 0 or 1"),
        ([0, 1], [0.5, 1.5], None, r"predictions: expected \[0, 1\]"),
        ([0, 1], [0.5, 0.5], [1, -1], "weights: expected finite"),
        ([0, 1], [0.5, 0.5], [1], "weights: expected 2 values"),
        ([[0, 1]], [0.5, 0.5], None, "labels: expected one dimension"),
    ],
)
def test_bad_arguments(labels: object, predictions: object, weights: object, what: str) -> None:
    with pytest.raises(DataError, match=what):
        metrics("ctr", labels, predictions, weights=weights)  # type: ignore[arg-type]


def test_metrics_are_plain_json() -> None:
    text = json.dumps(metrics("ctr", [0, 0], [0.1, 0.2]).to_dict(), allow_nan=False)
    assert json.loads(text)["auc"] is None
    assert "auc" in json.loads(text)["undefined"]
    numbers: NDArray[np.float32] = P.astype(np.float32)
    assert all(type(number) is float for number in metrics("ctr", Y, numbers).values())


def test_relative_increase() -> None:
    assert relative_increase("ctr", {"auc_loss": 0.25}, {"auc_loss": 0.2}) == 0.25
    loss = "poisson_log_loss"
    assert relative_increase("count", {loss: -0.4}, {loss: -0.5}) == 0.2
    assert relative_increase("cvr", {"auc_loss": None}, {"auc_loss": 0.2}) is None
    assert relative_increase("cvr", {"auc_loss": 0.1}, {"auc_loss": 0.0}) is None
