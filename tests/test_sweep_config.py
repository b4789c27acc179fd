"""SWEEP.toml: what varies, which trials follow, and what is refused before any of them runs."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cli_calls import CONFIG
from sweep_cases import base, sweep_of

from dpads.errors import ConfigError, InputError, SchemaError
from dpads.sweep_axes import known_axes
from dpads.sweep_config import load_sweep, parse_sweep
from dpads.sweep_settings import effective

SWEEP = """
base = "config.toml"
reference = true
[axes]
privacy.epsilon = [0.5, 3, inf]
training.expected_batch_size = [100, 300]
training.init_seed = [1, 2]
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path / "sweep.toml"


def test_a_grid_is_every_combination_and_the_last_axis_moves_fastest(files: Path) -> None:
    config = load_sweep(files)
    assert config.axes == (
        "privacy.epsilon", "training.expected_batch_size", "training.init_seed",
    )  # fmt: skip
    names = [trial.name for trial in config.trials]
    assert names == [f"{n:04d}" for n in range(1, 13)]
    assert [tuple(trial.settings.values()) for trial in config.trials[:4]] == [
        (0.5, 100, 1), (0.5, 100, 2), (0.5, 300, 1), (0.5, 300, 2),
    ]  # fmt: skip
    third = config.trials[2].config
    assert third.privacy.epsilon == 0.5
    assert third.training.expected_batch_size == 300
    assert third.training.init_seed == 1
    assert third.data.train == (str(files.parent / "train.parquet"),)


def test_infinity_is_without_noise_and_clipping(files: Path) -> None:
    trial = load_sweep(files).trials[-1]
    assert trial.reference
    assert trial.config.privacy.noise_multiplier == 0.0
    assert trial.config.l2_clip_norm == math.inf
    assert trial.settings["privacy.epsilon"] == math.inf


def test_what_leaves_no_trace_without_noise_makes_one_trial() -> None:
    document = {
        "base": {**base(), "reference": {"table_optimizer": {"learning_rate": 8.0}}},
        "axes": {
            "privacy": {"epsilon": [1, math.inf], "l2_clip_norm": [1.0, 2.0]},
            "training": {"table_optimizer": {"learning_rate": [0.5, 1.0]}},
        },
    }
    bare = [t for t in parse_sweep(document, base=Path()).trials if t.reference]
    assert len(bare) == 1
    assert bare[0].settings == {
        "privacy.epsilon": math.inf,
        "privacy.l2_clip_norm": math.inf,
        "training.table_optimizer.learning_rate": 8.0,
    }
    assert bare[0].config.training.table_optimizer.learning_rate == 8.0


def test_references_are_one_for_all_that_may_be_compared() -> None:
    config = sweep_of(
        {
            "privacy.epsilon": [1, 3],
            "model": [{"name": "logistic"}, {"name": "mlp", "embedding_dim": 4, "hidden": [8]}],
            "training.expected_batch_size": [100, 300],
            "training.init_seed": [1, 2],
            "data.split_seed": [5, 6],
        },
        reference=True,
    )
    bare = [trial for trial in config.trials if trial.reference]
    private = [trial for trial in config.trials if not trial.reference]
    assert len(private) == 32
    assert len(bare) == 8
    assert config.trials[-8:] == tuple(bare)
    assert {trial.group for trial in bare} == {trial.group for trial in private}
    assert {trial.settings["training.expected_batch_size"] for trial in bare} == {300}


def test_a_reference_has_the_units_of_its_trials() -> None:
    users = {"unit": "user", "max_examples_per_unit": 2, "dataset_size": 400}
    config = sweep_of({"privacy": [{"unit": "example"}, users]}, reference=True)
    bare = [trial.config.privacy for trial in config.trials if trial.reference]
    assert [(p.unit, p.dataset_size) for p in bare] == [("example", 3000), ("user", 400)]


def test_a_list_says_each_trial() -> None:
    config = parse_sweep(
        {
            "base": base(),
            "draw": "list",
            "trials": [
                {"privacy": {"epsilon": 1}},
                {"privacy.epsilon": 3.0, "training.epochs": 4},
                {"model": {"name": "mlp", "embedding_dim": 4, "hidden": [8]}},
            ],
        },
        base=Path(),
    )
    assert config.axes == ("privacy.epsilon", "training.epochs", "model")
    assert [t.settings["privacy.epsilon"] for t in config.trials] == [1.0, 3.0, 3.0]
    assert [t.settings["training.epochs"] for t in config.trials] == [2.0, 4.0, 2.0]
    assert config.trials[2].config.model.name == "mlp"


def test_random_settings_come_from_the_axes_and_a_public_seed() -> None:
    axes = {
        "privacy.epsilon": {"low": 0.1, "high": 10.0, "scale": "log"},
        "training.expected_batch_size": {"low": 100, "high": 1000},
        "training.init_seed": [1, 2],
    }
    drawn = sweep_of(axes, draw="random", trials=50, seed=3)
    again = sweep_of(axes, draw="random", trials=50, seed=3)
    other = sweep_of(axes, draw="random", trials=50, seed=4)
    assert drawn == again
    assert [t.settings for t in drawn.trials] != [t.settings for t in other.trials]
    epsilons = [t.settings["privacy.epsilon"] for t in drawn.trials]
    assert 0.1 <= min(epsilons) < 0.3
    assert 3 < max(epsilons) <= 10
    assert 15 <= sum(epsilon < 1 for epsilon in epsilons) <= 35  # half of them on a log scale
    sizes = {t.config.training.expected_batch_size for t in drawn.trials}
    assert all(100 <= size <= 1000 for size in sizes)
    assert len({tuple(t.settings.values()) for t in drawn.trials}) == 50


def test_an_axis_of_tables_sets_their_keys_together() -> None:
    config = sweep_of(
        {
            "privacy.epsilon": [1, 3],
            "training": [
                {"expected_batch_size": 100, "epochs": 2},
                {"expected_batch_size": 300, "table_optimizer": {"learning_rate": 2.0}},
            ],
            "training.init_seed": [1, 2],
        }
    )
    assert len(config.trials) == 8
    assert config.trials[2].settings == {
        "privacy.epsilon": 1.0,
        "training.expected_batch_size": 300,
        "training.epochs": 2.0,
        "training.table_optimizer.learning_rate": 2.0,
        "training.init_seed": 1,
    }


def test_another_optimizer_does_not_keep_the_keys_of_the_first() -> None:
    document = base(training={"tower_optimizer": {"name": "adam", "beta1": 0.5}})
    axes = {"training.tower_optimizer": [{"name": "sgd", "learning_rate": 0.1}, {"beta1": 0.8}]}
    first, second = parse_sweep({"base": document, "axes": axes}, base=Path()).trials
    assert first.config.training.tower_optimizer.name == "sgd"
    assert first.settings["training.tower_optimizer.beta1"] is None
    assert second.settings["training.tower_optimizer.beta1"] == 0.8


def test_an_axis_of_epsilon_takes_the_place_of_the_bases_noise() -> None:
    document = base(privacy={"noise_multiplier": 1.0})
    del document["privacy"]["epsilon"]
    config = parse_sweep({"base": document, "axes": {"privacy.epsilon": [1, 2]}}, base=Path())
    assert [t.config.privacy.epsilon for t in config.trials] == [1.0, 2.0]
    back = parse_sweep(
        {"base": base(), "axes": {"privacy.noise_multiplier": [0, 1.0]}}, base=Path()
    )
    assert [effective(t.config, "privacy.epsilon") for t in back.trials] == [math.inf, None]
    assert [t.reference for t in back.trials] == [True, False]
    assert back.trials[0].config.l2_clip_norm == 1.0  # clipping stays: only infinity takes it away


def test_the_text_of_a_sweep_reads_back_as_the_same_sweep(files: Path) -> None:
    config = load_sweep(files)
    again = parse_sweep(tomllib.loads(config.to_toml()), base=Path("/elsewhere"))
    assert again == config
    assert again.to_toml() == config.to_toml()
    drawn = sweep_of(
        {
            "model": [
                {"name": "logistic"},
                {"name": "mlp", "embedding_dim": "auto", "hidden": [8]},
            ],
            "training": {"table_optimizer": {"learning_rate": {"low": 0.1, "high": 2.0}}},
        },
        draw="random",
        trials=5,
        seed=0,
        rows="public",
        tune={"mean_trials": 4.0},
    )
    assert parse_sweep(tomllib.loads(drawn.to_toml()), base=Path()) == drawn
    assert drawn.tune is not None
    assert drawn.tune.mean_trials == 4.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"axes": {"privacy.epsilom": [1]}},
            r'Unknown axis "privacy.epsilom"\. Did you mean "privacy.eps',
        ),
        ({"axes": {"privacy": {"epsilom": [1]}}}, r'Did you mean "privacy\.epsilon"'),
        ({"axes": {"modle.hidden": [[1]]}}, r'Unknown axis "modle\.hidden".*"model\.hidden"'),
        ({"axes": {"schema.buckets": [10]}}, r"schema\.buckets.*prepared once"),
        ({"axes": {"data.train": ["a"]}}, r"data\.train.*split_seed alone can vary"),
        ({"axes": {"reference.table_optimizer": [{}]}}, "share \\[reference\\]"),
        ({"axes": {"training.noise_seed": [1, 2]}}, "would share noise"),
        ({"axes": {"training": [{"noise_seed": 1}]}}, "would share noise"),
        ({"axes": {"training.reference": [True]}}, "reference = true"),
        ({"axes": {"privacy.epsilon": []}}, r"axes\.privacy\.epsilon: expected at least one value"),
        ({"axes": {"privacy": {}}}, r"axes\.privacy: expected at least one value, got none"),
        (
            {"axes": {"privacy.epsilon": 1}},
            r"axes\.privacy\.epsilon: expected a list of values, got 1",
        ),
        ({"axes": {"training": [1]}}, r"axes\.training: expected tables"),
        ({"axes": {}}, "at least one axis"),
        ({}, "at least one axis"),
        ({"axes": {"privacy.epsilon": [1, 1.0]}}, r"two with privacy\.epsilon = 1\.0"),
        (
            {"axes": {"privacy.epsilon": [1, -1]}},
            r"A trial with privacy\.epsilon = -1: .*finite number > 0",
        ),
        (
            {"axes": {"training.init_seed": [1, 2], "training.expected_batch_size": [100, 9999]}},
            r"A trial with training\.init_seed = 1, training\.expected_batch_size = 9999: .*3000 units",
        ),
        ({"axes": {"model": [{"name": "mlpp"}]}}, r'unknown model "mlpp"\. Did you mean "mlp"'),
        (
            {"axes": {"model.hidden": [[8]]}},
            r'with model\.hidden = \[8\]: Unknown key "model\.hidden"',
        ),
        (
            {"axes": {"training": [{"epochs": 3}], "training.epochs": [1]}},
            r"different keys, got training and training\.epochs",
        ),
        (
            {"axes": {"model": [{"name": "logistic"}], "model.name": ["mlp"]}},
            r"model and model\.name",
        ),
        (
            {"axes": {"training.init_seed": list(range(200)), "data.split_seed": list(range(200))}},
            "40,000",
        ),
        ({"axes": {"training.epochs": {"low": 1, "high": 2}}}, 'for draw = "random"'),
        ({"axes": {"training.epochs": [1]}, "trials": 3}, 'trials is of draw = "list"'),
        (
            {"draw": "random", "axes": {"training.epochs": [1, 2]}, "seed": 1},
            "trials: expected a whole",
        ),
        (
            {"draw": "random", "axes": {"training.epochs": [1, 2]}, "trials": 2},
            "seed: expected a whole",
        ),
        (
            {"draw": "random", "axes": {"training.epochs": [1, 2]}, "trials": 3, "seed": 1},
            "3 trials with different settings",
        ),
        (
            {
                "draw": "random",
                "axes": {"training.epochs": {"low": 2, "high": 1}},
                "trials": 3,
                "seed": 1,
            },
            "low < high",
        ),
        (
            {
                "draw": "random",
                "axes": {"training.epochs": {"low": 0, "high": 1, "scale": "log"}},
                "trials": 3,
                "seed": 1,
            },
            "low > 0",
        ),
        (
            {
                "draw": "random",
                "axes": {"training.epochs": {"low": 1, "hihg": 2}},
                "trials": 3,
                "seed": 1,
            },
            'unknown key "hihg".*"high"',
        ),
        (
            {
                "draw": "random",
                "axes": {"training.epochs": {"low": "a", "high": 2}},
                "trials": 1,
                "seed": 1,
            },
            "finite numbers",
        ),
        ({"draw": "list"}, r"at least one \[\[trials\]\]"),
        ({"draw": "list", "trials": [{}]}, "tables with settings"),
        (
            {"draw": "list", "trials": [{"privacy.epsilon": 1}], "axes": {"a": [1]}},
            "not \\[axes\\]",
        ),
        ({"draw": "list", "trials": [{"privacy.epsilon": 1}] * 2}, "two with"),
        ({"draw": "gird", "axes": {"privacy.epsilon": [1]}}, '"grid"'),
        ({"rows": "pubic", "axes": {"privacy.epsilon": [1]}}, '"public"'),
        ({"reference": "yes", "axes": {"privacy.epsilon": [1]}}, "true or false"),
        ({"axis": {"privacy.epsilon": [1]}}, 'Unknown key "axis" of a sweep. Did you mean "axes"'),
        ({"axes": {"privacy.epsilon": [1]}, "tune": {"mean_trails": 1}}, r"tune\.mean_trails"),
    ],
)
def test_bad_sweeps_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_sweep({"base": base(), **keys}, base=Path())


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"training": {"noise_seed": 1}},
            r"training\.noise_seed is set in the base.*would share noise",
        ),
        ({"training": {"reference": True}}, r"training\.reference is set in the base"),
        ({"training": {"epohcs": 1}}, r'Unknown key "training\.epohcs"'),
        ({"schema": {"task": "cvr", "labels": "x"}}, "label"),
    ],
)
def test_bad_bases_are_refused(tables: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, SchemaError), match=message):
        parse_sweep({"base": base(**tables), "axes": {"privacy.epsilon": [1]}}, base=Path())


def test_a_sweep_needs_test_rows() -> None:
    document = base()
    del document["data"]["test"]
    with pytest.raises(ConfigError, match=r"Set data\.test"):
        parse_sweep({"base": document, "axes": {"privacy.epsilon": [1]}}, base=Path())


def test_a_sweep_needs_a_base(tmp_path: Path) -> None:
    for wrong in ({}, {"base": 3}, {"base": " "}):
        with pytest.raises(ConfigError, match="base: expected the path of a configuration"):
            parse_sweep({**wrong, "axes": {"privacy.epsilon": [1]}}, base=tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        parse_sweep({"base": "gone.toml", "axes": {"privacy.epsilon": [1]}}, base=tmp_path)


def test_what_is_no_sweep_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_sweep(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="got a folder"):
        load_sweep(tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_text("axes = [")
    with pytest.raises(InputError, match="not valid TOML"):
        load_sweep(bad)


def test_what_is_released_beside_training_may_vary_and_a_torch_module_may_not() -> None:
    known = known_axes()
    assert {"prior.kind", "recalibration.share", "selection.threshold"} <= set(known)
    assert "model.structure" not in known
