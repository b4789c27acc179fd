"""A configuration written back as TOML, so that a run's folder says how to repeat it."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from typing import Any

from dpads.config import Config
from dpads.optimizers import optimizer_to_dict


def to_document(config: Config) -> dict[str, dict[str, Any]]:
    """The tables of a configuration; `parse_config` reads them back to an equal one."""
    training = config.training
    document: dict[str, dict[str, Any]] = {
        "data": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(config.data).items()
        },
        "schema": config.schema.to_dict(),
        "model": config.model.to_dict(),
        "privacy": {**dataclasses.asdict(config.privacy), "l2_clip_norm": config.l2_clip_norm},
        "training": {
            **{item.name: getattr(training, item.name) for item in dataclasses.fields(training)},
            "table_optimizer": optimizer_to_dict(training.table_optimizer),
            "tower_optimizer": optimizer_to_dict(training.tower_optimizer),
        },
        "reference": {
            "table_optimizer": optimizer_to_dict(config.reference.table_optimizer),
            "tower_optimizer": optimizer_to_dict(config.reference.tower_optimizer),
        },
        "prior": dataclasses.asdict(config.prior),
        "recalibration": dataclasses.asdict(config.recalibration),
        "selection": dataclasses.asdict(config.selection),
        "statement": dataclasses.asdict(config.statement),
    }
    return {name: _without_nothing(table) for name, table in document.items()}


def differing_keys(kept: str, config: Config) -> list[str]:
    """The dotted keys in which a kept text of `to_toml` differs from a configuration.

    Raises:
        ValueError: the kept text is not TOML.
    """
    first, second = _flat(tomllib.loads(kept)), _flat(tomllib.loads(to_toml(config)))
    return sorted(key for key in first | second if first.get(key) != second.get(key))


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of all tables, dotted."""
    return {
        f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()
    }


def to_toml(config: Config) -> str:
    """The configuration as the text of a TOML file.

    Examples:
        >>> toml_value({"name": "sgd", "learning_rate": 0.5}), toml_value([1, "a"]), toml_value(float("inf"))
        ('{ name = "sgd", learning_rate = 0.5 }', '[1, "a"]', 'inf')
    """
    parts = []
    for name, table in to_document(config).items():
        if not table:
            continue
        lines = [f"{toml_key(key)} = {toml_value(value)}" for key, value in table.items()]
        parts.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(parts) + "\n"


def _without_nothing(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys that are None (TOML has no null), empty lists and empty tables."""
    result = {}
    for key, value in table.items():
        kept = _without_nothing(value) if isinstance(value, Mapping) else value
        if isinstance(value, list):
            kept = [_without_nothing(v) if isinstance(v, Mapping) else v for v in value]
        if kept is not None and kept not in ([], (), {}):
            result[key] = kept
    return result


def toml_key(name: str) -> str:
    """A bare key where TOML allows one, else a quoted one."""
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else toml_value(name)


def toml_value(value: Any) -> str:
    """One value on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are among TOML's basic strings', once DEL is escaped too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = [f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items()]
        return "{ " + ", ".join(pairs) + " }"
    return "[" + ", ".join(toml_value(item) for item in value) + "]"
