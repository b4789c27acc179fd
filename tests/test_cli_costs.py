"""The command line on time and memory: `dpads bench`, and `dpads plan` of a configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_calls import CONFIG, done, dpads_command

import dpads
from dpads import cli_bench, resources
from dpads.resources import estimate_memory


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose logs are not there."""
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def test_plan_takes_what_is_left_out_from_a_configuration_and_tells_time_and_memory(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_bench, "PLAN_SECONDS", 0.01)
    text = done("plan", "--config", config)
    first, _, second = text.partition("On this machine")
    plain = done("plan", "--examples", 3000, "--epsilon", 3, "--batch-size", 300, "--epochs", 2)
    assert first.split() == plain.split()
    assert re.search(r"^ 300 +2 +\d+\.\d ms +[\d,]+ +\d+ s +0\.\d\d GB", second, flags=re.MULTILINE)
    figures = json.loads(
        done("plan", "--config", config, "--json", "--batch-size", 100, "--epochs", 1)
    )
    (row,) = figures["rows"]
    assert (row["expected_batch_size"], row["iterations"]) == (100, 30)
    assert row["seconds"] == pytest.approx(30 * row["step_ms"] / 1e3)
    schema = dpads.FeatureSchema.from_toml(config)
    memory = estimate_memory(dpads.models.Logistic(), schema, expected_batch_size=100)
    assert row["memory_bytes"] == memory.to_dict()
    assert row["fits_into_memory"] is True
    keys = {"step_ms", "seconds", "memory_bytes", "fits_into_memory"}
    without = json.loads(done("plan", "--examples", 3000, "--epsilon", 3, "--json"))
    assert not keys & set(without["rows"][0])


def test_plan_says_what_will_not_fit(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "PLAN_SECONDS", 0.01)
    text = config.read_text()
    config.write_text(text.replace("buckets = 200", "buckets = 700_000_000"))
    monkeypatch.setattr(resources, "available_memory", lambda _root: 10**9)
    words = " ".join(done("plan", "--config", config).split())
    assert "got one that needs" in words
    assert "Use fewer buckets" in words
    assert " ms " in words  # smaller tables stood in
    config.write_text(
        text.replace("buckets = 200", "buckets = 7_000_000")
        .replace('name = "logistic"', 'name = "mlp"\nembedding_dim = "auto"\nhidden = [8]')
    )  # fmt: skip
    (row,) = json.loads(done("plan", "--config", config, "--json"))["rows"]
    assert (row["step_ms"], row["seconds"], row["fits_into_memory"]) == (None, None, False)
    assert "smaller ones cannot stand in" in " ".join(done("plan", "--config", config).split())


def test_plan_says_which_number_a_configuration_lacks(config: Path) -> None:
    config.write_text(config.read_text().replace("dataset_size = 3000\n", ""))
    result = dpads_command("plan", "--config", config)
    assert result.exit_code == 2
    assert "no dataset_size" in result.stderr
    assert "--examples" in result.stderr


def test_bench_says_what_to_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "BENCH_SECONDS", 0.01)
    size = ["--rows", 2600, "--batch-size", 64, "--hidden", 8, "--embedding-dim", 4]
    result = dpads_command("bench", *size)
    assert result.exit_code == 0, result.output
    assert re.search(r"^ 2,600 +64 +\d+\.\d ms +\d+\.\d ms +\d", result.stdout, flags=re.MULTILINE)
    assert result.stdout.count("An epoch of 10 million examples takes about") == 1
    assert result.stderr == "measuring 2,600 rows, batch size 64\n"
    figures = json.loads(done("bench", *size, "--batch-size", 128, "--json"))
    assert figures["model"]["hidden"] == [8]
    assert figures["machine"]["cores"] >= 1
    assert [cell["expected_batch_size"] for cell in figures["cells"]] == [64, 128]
    assert all(cell["examples_per_second"] > 0 for cell in figures["cells"])
