"""The command line on time and memory: `dpads bench`, and `dpads plan` of a configuration."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from cli_calls import CONFIG, done, dpads_command

import dpads
from dpads import benching, cli_bench, cli_screen, resources, training
from dpads.resources import estimate_memory
from dpads.run_job import RunProgress


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
    times = r"\d+\.\d ms +[\d,]+ +\d+ m?s +\d+ m?s +0\.\d\d GB"
    assert re.search(rf"^ 300 +2 +{times}$", second, flags=re.MULTILINE)
    figures = json.loads(
        done("plan", "--config", config, "--json", "--batch-size", 100, "--epochs", 1)
    )
    (row,) = figures["rows"]
    assert (row["expected_batch_size"], row["iterations"]) == (100, 30)
    assert row["table_seconds"] > 0
    assert row["seconds"] == pytest.approx(30 * row["step_ms"] / 1e3 + row["table_seconds"])
    schema = dpads.FeatureSchema.from_toml(config)
    memory = estimate_memory(dpads.models.Logistic(), schema, expected_batch_size=100)
    assert row["memory_bytes"] == memory.to_dict()
    assert row["fits_into_memory"] is True
    keys = {"step_ms", "table_seconds", "seconds", "memory_bytes", "fits_into_memory"}
    without = json.loads(done("plan", "--examples", 3000, "--epsilon", 3, "--json"))
    assert not keys & set(without["rows"][0])


def test_plan_takes_users_with_all_the_examples_that_they_may_have(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_bench, "PLAN_SECONDS", 0.01)
    text = config.read_text().replace('label = "click"', 'label = "click"\nuser = "uid"')
    config.write_text(
        text.replace("epsilon = 3.0", 'epsilon = 3.0\nunit = "user"\nmax_examples_per_unit = 7')
    )
    (row,) = json.loads(done("plan", "--config", config, "--json"))["rows"]
    schema = dpads.FeatureSchema.from_toml(config)
    memory = estimate_memory(dpads.models.Logistic(), schema, expected_batch_size=7 * 300)
    assert row["memory_bytes"] == memory.to_dict()
    assert row["step_ms"] > 0


def test_plan_takes_the_memory_of_a_selection(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_bench, "PLAN_SECONDS", 0.01)
    config.write_text(config.read_text() + '\n[selection]\nkind = "noisy_count"\n')
    (row,) = json.loads(done("plan", "--config", config, "--json"))["rows"]
    schema = dpads.FeatureSchema.from_toml(config)
    memory = estimate_memory(dpads.models.Logistic(), schema, expected_batch_size=300, counted=True)
    assert memory.checkpoint > 0
    assert row["memory_bytes"] == memory.to_dict()


def test_plan_prints_everything_and_then_refuses_what_will_not_fit(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_bench, "PLAN_SECONDS", 0.01)
    monkeypatch.setattr(resources, "available_memory", lambda _root: 10**9)
    text = config.read_text()

    def refused(*arguments: object) -> tuple[str, str]:
        result = dpads_command("plan", "--config", config, *arguments)
        assert result.exit_code == 2, result.output
        error = result.stderr.splitlines()[-1]
        assert error.startswith("error: Expected a model that fits")
        return result.stdout, error

    config.write_text(text.replace("buckets = 200", "buckets = 700_000_000"))
    shown, error = refused()
    assert "Use fewer buckets" in error
    assert " ms " in shown  # smaller tables stood in
    config.write_text(text)
    shown, error = refused(
        "--examples", "2e8", "--batch-size", 300, "--batch-size", "1e6", "--epochs", 1
    )
    assert "physical_batch_size" in error
    assert re.search(r"^ 300 +1 +\d+\.\d ms ", shown, flags=re.MULTILINE)
    assert re.search(r"^ 1,000,000 +1 +– +– +– +– +\d", shown, flags=re.MULTILINE)
    config.write_text(
        text.replace("buckets = 200", "buckets = 7_000_000")
        .replace('name = "logistic"', 'name = "mlp"\nembedding_dim = "auto"\nhidden = [8]')
    )  # fmt: skip
    (row,) = json.loads(refused("--json")[0])["rows"]
    assert row["fits_into_memory"] is False
    assert (row["step_ms"], row["table_seconds"], row["seconds"]) == (None, None, None)
    assert "smaller ones cannot stand in" in " ".join(refused()[0].split())


def test_plan_says_which_number_a_configuration_lacks(config: Path) -> None:
    config.write_text(config.read_text().replace("dataset_size = 3000\n", ""))
    result = dpads_command("plan", "--config", config)
    assert result.exit_code == 2
    assert "no dataset_size" in result.stderr
    assert "--examples" in result.stderr


def test_bench_says_what_to_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "BENCH_SECONDS", 0.01)
    size = ["--rows", "26e2", "--batch-size", 64, "--hidden", 8, "--embedding-dim", 4]
    result = dpads_command("bench", *size)
    assert result.exit_code == 0, result.output
    assert re.search(r"^ 2,600 +64 +\d+\.\d ms +\d+\.\d ms +\d", result.stdout, flags=re.MULTILINE)
    assert "  about " in result.stdout.partition("An epoch of 10 million examples")[2]
    lines = [line for line in result.stderr.splitlines() if line != cli_screen.COMPILING]
    assert lines == ["measuring 2,600 rows, batch size 64"]
    assert not any(line != line.rstrip() for line in result.stdout.splitlines())
    several = done("bench", *size, "--batch-size", 128)
    assert "  Fastest: about " in several
    assert "  Slowest: about " in several
    figures = json.loads(done("bench", *size, "--batch-size", 128, "--json"))
    assert figures["model"]["hidden"] == [8]
    assert figures["machine"]["cores"] >= 1
    assert [cell["expected_batch_size"] for cell in figures["cells"]] == [64, 128]
    assert all(cell["examples_per_second"] > 0 for cell in figures["cells"])


def test_one_core_is_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "BENCH_SECONDS", 0.01)
    monkeypatch.setattr(benching, "available_cores", lambda: 1)
    text = done("bench", "--rows", 52, "--batch-size", 8, "--hidden", 8)
    assert "; torch on 1 core\n" in text
    assert re.search(r"^JAX found \d+ [A-Z]+", text, re.MULTILINE)


def test_bench_does_without_jax_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli_bench, "BENCH_SECONDS", 0.01)
    for name in [name for name in sys.modules if name.rpartition(".")[2].startswith("jax_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jax", None)
    size = ["--rows", 52, "--batch-size", 8, "--hidden", 8]
    assert "JAX is not installed." in done("bench", *size)
    assert json.loads(done("bench", *size, "--json"))["machine"]["devices"] == []
    result = dpads_command("bench", *size, "--backend", "jax")
    assert result.exit_code == 1
    assert "Install it: pip install 'jax" in " ".join(result.stderr.split())


@pytest.mark.slow
def test_bench_measures_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "BENCH_SECONDS", 0.01)
    size = ["--rows", 52, "--batch-size", 8, "--hidden", 8]
    figures = json.loads(done("bench", *size, "--backend", "jax", "--json"))
    assert figures["backend"] == "jax"
    assert {"platform", "kind", "number"} == set(figures["machine"]["devices"][0])
    assert figures["cells"][0]["private_ms"] > 0
    assert figures["cells"][0]["memory_bytes"]["device"] > 0
    assert "; jax on " in done("bench", *size, "--backend", "jax")


@pytest.mark.parametrize(
    ("text", "number"), [("1e6", 10**6), ("1_000_000", 10**6), ("2.5e3", 2500), ("7", 7), (16, 16)]
)
def test_whole_numbers_are_read(text: object, number: int) -> None:
    assert cli_screen.whole_number(text) == number


@pytest.mark.parametrize("text", ["1.5", "many", "", "1e400", "1e999999999", "inf", "nan", "1e-3"])
def test_other_numbers_are_not(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="whole number such as 1000000 or 1e6"):
        cli_screen.whole_number(text)


def test_flags_show_no_type() -> None:
    for arguments in (["train"], ["bench"], ["statement"], []):
        assert "bool" not in done(*arguments, "--help")


def test_train_takes_threads_and_a_physical_batch_size(config: Path, log_folder: Path) -> None:
    for name in ("train.parquet", "test.parquet"):
        (config.parent / name).symlink_to(log_folder / name)
    options = ["--threads", 1, "--physical-batch-size", 100]
    result = dpads_command("train", config, "--out", config.parent / "run", *options)
    assert result.exit_code == 0, result.output
    used = dpads.Run.load(config.parent / "run").record.performance
    assert (used["threads"], used["physical_batch_size"]) == (1, 100)
    assert "preparing: " in result.stderr
    too_many = dpads_command("train", config, "--threads", 4096)
    assert too_many.exit_code == 2
    assert "the cores that this process may use, got 4096" in too_many.stderr
    in_the_file = dpads_command("train", config, "--set", "performance.threads=1")
    assert in_the_file.exit_code == 2
    assert "Give --threads" in in_the_file.stderr


def test_the_way_on_after_an_interruption_has_all_options(
    config: Path, log_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train.parquet", "test.parquet"):
        (config.parent / name).symlink_to(log_folder / name)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "step", stop)
    options = ["--threads", 1, "--physical-batch-size", 100]
    result = dpads_command("train", config, "--out", config.parent / "run", *options)
    assert result.stderr.splitlines()[-1].endswith("--resume --threads 1 --physical-batch-size 100")


@pytest.mark.parametrize("key", ["train", "test"])
def test_a_missing_log_is_told_with_its_key_before_anything_is_read(
    config: Path, log_folder: Path, key: str
) -> None:
    for name in {"train", "test"} - {key}:
        (config.parent / f"{name}.parquet").symlink_to(log_folder / f"{name}.parquet")
    result = dpads_command("train", config, "--out", config.parent / "run")
    assert result.exit_code == 2
    assert f"data.{key}: " in result.stderr
    assert "preparing" not in result.stderr
    assert not list(config.parent.glob("run*"))


def test_a_configuration_that_is_none_is_told_plainly(config: Path, log_folder: Path) -> None:
    for path, says in (
        (config.parent, "expected a file, got a folder"),
        (log_folder / "train.parquet", "expected text in UTF-8"),
    ):
        result = dpads_command("plan", "--config", path)
        assert result.exit_code == 2
        assert f"error: {path}: {says}" in result.stderr


def test_time_left_waits_until_it_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 10.5, 21.0])
    monkeypatch.setattr(cli_screen.time, "monotonic", lambda: next(clock))
    watch = cli_screen._PlainWatcher()
    for iteration in (2, 5, 10):
        watch(RunProgress("training", iteration, 10, 1000.0, 75.0, None))
    first, last = capsys.readouterr().err.splitlines()
    assert "left" not in first
    assert "left" in last


def test_kernels_that_are_compiled_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    import numba

    with cli_screen.watching():
        for _ in range(2):
            numba.njit(lambda x: x + 1)(1)
    with cli_screen.measuring():
        pass
    assert capsys.readouterr().err == f"{cli_screen.COMPILING}\n"


def test_a_terminal_is_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba
    from rich.console import Console

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(cli_screen, "console", lambda **_: terminal)

    def shown() -> str:
        text = screen.getvalue()
        screen.seek(0)
        screen.truncate()
        return text

    with cli_screen.watching() as watch:
        time.sleep(0.3)
        assert "starting" in shown()
        watch(cli_screen.LogProgress(65_536))
        time.sleep(0.3)
        assert "65,536 examples" in shown()
        numba.njit(lambda x: x + 2)(1)
        time.sleep(0.3)
        assert cli_screen.COMPILING in shown()
        watch(RunProgress("training", 5, 10, 1234.5, 75.0, 1.234))
        shown()
        time.sleep(0.3)
        last = shown()
        assert "5/10 iterations" in last
        assert cli_screen.COMPILING not in last


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    """`dpads plan | head -1`: no line about a broken pipe."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "dpads", "plan", "--examples", "3000", "--epsilon", "3"]
    result = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (result.returncode, result.stderr) == (1, "")


def test_a_model_worse_than_the_base_rate_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    worse, better = {"auc": 0.6, "normalized_entropy": 1.004}, {"normalized_entropy": 0.9}
    cli_screen.print_metrics("Metrics", {"this model": worse, "without privacy": better})
    told = [line for line in capsys.readouterr().out.splitlines() if "worse than always" in line]
    assert len(told) == 1
    assert told[0].startswith("this model: normalized entropy above 1")
    cli_screen.print_metrics("Metrics", {"model": {"rmse": 0.1, "normalized_entropy": None}})
    assert "worse" not in capsys.readouterr().out
