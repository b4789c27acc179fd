"""Configurations: what is read, what is refused, and that every refusal names the key."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dpads
from dpads.config import Config, load_config, parse_config
from dpads.config_toml import to_document, to_toml, toml_key, toml_value
from dpads.errors import ConfigError, InputError, SchemaError

MINIMAL = """
[data]
train = "train.parquet"
[schema]
task = "ctr"
label = "click"
categorical = ["C1"]
[model]
name = "logistic"
[privacy]
epsilon = 3.0
"""
FULL = """
[data]
train = ["logs/a-*.parquet", "/abs/b.csv.gz"]
test = 0.2
split_seed = 11
[schema]
task = "count"
label = "n"
numeric = ["I1", { column = "I2", transform = "identity", clip = [0.0, 9.0], missing = 1.0 }]
categorical = ["C1", "C 2"]
bags = ["tags", { column = "words", pooling = "sum", weights = "word_weights" }]
tables = { "the words" = ["C1", "words"] }
exposure = "seconds"
user = "uid"
buckets = { "the words" = 5000, tags = 100 }
[model]
name = "mlp"
embedding_dim = "auto"
hidden = [64, 32]
[privacy]
noise_multiplier = 0.8
delta = 1e-7
dataset_size = 71_000
unit = "user"
max_examples_per_unit = 4
l2_clip_norm = 2
[training]
expected_batch_size = 256
epochs = 2.5
table_noise = "dense"
table_optimizer = { learning_rate = 0.1, schedule = "cosine" }
tower_optimizer = { name = "sgd", learning_rate = 0.01 }
init_seed = 3
reference = true
[reference]
tower_optimizer = { learning_rate = 0.5 }
[statement]
publisher = "Ads \\"team\\""
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def rate(config: Config) -> float:
    return config.training.table_optimizer.learning_rate


def test_the_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MINIMAL))
    training = config.training
    assert config.l2_clip_norm == 1.0
    assert (training.expected_batch_size, training.epochs) == (1024, 5)
    assert (training.backend, training.table_noise) == ("torch", "lazy")
    assert training.table_optimizer == dpads.Sgd(learning_rate=0.5)
    assert training.tower_optimizer == dpads.Adam(learning_rate=1e-3)
    assert not training.reference
    assert training.noise_seed is None
    assert config.data.test is None
    assert config.reference.table_optimizer == training.table_optimizer


def test_everything_is_read(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, FULL))
    assert config.data.train == (str(tmp_path / "logs/a-*.parquet"), "/abs/b.csv.gz")
    assert config.data.test == 0.2
    assert (config.data.split_seed, config.split_seed) == (11, 11)
    assert config.model == dpads.models.Mlp(embedding_dim="auto", hidden=(64, 32))
    assert config.privacy.noise_multiplier == 0.8
    assert config.privacy.unit == "user"
    assert config.l2_clip_norm == 2.0
    assert config.training.table_optimizer == dpads.Sgd(learning_rate=0.1, schedule="cosine")
    assert config.training.tower_optimizer == dpads.Sgd(learning_rate=0.01)
    assert config.reference.table_optimizer == config.training.table_optimizer
    assert config.reference.tower_optimizer == dpads.Sgd(learning_rate=0.5)
    assert config.statement.publisher == 'Ads "team"'
    assert [f.table for f in config.schema.fields] == ["the words", "C 2", "tags", "the words"]


def test_no_key_of_the_tables_is_forgotten_when_written(tmp_path: Path) -> None:
    # A key that is left out comes back as its default, and a run or a trial is another one.
    config = load_config(written(tmp_path, FULL + "\n"))
    document = to_document(config)
    training = dataclasses.replace(config.training, noise_seed=5, start_from="runs/a")
    document |= {
        "training": to_document(dataclasses.replace(config, training=training))["training"]
    }
    for name in ("data", "training", "reference"):
        keys = {item.name for item in dataclasses.fields(getattr(config, name))}
        assert set(document[name]) == keys, name


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_what_is_written_reads_back_equal(tmp_path: Path, text: str) -> None:
    config = load_config(written(tmp_path, text))
    again = tmp_path / "run" / "config.toml"
    again.parent.mkdir()
    again.write_text(to_toml(config))
    assert load_config(again) == config
    assert parse_config(to_document(config), base=Path("/elsewhere")) == config


def test_a_preset_with_overrides(tmp_path: Path) -> None:
    text = MINIMAL.replace(
        'task = "ctr"\nlabel = "click"\ncategorical = ["C1"]',
        'preset = "criteo-display"\nbuckets = 5000',
    )
    schema = load_config(written(tmp_path, text)).schema
    assert len(schema.fields) == 26
    assert set(schema.table_rows.values()) == {5000}


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("privacy.epsilon=1", lambda c: c.privacy.epsilon == 1.0),
        ("privacy.l2_clip_norm = 0.25", lambda c: c.l2_clip_norm == 0.25),
        ("training.table_optimizer.learning_rate=0.1", lambda c: rate(c) == 0.1),
        ("training.table_optimizer={learning_rate=0.2}", lambda c: rate(c) == 0.2),
        ("schema.task=cvr", lambda c: c.schema.task == "cvr"),
        ('schema.task="cvr"', lambda c: c.schema.task == "cvr"),
        ("data.train=a=b.parquet", lambda c: c.data.train[0].endswith("/a=b.parquet")),
        ("data.train=['x.csv', 'y.csv']", lambda c: len(c.data.train) == 2),
        ("training.reference=true", lambda c: c.training.reference),
        ("statement.publisher=The Ads Team", lambda c: c.statement.publisher == "The Ads Team"),
    ],
)  # fmt: skip
def test_overrides(tmp_path: Path, override: str, read: object) -> None:
    assert callable(read)
    assert read(load_config(written(tmp_path, MINIMAL), [override]))


def test_later_overrides_win(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    config = load_config(path, ["privacy.epsilon=1", "privacy.epsilon=2"])
    assert config.privacy.epsilon == 2.0


# Every row: an override of MINIMAL, the kind of error, and what its message must say.
BAD = [
    ("privcy.epsilon=1", ConfigError, 'Unknown table or key "privcy". Did you mean "privacy"?'),
    ("privacy.epsilom=1", ConfigError, 'Unknown key "privacy.epsilom". Did you mean "epsilon"'),
    ("privacy.clip_norm=1", ConfigError, 'Unknown key "privacy.clip_norm". Did you mean "l2_clip_'),
    ("training.epoch=1", ConfigError, 'Unknown key "training.epoch". Did you mean "epochs"?'),
    ("training.tower_optimizer.lr=1", ConfigError, 'Unknown key "training.tower_optimizer.lr"'),
    ("training.tower_optimizer.name=adm", ConfigError, 'Did you mean "adam" or "adambc"?'),
    ("training.tower_optimizer=adam", ConfigError, "expected a valid table"),
    ("training.table_optimizer.name=adam", ConfigError, 'Tables cannot use optimizer "adam"'),
    ("training.epochs=five", ConfigError, "training.epochs: expected a valid number, got 'five'."),
    ("training.epochs=0", ConfigError, "[training] Expected epochs to be a finite number > 0"),
    ("training.expected_batch_size=10.5", ConfigError, "batch_size: expected a valid integer"),
    ("training.expected_batch_size=0", ConfigError, "[training] Expected expected_batch_size to be a whole"),
    ("training.reference=1", ConfigError, "training.reference: expected a valid boolean"),
    ("training.table_noise=lasy", ConfigError, "training.table_noise: expected 'lazy' or 'dense'"),
    ("training.backend=tensorflow", ConfigError, "training.backend: expected 'torch'"),
    ("model.name=mpl", ConfigError, 'model.name: unknown model "mpl". Did you mean "mlp"'),
    ("model.hidden=[1]", ConfigError, 'Unknown key "model.hidden"'),
    ("model={}", ConfigError, '[model] needs "name"'),
    ("model=3", ConfigError, "[model]: expected a table, got 3."),
    (
        'model={name="mlp", hiden=[1]}',
        ConfigError,
        '"model.hiden": model "mlp" knows "embedding_dim", "hidden", "wide". Did you mean "hidden"?',
    ),
    ('model={name="mlp", hidden=5}', ConfigError, "model.hidden: expected a valid list, got 5."),
    ('model={name="mlp", hidden=[0]}', ConfigError, "[model] Expected hidden"),
    ("data.tets=1", ConfigError, 'Unknown key "data.tets". Did you mean "test"?'),
    ("data.test=1.5", ConfigError, "fraction in (0, 1), got 1.5"),
    ("data.train=3", ConfigError, "data.train: expected a valid string or a valid list, got 3."),
    ("data.train=[]", ConfigError, "[data] Expected at least one path"),
    ("data={}", ConfigError, '[data] needs "train"'),
    ("schema.tsk=ctr", SchemaError, 'Unknown key "tsk" in [schema]. Did you mean "task"'),
    ("schema.task=clicks", SchemaError, 'got "clicks"'),
    ("schema.categorical=C1", SchemaError, "schema.categorical: expected a valid list, got 'C1'."),
    ("schema.buckets=many", SchemaError, "schema.buckets: expected"),
    ("schema.preset=criteo", SchemaError, 'Did you mean "criteo-display"?'),
    ("privacy.epsilon=0", InputError, "epsilon"),
    ("privacy.epsilon=-1", InputError, "epsilon"),
    ("privacy.delta=0", InputError, "delta"),
    ("privacy.delta=1", InputError, "delta"),
    ("privacy.unit=household", InputError, "[privacy] Expected unit to be one of"),
    ("privacy.sampling_prob=1.5", InputError, "sampling_prob"),
    ("privacy.noise_multiplier=1", InputError, "epsilon"),
    ("statement.publisher=3", ConfigError, "Expected [statement] publisher to be a text"),
    ("statement.publsher=Us", ConfigError, 'Unknown key "publsher" in [statement]. Did you mean'),
    ("epsilon", ConfigError, "--set: expected key=value"),
    (".=1", ConfigError, "--set: expected key=value"),
    ("privacy.epsilon.x=1", ConfigError, '"privacy.epsilon" is a value, not a table'),
]  # fmt: skip


@pytest.mark.parametrize(("override", "kind", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_configurations_are_refused_by_name(
    tmp_path: Path, override: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        load_config(written(tmp_path, MINIMAL), [override])
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("table", ["data", "schema", "model", "privacy"])
def test_tables_that_are_needed(tmp_path: Path, table: str) -> None:
    text = MINIMAL.replace(f"[{table}]", "[training]").split("[training]")[0]
    with pytest.raises(ConfigError, match=r"needs a \["):
        load_config(written(tmp_path, text))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="got a folder"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(written(tmp_path, "[data\n"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected text in UTF-8"):
        load_config(tmp_path / "binary.toml")


def test_configurations_are_frozen(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MINIMAL))
    for item in dataclasses.fields(Config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, item.name, None)


@given(
    st.recursive(
        st.one_of(
            st.text(),
            st.integers(-(2**63), 2**63 - 1),
            st.booleans(),
            st.floats(allow_nan=False),
        ),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner),
        max_leaves=8,
    )
)
def test_values_survive_toml(value: object) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}


def test_toml_corners() -> None:
    assert math.isnan(tomllib.loads(f"x = {toml_value(math.nan)}")["x"])
    assert toml_key("a b") == '"a b"'
    assert toml_key("") == '""'
