"""Confidence intervals of metrics: they cover as often as they say, and move as rows do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dpads.evaluation import metrics

ROUNDS = 400
ROWS = 800


def click_rows(
    random: np.random.Generator, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and predictions of a model that is a little off: logits 2x - 2 against 1.6x - 1.8."""
    x = random.standard_normal(count)
    y = (random.random(count) < 1 / (1 + np.exp(2 - 2 * x))).astype(float)
    return y, 1 / (1 + np.exp(1.8 - 1.6 * x))


def count_rows(
    random: np.random.Generator, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts and predictions that are a tenth too high."""
    rate = np.exp(0.5 * random.standard_normal(count))
    return random.poisson(rate).astype(float), 1.1 * rate


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("ctr", ("auc", "auc_loss", "pr_auc", "log_loss", "normalized_entropy", "calibration")),
        ("count", ("poisson_log_loss", "rmse", "calibration")),
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(task: str, names: tuple[str, ...]) -> None:
    # 400 rounds: 95 % coverage comes out between 92 % and 98 % but for a chance of about 1 in 100;
    # intervals narrower by a fifth would cover 88 %.
    rows_of = click_rows if task == "ctr" else count_rows
    random = np.random.default_rng(5)
    truth = metrics(task, *rows_of(random, 1_000_000))  # type: ignore[arg-type]
    covered = dict.fromkeys(names, 0)
    for _ in range(ROUNDS):
        found = metrics(task, *rows_of(random, ROWS)).intervals  # type: ignore[arg-type]
        for name in names:
            low, high = found[name]
            value = truth[name]
            assert value is not None
            covered[name] += low <= value <= high
    for name, times in covered.items():
        # the logit interval of average precision is known to be wide where positives are many
        most = 1.0 if name == "pr_auc" else 0.98
        assert 0.92 <= times / ROUNDS <= most, name


def test_the_interval_of_auc_is_that_of_delong() -> None:
    # the definition: every pair of a positive and a negative row is looked at
    random = np.random.default_rng(1)
    y, p = click_rows(random, 60)
    p = p.round(1)  # ties
    pairs = np.sign(p[y == 1][:, None] - p[y == 0][None, :]) / 2 + 0.5
    auc = pairs.mean()
    variance = pairs.mean(1).var(ddof=1) / len(pairs) + pairs.mean(0).var(ddof=1) / pairs.shape[1]
    spread = 1.959963984540054 * np.sqrt(variance) / (auc * (1 - auc))
    logit = np.log(auc / (1 - auc))
    ends = 1 / (1 + np.exp(-(logit + np.array([-spread, spread]))))
    found = metrics("ctr", y, p)
    assert found["auc"] == pytest.approx(auc)
    assert found.intervals["auc"] == pytest.approx(tuple(ends))
    assert found.intervals["auc_loss"] == pytest.approx(tuple(1 - ends[::-1]))


@pytest.mark.parametrize("task", ["ctr", "count"])
def test_intervals_depend_on_neither_order_nor_scale_of_weights(task: str) -> None:
    random = np.random.default_rng(2)
    y, p = (click_rows if task == "ctr" else count_rows)(random, 300)
    w = random.random(300) + 0.1
    order = random.permutation(300)
    first = metrics(task, y, p, weights=w).intervals  # type: ignore[arg-type]
    again = metrics(task, y[order], p[order], weights=5 * w[order]).intervals  # type: ignore[arg-type]
    assert set(first) == set(again)
    for name, ends in first.items():
        assert again[name] == pytest.approx(ends)
    plain = metrics(task, y, p).intervals  # type: ignore[arg-type]
    ones = metrics(task, y, p, weights=np.ones(300)).intervals  # type: ignore[arg-type]
    assert plain == ones


@pytest.mark.parametrize(
    ("y", "p"), [([1.0], [0.5]), ([1.0, 1.0], [0.5, 0.6]), ([0.0, 1.0], [0.1, 0.9]), ([], [])]
)
def test_rows_that_define_no_interval_have_none(y: list[float], p: list[float]) -> None:
    found = metrics("ctr", y, p)
    assert "auc" not in found.intervals
    assert all(low <= high for low, high in found.intervals.values())
    assert "intervals" not in metrics("ctr", [], []).to_dict()


def test_every_interval_holds_its_metric() -> None:
    random = np.random.default_rng(3)
    for task, rows in (("ctr", click_rows), ("count", count_rows)):
        found = metrics(task, *rows(random, 500))  # type: ignore[arg-type]
        for name, (low, high) in found.intervals.items():
            value = found[name]
            assert value is not None
            assert low < value < high, name
