"""The TOML edge: a configuration file, checked key by key, becomes frozen dataclasses.

Types are checked here, with pydantic; what values mean is checked by the dataclasses themselves.
Every error names the key by its dotted path.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from dpads._validate import nearest
from dpads.accounting.facts import HumanFacts
from dpads.config_tables import Config, DataConfig, ReferenceConfig, TrainingConfig
from dpads.errors import ConfigError, InputError, SchemaError
from dpads.models.base import REGISTRY, Description
from dpads.optimizers import OPTIMIZERS, Adam, AdamBC, Optimizer, Sgd
from dpads.plan import PrivacySpec
from dpads.private_sums_config import PriorConfig, RecalibrationConfig, SelectionConfig
from dpads.schema import FeatureSchema

__all__ = [
    "Config", "DataConfig", "ReferenceConfig", "TrainingConfig", "load_config", "parse_config"
]  # fmt: skip

T = TypeVar("T")
Reader = Callable[[Any, str], Any]
DEFAULT_L2_CLIP_NORM = 1.0
_TEXTS = tuple[str, ...]
_SCHEMA_TYPES: Mapping[str, Any] = {
    "preset": str,
    "task": str,
    "label": str,
    "numeric": tuple[str | dict[str, Any], ...],
    "categorical": _TEXTS,
    "bags": tuple[str | dict[str, Any], ...],
    "tables": dict[str, list[str]],
    "buckets": int | dict[str, int],
    "weight": str,
    "exposure": str,
    "user": str,
    "columns": _TEXTS,
    "negatives_kept": float,
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration file.

    Args:
        path: a TOML file; relative paths in it start from its folder.
        overrides: "a.b=value" each, applied in order; the value is read as TOML, else as text.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown (the nearest known one is
            named) or a value is wrong; the message has the key's dotted path.
        SchemaError: the same for [schema].
    """
    file = Path(path)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Give a TOML configuration.") from None
    except IsADirectoryError:
        raise ConfigError(
            f"{path}: expected a file, got a folder. Give a TOML configuration."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path}: expected text in UTF-8, got other bytes. Give a TOML configuration."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
    for override in overrides:
        _override(document, override)
    return parse_config(document, base=file.parent)


def parse_config(document: Mapping[str, Any], *, base: Path) -> Config:
    """Checks a configuration that is already plain data.

    Args:
        document: tables by name, as TOML gives them.
        base: the folder that relative paths start from.

    Raises:
        ConfigError: as `load_config`.
        SchemaError: as `load_config`.
    """
    known = [item.name for item in dataclasses.fields(Config) if item.name != "l2_clip_norm"]
    tables: dict[str, dict[str, Any]] = {}
    for name, table in document.items():
        if name == "performance":
            raise ConfigError(
                "[performance] is no part of a configuration: it changes nothing about privacy. Give "
                "--threads or --physical-batch-size to `dpads train`, or performance= in Python."
            )
        if name not in known:
            raise ConfigError(f'Unknown table or key "{name}".' + nearest(name, known))
        if not isinstance(table, dict):
            first = {"model": "name"}.get(name, "kind")
            hint = ""
            if isinstance(table, str) and name in ("model", "prior", "recalibration", "selection"):
                hint = f' Did you mean {name}.{first} = "{table}"?'
            raise ConfigError(f"[{name}]: expected a table, got {table!r}.{hint}")
        tables[name] = dict(table)
    for name in ("data", "schema", "model", "privacy"):
        if name not in tables:
            raise ConfigError(f"The configuration needs a [{name}] table.")
    paths: dict[str, Reader] = {key: _paths_under(base) for key in ("train", "test")}
    privacy, l2_clip_norm = _privacy(tables["privacy"])
    training = _read(
        TrainingConfig,
        tables.get("training", {}),
        "training",
        {
            "table_optimizer": _optimizer(Sgd()),
            "tower_optimizer": _optimizer(Adam()),
            "start_from": _path_under(base),
        },
    )
    reference = {
        "table_optimizer": training.table_optimizer,
        "tower_optimizer": training.tower_optimizer,
    }
    readers = {key: _optimizer(optimizer) for key, optimizer in reference.items()}
    return Config(
        data=_read(DataConfig, tables["data"], "data", paths),
        schema=_schema(tables["schema"]),
        model=_model(tables["model"]),
        privacy=privacy,
        l2_clip_norm=l2_clip_norm,
        training=training,
        reference=_read(
            ReferenceConfig, {**reference, **tables.get("reference", {})}, "reference", readers
        ),
        prior=_read(PriorConfig, tables.get("prior", {}), "prior", {}),
        recalibration=_read(
            RecalibrationConfig, tables.get("recalibration", {}), "recalibration", {}
        ),
        selection=_read(SelectionConfig, tables.get("selection", {}), "selection", {}),
        statement=HumanFacts.from_mapping(tables.get("statement", {})),
    )


def _read(kind: type[T], table: Mapping[str, Any], where: str, readers: Mapping[str, Reader]) -> T:
    """A frozen dataclass from a table: keys known, types right, values as the class wants them."""
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{where}.{key}"
        if key not in known:
            raise ConfigError(f'Unknown key "{path}".' + nearest(key, known))
        values[key] = (
            readers[key](value, path) if key in readers else _typed(hints[key], value, path)
        )
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if needed and item.name not in values:
            raise ConfigError(f'[{where}] needs "{item.name}".')
    return _in_table(where, lambda: kind(**values))


def _typed(hint: Any, value: Any, path: str) -> Any:
    """The value, if it has the type; lists pass for tuples, whole numbers for floats."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(hint).validate_python(_frozen(value), strict=True)
    except ValidationError as error:
        words = [item["msg"].replace("Input should be ", "") for item in error.errors()]
        wanted = " or ".join(dict.fromkeys(words))
        for python, toml in (("tuple", "list"), ("dictionary", "table")):
            wanted = wanted.replace(python, toml)
        raise ConfigError(f"{path}: expected {wanted}, got {value!r}.") from None


def _frozen(value: Any) -> Any:
    """Lists as tuples, at every depth."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value


def _in_table(where: str, build: Callable[[], T]) -> T:
    """Runs a constructor; its complaint gets the name of the table in front."""
    try:
        return build()
    except InputError as error:
        raise type(error)(f"[{where}] {error}") from None


def _paths_under(base: Path) -> Reader:
    """A reader of one path, a list of paths, or (test) a fraction."""

    def read(value: Any, path: str) -> tuple[str, ...] | float:
        if path.endswith(".test") and isinstance(value, float):
            return value
        names = _typed(str | tuple[str, ...], value, path)
        every = (names,) if isinstance(names, str) else names
        if not all(name.strip() for name in every):
            raise ConfigError(f"{path}: expected a path, got an empty text. Name a log or a store.")
        return tuple(str(base.absolute() / Path(name).expanduser()) for name in every)

    return read


def _path_under(base: Path) -> Reader:
    """A reader of one path, or of nothing."""

    def read(value: Any, path: str) -> str | None:
        name = _typed(str | None, value, path)
        if name is None:
            return None
        if not name.strip():
            raise ConfigError(f"{path}: expected a path, got an empty text. Leave it out.")
        return str(base.absolute() / Path(name).expanduser())

    return read


def _optimizer(default: Optimizer) -> Reader:
    """A reader of { name, learning_rate, ... }; what is left out is as in the default."""

    def read(value: Any, path: str) -> Optimizer:
        if isinstance(value, Sgd | Adam | AdamBC):
            return value
        table = _typed(dict[str, Any], value, path)
        name = table.pop("name", default.name)
        if name not in OPTIMIZERS:
            raise ConfigError(
                f'{path}.name: unknown optimizer "{name}".' + nearest(str(name), OPTIMIZERS)
            )
        kind = OPTIMIZERS[name]
        inherited = dataclasses.asdict(default) if kind is type(default) else {}
        return _read(kind, {**inherited, **table}, path, {})

    return read


def _model(table: dict[str, Any]) -> Description:
    """[model]: the name says which keys there are."""
    name = table.pop("name", None)
    if name is None:
        raise ConfigError('[model] needs "name".' + nearest("", REGISTRY))
    if name not in REGISTRY:
        raise ConfigError(f'model.name: unknown model "{name}".' + nearest(str(name), REGISTRY))
    if not (REGISTRY[name].in_files or table):  # with keys it is of a run, and names its model
        raise ConfigError(
            f'[model] name = "{name}" is a model of your own, which no file describes. Train it from '
            f"Python: dpads.train(store, model=dpads.models.from_{name}(...))."
        )
    known = [item.name for item in dataclasses.fields(REGISTRY[name])]  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            names = ", ".join(f'"{item}"' for item in known) or "none"
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
            hint = f' Did you mean "{close[0]}"?' if close else ""
            raise ConfigError(f'Unknown key "model.{key}": model "{name}" knows {names}.{hint}')
    return _read(REGISTRY[name], table, "model", {})


def _privacy(table: dict[str, Any]) -> tuple[PrivacySpec, float]:
    """[privacy]: the promise, and the clip norm that stands beside it."""
    clip = _typed(float, table.pop("l2_clip_norm", DEFAULT_L2_CLIP_NORM), "privacy.l2_clip_norm")
    known = [*(item.name for item in dataclasses.fields(PrivacySpec)), "l2_clip_norm"]
    for key in table:
        if key not in known:
            raise ConfigError(f'Unknown key "privacy.{key}".' + nearest(key, known))
    return _read(PrivacySpec, table, "privacy", {}), clip


def _schema(table: dict[str, Any]) -> FeatureSchema:
    """[schema]: types here, meaning in FeatureSchema."""
    for key, value in table.items():
        if key in _SCHEMA_TYPES:
            try:
                _typed(_SCHEMA_TYPES[key], value, f"schema.{key}")
            except ConfigError as error:
                raise SchemaError(str(error)) from None
    return FeatureSchema.from_dict(table)


def _override(document: dict[str, Any], text: str) -> None:
    """Applies one "a.b=value"."""
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f'--set: expected key=value such as privacy.epsilon=1, got "{text}".')
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    table = document
    for number, key in enumerate(keys[:-1], 1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f'--set {path}: "{".".join(keys[:number])}" is a value, not a table.')
    table[keys[-1]] = parsed["value"] if set(parsed) == {"value"} else value.strip()
