"""The calibration table and the reliability plot."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from cli_calls import done, dpads_command
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SMALL
from sweep_folders import sweep_folder

import dpads
from dpads.evaluation import metrics
from dpads.reliability import Bin, calibration_table, from_plain, to_plain
from dpads.report_reliability import Reliability, plot_of, write_plot
from dpads.store import ExampleStore
from dpads.sweep_report import write_report


def made(n: int = 40_000, seed: int = 3) -> tuple[Any, Any]:
    """Labels, and the true probabilities."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(-3.0, 1.0, n)))
    return (rng.random(n) < p).astype(float), p


def test_bins_worked_out_by_hand() -> None:
    y = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    p = np.array([0.1, 0.1, 0.2, 0.7, 0.7, 0.7])
    bins = calibration_table(y, p, np.ones(6), counts=False)
    assert [item.rows for item in bins] == [2, 1, 3]
    assert [item.predicted for item in bins] == pytest.approx([0.1, 0.2, 0.7])
    assert [item.observed for item in bins] == pytest.approx([0.5, 0.0, 2 / 3])
    # Wilson's interval of 1 in 2, computed independently
    assert (bins[0].low, bins[0].high) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert bins[1].low == 0.0
    assert bins[1].high == pytest.approx(0.7935, abs=1e-4)
    assert [item.ratio for item in bins] == [0.2, None, pytest.approx(1.05)]


def test_wilsons_interval_as_published() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148, score method
    for positives, rows, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        y = np.r_[np.ones(positives), np.zeros(rows - positives)]
        (only,) = calibration_table(y, np.full(rows, 0.3), np.ones(rows), counts=False)
        assert (only.low, only.high) == pytest.approx((low, high), abs=5e-5)


def test_the_table_adds_up_to_the_metrics() -> None:
    y, p = made()
    result = metrics("ctr", y, p * 0.8)
    bins = result.calibration_table
    assert len(bins) == 20
    assert sum(item.rows for item in bins) == len(y)
    predicted = sum(item.rows * item.predicted for item in bins)
    observed = sum(item.rows * item.observed for item in bins)
    assert predicted / observed == pytest.approx(result["calibration"])
    gaps = sum(item.rows * abs(item.predicted - item.observed) for item in bins) / len(y)
    assert gaps == pytest.approx(result["ece"])


@pytest.mark.parametrize("task", ["ctr", "count"])
def test_intervals_hold_the_truth_as_often_as_they_say(task: str) -> None:
    """200 tables of 20 bins: 95 % within 1.3 points; intervals of 90 % or 99 % would be found."""
    rng = np.random.default_rng(8)
    inside = total = 0
    for _ in range(200):
        p = rng.uniform(0.02, 0.6, 4000)
        y = (rng.random(4000) < p).astype(float) if task == "ctr" else rng.poisson(p).astype(float)
        bins = calibration_table(y, p, np.ones(4000), counts=task == "count")
        inside += sum(item.is_calibrated for item in bins)
        total += len(bins)
    assert abs(inside / total - 0.95) < 0.013


def test_intervals_of_counts_grow_with_what_counts_vary() -> None:
    rng = np.random.default_rng(2)
    mean = np.full(2000, 0.5)
    calm, wild = rng.poisson(mean), rng.poisson(mean * rng.gamma(0.2, 5.0, 2000))
    widths = []
    for y in (calm, wild):
        (only,) = calibration_table(y.astype(float), mean, np.ones(2000), counts=True)
        widths.append((only.high - only.low) / math.sqrt(only.observed))
    assert widths[1] > 1.5 * widths[0]
    (none,) = calibration_table(np.zeros(100), np.full(100, 0.1), np.ones(100), counts=True)
    assert none.low == 0.0
    assert none.high == pytest.approx(1.96**2 / 100, rel=1e-3)


def test_weights_move_means_and_not_certainty() -> None:
    y, p = made(2000)
    plain = calibration_table(y, p, np.ones(2000), counts=False)
    scaled = calibration_table(y, p, np.full(2000, 7.0), counts=False)
    assert [(b.low, b.high) for b in plain] == [pytest.approx((b.low, b.high)) for b in scaled]
    half = np.where(np.arange(2000) % 2 == 0, 1.0, 0.0)
    assert sum(b.rows for b in calibration_table(y, p, half, counts=False)) == 1000


@given(st.permutations(range(12)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    p = np.array([0.1, 0.1, 0.2, 0.3, 0.3, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    y = (p > 0.35).astype(float)
    w = np.arange(1.0, 13.0)
    expected = calibration_table(y, p, w, counts=False)
    got = calibration_table(y[order], p[order], w[order], counts=False)
    assert [to_plain([item])[0] == pytest.approx(to_plain([own])[0]) for item, own in zip(
        got, expected, strict=True
    )] == [True] * len(expected)  # fmt: skip


def test_metrics_json_holds_the_table_and_undefined_metrics_do_not() -> None:
    y, p = made(500)
    data = json.loads(json.dumps(metrics("ctr", y, p).to_dict(), allow_nan=False))
    assert from_plain(data["calibration_table"]) == metrics("ctr", y, p).calibration_table
    assert "calibration_table" not in metrics("ctr", [], []).to_dict()


def plot(scale: float = 1.0, counts: bool = False, spread: float = 1.0) -> Reliability:
    y, p = made(5000)
    p = p.mean() + (p - p.mean()) * spread
    return plot_of(metrics("ctr", y, p * scale).to_dict(), title="Reliability", counts=counts)


def test_scales_are_logarithmic_where_predictions_differ_much() -> None:
    assert plot().is_log
    assert not plot(spread=0.1).is_log
    for one in (plot(), plot(spread=0.1)):
        low, high = one.extent
        assert all(low <= item.predicted <= high for item in one.all_bins)
        assert all(low <= tick <= high for tick in one.ticks)
        assert 3 <= len(one.ticks) <= 9


def test_predictions_that_hardly_differ_have_a_scale_of_their_own() -> None:
    """Or all marks stand on one vertical line, and bars leave the picture."""
    from dpads.report_reliability import chart
    from dpads.sweep_charts import PLAIN

    bins = [
        Bin(rows=50, predicted=0.030 + k * 1e-5, observed=o, low=o / 3, high=0.1)
        for k, o in enumerate((0.02, 0.0, 0.04, 0.03))
    ]
    one = Reliability(title="t", notes=["n"], bins={"the model": bins}, counts=False)
    left, right = one.x_extent
    marks = [(item.predicted - left) / (right - left) for item in bins]
    assert 0.0 < marks[0] < 0.5 < marks[-1] < 1.0
    assert marks[1] - marks[0] > 0.01
    assert 3 <= len(one.x_ticks) <= 9
    assert all(left <= tick <= right for tick in one.x_ticks)
    assert one.extent[0] == 0.0
    assert one.extent[1] >= 0.1
    drawn = chart(one, {"the model": "#000000"}, PLAIN).to_dict()
    assert drawn["layer"][0]["encoding"]["x"]["scale"]["domain"] == [left, right]
    assert drawn["layer"][2]["encoding"]["y"]["scale"]["domain"] == list(one.extent)
    wide = plot()
    assert wide.x_extent == wide.extent
    assert wide.x_ticks == wide.ticks


def test_bins_in_which_nothing_was_observed_stand_at_the_end_of_the_scale() -> None:
    from dpads.report_reliability import chart
    from dpads.sweep_charts import PLAIN

    bins = [Bin(rows=10, predicted=p, observed=o, low=o / 2, high=o * 2 + 0.01)
            for p, o in ((0.001, 0.0), (0.1, 0.2))]  # fmt: skip
    one = Reliability(title="t", notes=["n"], bins={"the model": bins}, counts=False)
    layers = chart(one, {"the model": "#000000"}, PLAIN).to_dict()["layer"]
    beyond = layers[3]["data"]["values"]
    assert [d["y"] for d in beyond] == [one.extent[0]]
    assert layers[3]["mark"]["shape"] == "triangle-down"
    assert len(layers[2]["data"]["values"]) == 1


def test_the_plot_is_a_picture_with_its_figures(tmp_path: Path) -> None:
    write_plot(plot(), tmp_path / "p.png")
    head = (tmp_path / "p.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    assert width > 800
    assert height > 800
    write_plot(plot(), tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    for word in ("AUC 0.", "PR AUC 0.", "normalized", "predicted rate", "observed rate", "10%"):
        assert word in text, word


def test_the_plot_shows_what_a_recalibration_changed() -> None:
    y, p = made(5000)
    after = metrics("ctr", y, p).to_dict()
    both = plot_of(
        {**after, "before_recalibration": metrics("ctr", y, p / 2).to_dict()},
        title="t", counts=False,
    )  # fmt: skip
    assert list(both.bins) == ["before recalibration", "the model"]
    assert both.bins["the model"] == from_plain(after["calibration_table"])


def test_the_page_of_a_sweep_shows_the_best_model_with_noise_beside_the_best_without(
    tmp_path: Path,
) -> None:
    folder = sweep_folder(tmp_path / "sweep", seeds=(1,), batches=(256,))
    rows = pl.read_parquet(folder / "results.parquet").sort("auc_loss").to_dicts()
    best = {}
    for scale, row in enumerate(rows, 1):
        y, p = made(3000, seed=scale)
        run = folder / row["run"]
        run.mkdir(parents=True)
        metrics_json = metrics("ctr", y, p / scale).to_dict()
        (run / "metrics.json").write_text(json.dumps(metrics_json))
        best.setdefault(math.isinf(row["privacy.epsilon"]), (row["trial"], metrics_json))
    page = write_report(folder).read_text()
    assert 'id="figure-reliability"' in page
    for name, is_reference in (("with", False), ("without", True)):
        trial, values = best[is_reference]
        assert f"lowest loss {name} noise, trial {trial}" in page
        for item in values["calibration_table"]:
            assert f"{item['low']:.4g} to {item['high']:.4g}" in page
    for suffix in ("svg", "png"):
        assert f"plots/reliability.{suffix}" in page
        assert (folder / "plots" / f"reliability.{suffix}").stat().st_size > 1000
    for row in rows:
        (folder / row["run"] / "metrics.json").unlink()
    assert "figure-reliability" not in write_report(folder).read_text()


def test_the_command_draws_and_prints(
    train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path
) -> None:
    dpads.train(train_store, **SMALL, out=tmp_path / "run")
    text = done("evaluate", tmp_path / "run", test_store.path, "--plot", tmp_path / "p.svg")
    assert "Calibration, rows in the order of their predictions" in text
    assert "<svg" in (tmp_path / "p.svg").read_text()
    for name in ("p.svg", "p.pdf", "a/p.png"):
        result = dpads_command(
            "evaluate", tmp_path / "run", test_store.path, "--plot", tmp_path / name
        )
        assert result.exit_code == 2, name
        if name == "p.pdf":
            assert "expected a name that ends with .png or .svg" in result.stderr
    ledger = (tmp_path / "run" / "ledger.jsonl").read_text()
    assert ledger.count('"kind":"evaluation"') == 1
