"""Real logs, end to end: what benchmarks/adkdd.md claims, and Criteo's own file through the preset."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dpads
from dpads.cli import app

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "adkdd.json"
TEST_SHARE = 0.2


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What the benchmark found."""
    found: dict[str, Any] = json.loads(BENCHMARK.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def adkdd(
    real_data: Path, report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dpads.ExampleStore:
    """The AdKDD log under the benchmark's buckets."""
    buckets = report["configuration"]["buckets"]
    schema = dpads.FeatureSchema(
        task="ctr", label="click", categorical=list(buckets), buckets=buckets
    )
    out = tmp_path_factory.mktemp("adkdd") / "store"
    return dpads.prepare(real_data / "criteo_adkdd2021.parquet", schema, out=out)


def winner(report: dict[str, Any], epsilon: float | None) -> dict[str, Any]:
    """What the benchmark found for dpads at a budget."""
    [result] = [result for result in report["results"] if result["epsilon"] == epsilon]
    found: dict[str, Any] = result["sides"]["dpads"]
    return found


def train(
    rows: dpads.ExampleStore, setting: dict[str, Any], privacy: dpads.PrivacySpec
) -> dpads.Run:
    """A run under one of the benchmark's settings."""
    rate = {"learning_rate": setting["learning_rate"], "schedule": setting["schedule"]}
    return dpads.train(
        rows,
        model=dpads.models.Logistic(),
        privacy=privacy,
        l2_clip_norm=setting["l2_clip_norm"] or math.inf,
        expected_batch_size=setting["batch_size"],
        epochs=setting["epochs"],
        table_optimizer=dpads.Sgd(**rate, weight_decay=setting["weight_decay"]),
        tower_optimizer=dpads.Sgd(**rate),
    )


def mean_auc(found: dict[str, Any]) -> float:
    """The benchmark's mean over its seeds."""
    return statistics.mean(float(test["scores"]["auc"]) for test in found["tests"])


def test_without_noise_and_clipping_the_auc_is_at_least_0_825(
    adkdd: dpads.ExampleStore, report: dict[str, Any]
) -> None:
    # The mean over three splits: one split's 1,400 clicks leave its AUC uncertain by 0.006.
    found = winner(report, None)
    privacy = dpads.PrivacySpec(noise_multiplier=0.0, delta=1e-6)
    reached = []
    for seed in report["configuration"]["seeds"]:
        rows, test = adkdd.split(TEST_SHARE, seed)
        auc = train(rows, found["winner"], privacy).evaluate(test)["auc"]
        assert auc is not None
        reached.append(auc)
    assert statistics.mean(reached) >= 0.825
    assert abs(statistics.mean(reached) - mean_auc(found)) < 0.002


def test_a_private_run_states_its_budget_and_reaches_the_benchmarks_auc(
    adkdd: dpads.ExampleStore, report: dict[str, Any]
) -> None:
    found = winner(report, 3.0)
    rows, test = adkdd.split(TEST_SHARE, 0)
    privacy = dpads.PrivacySpec(epsilon=3.0, delta=1e-6, dataset_size=57_254)
    run = train(rows, found["winner"], privacy)
    stated = run.statement().epsilon
    assert stated is not None
    assert 2.9 < stated <= 3.0
    auc = run.evaluate(test)["auc"]
    assert auc is not None
    assert abs(auc - found["tests"][0]["scores"]["auc"]) < 0.008


def test_the_benchmark_finds_dpads_not_inferior(report: dict[str, Any]) -> None:
    assert [result["epsilon"] for result in report["results"]] == [1.0, 3.0, 8.0, None]
    for result in report["results"]:
        assert all(len(side["trials"]) == 8 for side in result["sides"].values())
        gap = result["difference"]["auc"]
        assert gap["mean"] >= -gap["standard_error"]
    assert sum(report["configuration"]["buckets"].values()) <= 60_000


def test_criteos_original_file_trains_through_the_preset_with_one_command(
    real_data: Path, tmp_path: Path
) -> None:
    log = real_data / "criteo_1tb_day0_10k.tsv.gz"
    config = tmp_path / "criteo.toml"
    config.write_text(
        f"""
        [data]
        train = {json.dumps(str(log))}
        test = 0.2
        [schema]
        preset = "criteo-display"
        buckets = 2000
        [model]
        name = "logistic"
        [privacy]
        epsilon = 8.0
        delta = 1e-5
        dataset_size = 8000
        [training]
        expected_batch_size = 1000
        epochs = 10
        table_optimizer = {{ name = "sgd", learning_rate = 1.0 }}
        tower_optimizer = {{ name = "sgd", learning_rate = 0.1 }}
        """,
        encoding="utf-8",
    )
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", str(config), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["auc"] > 0.65
    stated = dpads.Run.load(out).statement().epsilon
    assert stated is not None
    assert stated <= 8.0
