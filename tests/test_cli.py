"""The command line: what a user types, sees and gets back as an exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as csv
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest
import typer
from cli_calls import CONFIG, done, dpads_command

import dpads
from dpads import cli_demo, cli_screen, run_data, training
from dpads.cli import app
from dpads.run_job import RunProgress
from dpads.synthetic import SyntheticLog

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logs, config.toml and a run."""
    folder = tmp_path_factory.mktemp("cli")
    for name in ("train.parquet", "test.parquet"):
        shutil.copy(log_folder / name, folder)
    (folder / "config.toml").write_text(CONFIG)
    done("train", folder / "config.toml", "--out", folder / "run")
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The folder, free to change."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def commands() -> list[tuple[str, Any]]:
    group: Any = typer.main.get_command(app)
    return sorted(group.commands.items())


def test_the_commands_are_those_of_the_design() -> None:
    assert [name for name, _ in commands()] == [
        "bench",
        "demo",
        "evaluate",
        "export",
        "plan",
        "predict",
        "prepare",
        "recipe",
        "select",
        "statement",
        "sweep",
        "train",
        "tune",
        "verify",
    ]


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_and_option_has_help(name: str, command: Any) -> None:
    text = done(name, "--help")
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in text


def test_the_help_and_the_version() -> None:
    assert "differential privacy" in " ".join(done("--help").split())
    assert done("--version").strip() == dpads.__version__
    assert dpads_command().exit_code == 2


def test_a_session_from_logs_to_a_statement(folder: Path, tmp_path: Path) -> None:
    store, predictions = tmp_path / "store", tmp_path / "p.parquet"
    config = folder / "config.toml"
    assert "1,000 examples" in done(
        "prepare", folder / "test.parquet", "--schema", config, "--out", store
    )
    from_store = done("evaluate", folder / "run", store)
    assert from_store == done("evaluate", folder / "run", folder / "test.parquet")
    assert re.search(r"auc +0\.\d{4}", from_store)
    assert "1,000 predictions" in done(
        "predict", folder / "run", folder / "test.parquet", "--out", predictions
    )
    column = parquet.read_table(predictions)["prediction"].to_numpy()
    expected = dpads.Run.load(folder / "run").predict(dpads.ExampleStore.open(store))
    np.testing.assert_array_equal(column, expected)
    assert done("statement", folder / "run").startswith("# ")
    statement = json.loads(done("statement", folder / "run", "--format", "json"))
    # rows that the run did not hold out may be training rows: nobody has said that their metrics stay inside
    assert statement["claim_level"] == "conditional"
    ledger = (folder / "run" / "ledger.jsonl").read_text()
    assert ledger.count('"kind":"evaluation"') == 3  # the run's own, and two here


def test_train_prints_metrics_and_the_headline(copy: Path) -> None:
    text = done(
        "train", copy / "config.toml", "--out", copy / "b", "--set", "training.reference=true"
    )
    assert "this model" in text
    assert "without privacy" in text
    assert "(3.00, " in " ".join(text.split())


def test_train_reads_a_glob_of_stores_and_logs_alike(copy: Path) -> None:
    (copy / "parts").mkdir()
    whole = parquet.read_table(copy / "train.parquet")
    for number in range(3):
        part = whole[number * 1000 : (number + 1) * 1000]
        parquet.write_table(part, copy / "parts" / f"{number}.parquet")
    done(
        "train", copy / "config.toml", "--out", copy / "b",
        "--set", "data.train=parts/*.parquet", "--set", "data.test=0.2",
    )  # fmt: skip
    done("prepare", copy / "train.parquet", "--schema", copy / "config.toml", "--out", copy / "s")
    done("train", copy / "config.toml", "--out", copy / "c", "--set", "data.train=s")
    assert not list((copy / "c").glob("*rows"))


def test_train_names_its_run_when_nobody_does(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    done("train", "config.toml")
    assert [path.name.rpartition("-")[0][:7] for path in (copy / "runs").iterdir()] == ["config-"]


def test_json_on_every_command_that_prints_figures(copy: Path) -> None:
    config, run = copy / "config.toml", copy / "run"
    log = copy / "test.parquet"
    figures = {
        "prepare": done("prepare", log, "--schema", config, "--out", copy / "s", "--json"),
        "plan": done("plan", "--examples", 3000, "--epsilon", 3, "--epochs", 1, "--json"),
        "train": done("train", config, "--out", copy / "b", "--json"),
        "evaluate": done("evaluate", run, log, "--json"),
    }
    read = {name: json.loads(text) for name, text in figures.items()}
    assert read["prepare"]["examples"] == 1000
    assert read["plan"]["rows"][0]["noise_multiplier"] > 0
    assert read["train"]["metrics"] == json.loads((copy / "b" / "metrics.json").read_text())
    assert 0.4 < read["evaluate"]["auc"] < 1


def test_predict_needs_no_label_and_does_not_look_at_one(copy: Path) -> None:
    done("predict", copy / "run", copy / "test.parquet", "--out", copy / "a.parquet")
    rows = parquet.read_table(copy / "test.parquet")
    parquet.write_table(rows.drop_columns("click"), copy / "unlabelled.parquet")
    done("predict", copy / "run", copy / "unlabelled.parquet", "--out", copy / "b.parquet")
    one, two = (parquet.read_table(copy / f"{name}.parquet") for name in "ab")
    assert one == two
    result = dpads_command("evaluate", copy / "run", copy / "unlabelled.parquet")
    assert result.exit_code == 2
    assert '"click"' in result.stderr


def test_a_column_that_one_log_lacks_is_told_with_the_log(copy: Path) -> None:
    rows = parquet.read_table(copy / "test.parquet")
    for name in ("second.parquet", "second.arrow", "second.csv"):
        table = rows.drop_columns("device")
        if name.endswith("csv"):
            csv.write_csv(table.drop_columns("interests"), copy / name)
        elif name.endswith("arrow"):
            feather.write_feather(table, copy / name)
        else:
            parquet.write_table(table, copy / name)
        result = dpads_command(
            "prepare", copy / "train.parquet", copy / name, "--schema", copy / "config.toml",
            "--out", copy / "s",
        )  # fmt: skip
        assert result.exit_code == 2
        assert name in result.stderr
        assert '"device"' in result.stderr


def test_the_title_of_a_narrow_table_stays_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    title = "Test metrics (exact reads, not covered)"
    cli_screen.print_metrics(title, {"this model": {"auc": 0.7756}})
    assert title in capsys.readouterr().out.splitlines()[0]


def test_evaluate_writes_where_it_is_told(copy: Path) -> None:
    out = copy / "m.json"
    assert done("evaluate", copy / "run", copy / "test.parquet", "--out", out) == ""
    assert json.loads(out.read_text())["auc"] == pytest.approx(
        json.loads((copy / "run" / "metrics.json").read_text())["auc"]
    )


def test_plan_shows_what_training_would_use(copy: Path) -> None:
    text = done("plan", "--examples", 3000, "--epsilon", 3, "--batch-size", 300, "--epochs", 2)
    plan = dpads.Run.load(copy / "run").plan.mechanism
    row = next(line.split() for line in text.splitlines() if line.strip().startswith("300 "))
    assert row[:5] == [
        "300", "2", str(plan.iterations), f"{plan.sampling_prob:.3g}", f"{plan.noise_multiplier:.4f}",
    ]  # fmt: skip
    assert float(row[5]) == pytest.approx(plan.noise_multiplier / 300, rel=1e-3)


def test_plan_takes_small_data_and_several_sizes() -> None:
    text = done(
        "plan", "--examples", 100, "--epsilon", 3, "--batch-size", 10, "--batch-size", 20,
        "--epochs", 1, "--epochs", 2,
    )  # fmt: skip
    assert len(re.findall(r"^ (?:10|20) ", text, flags=re.MULTILINE)) == 4
    assert " 100 " in done("plan", "--examples", 100, "--epsilon", 3, "--epochs", 1)


def test_the_demo_shows_three_models_and_the_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_demo, "EXAMPLES", 9000)
    monkeypatch.setattr(cli_demo, "TRAINED_ON", 8000)
    demonstrate = cli_demo.run_demo
    kept: list[cli_demo.Demonstration] = []

    def once(watch: Callable[[RunProgress], None]) -> cli_demo.Demonstration:
        if not kept:
            kept.append(demonstrate(watch))
        return kept[0]

    monkeypatch.setattr(cli_demo, "run_demo", once)
    result = dpads_command("demo")
    assert result.exit_code == 0, result.output
    header = next(line for line in result.stdout.splitlines() if "the truth" in line)
    heads = re.split(r"\s{2,}", header.strip())
    assert heads == ["epsilon 3", "95 % interval", "without privacy", "the truth"]
    assert "Privacy guarantee of dpads demo" in result.stdout
    assert "iterations" in result.stderr
    assert "epsilon 3.00" in result.stderr
    figures = json.loads(done("demo", "--json"))
    assert figures["the truth"]["auc"] > 0.7


@pytest.mark.slow
def test_the_demo_is_worth_showing() -> None:
    figures = json.loads(done("demo", "--json"))
    private, reference, truth = (
        figures[name]["auc"] for name in ("epsilon 3", "without privacy", "the truth")
    )
    assert truth > reference > private > 0.75
    assert 0.9 < figures["epsilon 3"]["calibration"] < 1.1


def bad(name: str, *sets: str, says: str) -> object:
    """A row of the table of bad configurations: overrides, and what must be said."""
    return pytest.param(sets, says, id=name)


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        bad("unknown key", "training.epoch=3", says='"training.epoch". Did you mean "epochs"?'),
        bad("unknown table", "trainin.epochs=3", says='"trainin". Did you mean "training"'),
        bad("epsilon", "privacy.epsilon=0", says="epsilon"),
        bad("delta", "privacy.delta=1.0", says="delta"),
        bad("sampling", "privacy.sampling_prob=1.5", "privacy.iterations=5", says="sampling_prob"),
        bad("batch", "training.expected_batch_size=5000", says="expected_batch_size"),
        bad("budget", "privacy.epsilon=1e-9", says="too small for one iteration"),
        bad("both", "privacy.noise_multiplier=1", says="got both"),
        bad("user", "privacy.unit=user", says="max_examples_per_unit"),
        bad("missing column", 'schema.categorical=["devise"]', says='Did you mean "device"'),
        bad("text as number", 'schema.numeric=["device"]', says='"device"'),
        bad("label", "schema.label=past_views", says='"past_views"'),
        bad("no file", "data.train=absent.parquet", says="absent.parquet"),
        bad("empty path", "data.train=", says="data.train: expected a path"),
        bad("no test file", "data.test=absent-*.csv", says="absent-*.csv"),
        bad("format", "data.train=config.toml", says="config.toml"),
        bad("not a store", "data.train=.", says="store"),
        bad("model", "model.name=mlpp", says='Did you mean "mlp"'),
        bad(
            "reference", "training.reference=true", "data={train='train.parquet'}", says="data.test"
        ),
    ],
)
def test_bad_configurations_end_with_2_and_leave_nothing(
    copy: Path, sets: tuple[str, ...], says: str
) -> None:
    before = sorted(copy.rglob("*"))
    arguments = [part for text in sets for part in ("--set", text)]
    if "privacy.sampling_prob=1.5" in sets:
        arguments += ["--set", "privacy.noise_multiplier=1"]
        text = (copy / "config.toml").read_text().replace("epsilon = 3.0\n", "")
        (copy / "config.toml").write_text(text)
    result = dpads_command("train", copy / "config.toml", "--out", copy / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) <= 2
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "absent.toml"],
        ["train", "config.toml", "--out", "run"],
        ["train", "config.toml", "--resume"],
        ["train", "config.toml", "--out", "r", "--resume"],
        ["train", "config.toml", "--out", "run", "--resume"],
        ["train", "config.toml", "--out", "config.toml/r"],
        ["train", "config.toml", "--out", "a/b/r", "--set", "data.train=absent.parquet"],
        ["train", "config.toml", "--set", "data.train=absent.parquet"],
        ["prepare", "train.parquet", "--schema", "config.toml", "--out", "config.toml/a/s"],
        ["prepare", "absent.parquet", "--schema", "config.toml", "--out", "s"],
        ["prepare", "train.parquet", "--schema", "config.toml", "--out", "run"],
        ["prepare", "train.parquet", "--schema", "absent.toml", "--out", "s"],
        ["prepare", "train.parquet", "--schema", "config.toml"],
        ["plan", "--examples", "3000", "--epsilon", "-1"],
        ["plan", "--examples", "0", "--epsilon", "1"],
        ["plan", "--examples", "many", "--epsilon", "1"],
        ["plan", "--examples", "3000", "--epsilon", "1", "--delta", "1"],
        ["plan", "--examples", "3000", "--epsilon", "1", "--batch-size", "3001"],
        ["plan"],
        ["plan", "--examples", "3000"],
        ["plan", "--config", "absent.toml"],
        ["plan", "--config", "config.toml", "--batch-size", "3001"],
        ["bench", "--rows", "51"],
        ["bench", "--batch-size", "0"],
        ["bench", "--hidden", "0"],
        ["bench", "--embedding-dim", "0"],
        ["bench", "--rows", "many"],
        ["evaluate", "absent", "test.parquet"],
        ["evaluate", ".", "test.parquet"],
        ["evaluate", "run", "absent.parquet"],
        ["evaluate", "run", "test.parquet", "--out", "config.toml"],
        ["predict", "run", "test.parquet", "--out", "config.toml"],
        ["predict", "run", "test.parquet", "--out", "p.txt"],
        ["predict", "run", "test.parquet", "--out", "absent/p.parquet"],
        ["predict", "run", "absent.parquet", "--out", "p.parquet"],
        ["statement", "absent"],
        ["statement", "run", "--format", "pdf"],
        ["statement", "run", "--out", "config.toml"],
        ["verify", "absent"],
        ["trane"],
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2_and_leaves_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    result = dpads_command(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr
    assert "Traceback" not in result.output
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_private_values_are_not_shown(copy: Path, click_log: SyntheticLog) -> None:
    secret = 987_654_321
    table = click_log.table[:50]
    labels = table["click"].to_pylist()
    labels[17] = secret
    index = table.column_names.index("click")
    parquet.write_table(table.set_column(index, "click", [labels]), copy / "train.parquet")
    result = dpads_command("train", copy / "config.toml", "--out", copy / "out")
    assert result.exit_code == 2
    assert '"click"' in result.stderr
    assert str(secret) not in result.output
    assert not list(copy.glob("out*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "ledger.jsonl").write_text("{}\n"),
        lambda run: (run / "model.safetensors").write_bytes(b""),
        lambda run: (run / "statement.json").write_text("{}"),
    ],
)
def test_a_damaged_run_ends_with_1(copy: Path, damage: Callable[[Path], object]) -> None:
    damage(copy / "run")
    for arguments in (
        ["evaluate", copy / "run", copy / "test.parquet"],
        ["statement", copy / "run"],
    ):
        result = dpads_command(*arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")


def test_ctrl_c_says_how_to_go_on_and_resume_does(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.Trainer.step

    def step(self: training.Trainer) -> None:
        if self.iteration == 5:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(training.Trainer, "step", step)
    arguments = ["train", copy / "config.toml", "--out", copy / "b"]
    result = dpads_command(*arguments)
    assert result.exit_code == 1
    assert "--resume" in result.stderr
    monkeypatch.setattr(training.Trainer, "step", real)
    again = dpads_command(*arguments)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    assert "b: model" in done(*arguments, "--resume")
    assert json.loads((copy / "b" / "run.json").read_text())["replayed"] == 5


def test_an_interruption_promises_only_what_was_kept(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    sets = ["--set", "training.epochs=1.5", "--set", "data.test=0.2"]
    arguments = ["train", copy / "config.toml", "--out", copy / "b", *sets]
    real = training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", stop)
    hint = dpads_command(*arguments).stderr.partition("Go on with: dpads ")[2]
    monkeypatch.setattr(training.Trainer, "step", real)
    assert "b: model" in done(*shlex.split(hint))
    monkeypatch.setattr(run_data, "open_rows", stop)
    result = dpads_command("train", copy / "config.toml", "--out", copy / "c")
    assert result.exit_code == 1
    assert "--resume" not in result.stderr
    assert "nothing was kept" in result.stderr
    assert not list(copy.glob("c*.partial"))


def test_a_process_of_its_own(folder: Path) -> None:
    """Exit codes and streams as a shell sees them; no escape codes where there is no terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dpads", *arguments],
            cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    fine = run("statement", "run")
    assert (fine.returncode, fine.stderr) == (0, "")
    assert "\x1b" not in fine.stdout
    wrong = run("train", "config.toml", "--set", "privacy.epsilon=-1", "--out", "x")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: [privacy] Expected epsilon")
    assert "\x1b" not in wrong.stderr
    assert run("--version").stdout.strip() == dpads.__version__


def test_progress_is_readable() -> None:
    at = RunProgress("training", 5, 10, 1234.5, 75.0, 1.234)
    assert cli_screen._facts(at) == (
        "5/10 iterations, 1,234 examples/s, 1 min 15 s left, epsilon 1.23"
    )
    assert [cli_screen.duration(s) for s in (0.2, 59.4, 3600, 7260)] == [
        "0 s",
        "59 s",
        "1 h 00 min",
        "2 h 01 min",
    ]
