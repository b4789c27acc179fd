"""SWEEP.toml: a base configuration, what varies, and the trials that follow."""

from __future__ import annotations

import copy
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from dpads._validate import nearest
from dpads.config import Config, load_config, parse_config
from dpads.config_toml import toml_key, toml_value
from dpads.errors import ConfigError
from dpads.sweep_axes import (
    MOST_TRIALS,
    Settings,
    check_separate,
    draw_random,
    flat_settings,
    grid,
    read_axes,
)
from dpads.sweep_settings import (
    check_trial_plan,
    configured,
    effective_settings,
    fingerprint_of,
    in_words,
    unprotected,
)
from dpads.warm_start import refuse_start

if TYPE_CHECKING:
    from dpads.tune_config import TuneConfig

Draw = Literal["grid", "list", "random"]
RowsKind = Literal["private", "public", "synthetic"]
DRAWS: Final = ("grid", "list", "random")
ROWS: Final = ("private", "public", "synthetic")
_KEYS: Final = ("base", "draw", "reference", "rows", "axes", "trials", "seed", "tune")
# What a model without noise has in common with the trials that are compared with it.
_COMMON: Final = (
    "model",
    "privacy.unit",
    "privacy.max_examples_per_unit",
    "privacy.dataset_size",
    "training.init_seed",
    "training.epochs",
    "data.split_seed",
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a sweep.

    Attributes:
        name: "0001", "0002", ...
        settings: the value of every axis by dotted key; privacy.epsilon is inf without noise and clipping.
        config: the whole configuration.
    """

    name: str
    settings: Mapping[str, Any]
    config: Config

    @property
    def reference(self) -> bool:
        """Whether it is trained without noise."""
        return self.config.privacy.noise_multiplier == 0.0

    @property
    def group(self) -> tuple[Any, ...]:
        """What trials share that may be compared: model, unit, cap and both seeds."""
        config = self.config
        return (
            toml_value(config.model.to_dict()),
            config.privacy.unit,
            config.privacy.max_examples_per_unit,
            config.training.init_seed,
            config.split_seed,
        )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep, checked.

    Attributes:
        base: the configuration that trials start from.
        document: SWEEP.toml as plain data, base inlined and paths absolute; `parse_sweep` reads it back.
        trials: all trials, references last.
        axes: the dotted keys that vary.
        rows: what the training rows are.
        reference: whether trials without noise and clipping were asked for.
        tune: [tune], for `dpads tune` alone.
    """

    base: Config
    document: Mapping[str, Any]
    trials: tuple[Trial, ...]
    axes: tuple[str, ...]
    rows: RowsKind
    reference: bool
    tune: TuneConfig | None = None

    def to_toml(self) -> str:
        """SWEEP.toml; equal sweeps give equal texts."""
        lines = [
            f"{toml_key(key)} = {toml_value(value)}"
            for key, value in self.document.items()
            if key not in ("base", "axes", "tune")
        ]
        for name in ("axes", "tune"):
            if name in self.document:
                lines += ["", f"[{name}]", *_lines(self.document[name])]
        for name, table in self.document["base"].items():
            lines += ["", f"[base.{toml_key(name)}]", *_lines(table)]
        return "\n".join(lines).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    """The lines of one table."""
    return [f"{toml_key(key)} = {toml_value(value)}" for key, value in table.items()]


def load_sweep(path: str | Path) -> SweepConfig:
    """Reads a sweep's file.

    Args:
        path: a TOML file; relative paths in it start from its folder.

    Raises:
        ConfigError: the file is missing or no TOML, a key or axis is unknown (the nearest ones are named),
            an axis is empty, two trials are equal, or a trial's configuration is wrong.
        SchemaError: the same for the schema.
    """
    file = Path(path)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Give a TOML file with a sweep.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: expected a file, got a folder. Give a TOML file.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
    return parse_sweep(document, base=file.parent)


def parse_sweep(document: Mapping[str, Any], *, base: Path) -> SweepConfig:
    """Checks a sweep that is already plain data.

    Args:
        document: the keys of SWEEP.toml.
        base: the folder that relative paths start from.

    Raises:
        ConfigError: as `load_sweep`.
        SchemaError: as `load_sweep`.
    """
    for key in document:
        if key not in _KEYS:
            raise ConfigError(f'Unknown key "{key}" of a sweep.' + nearest(key, _KEYS))
    draw = _word(document, "draw", DRAWS, "grid")
    rows: Any = _word(document, "rows", ROWS, "private")
    reference = document.get("reference", False)
    if not isinstance(reference, bool):
        raise ConfigError(f"reference: expected true or false, got {reference!r}.")
    raw, start = _raw_base(document, base)
    drawn, axes = _draw(document, draw)
    trials = _trials(raw, drawn, axes, merge=draw != "list")
    if reference:
        trials += _references(raw, trials, axes)
    if len(trials) > MOST_TRIALS:
        raise ConfigError(f"Expected at most {MOST_TRIALS:,} trials, got {len(trials):,}.")
    tune = None
    if "tune" in document:
        from dpads.tune_config import TuneConfig

        tune = TuneConfig.from_table(document["tune"])
    kept = {key: document[key] for key in ("trials", "seed", "tune") if key in document}
    if "axes" in document:
        kept["axes"] = _plain_axes(document["axes"])
    return SweepConfig(
        base=start,
        document={"draw": draw, "reference": reference, "rows": rows, **kept, "base": raw},
        trials=tuple(_numbered(trials)),
        axes=axes,
        rows=rows,
        reference=reference,
        tune=tune,
    )


def _word(document: Mapping[str, Any], key: str, words: tuple[str, ...], default: str) -> str:
    """One of a few words."""
    value = document.get(key, default)
    if value not in words:
        raise ConfigError(f"{key}: unknown value {value!r}." + nearest(str(value), words))
    return str(value)


def _raw_base(document: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], Config]:
    """The base configuration as plain data with absolute paths, and checked."""
    base = document.get("base")
    if isinstance(base, str) and base.strip():
        file = folder / base
        config = load_config(file)
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    elif isinstance(base, Mapping):
        raw = copy.deepcopy(dict(base))
        config = parse_config(raw, base=folder)
    else:
        raise ConfigError(
            f"base: expected the path of a configuration, or its tables such as [base.data], got {base!r}."
        )
    if config.data.test is None:
        raise ConfigError(
            "A sweep compares trials on test rows, and there are none. Set data.test of the base."
        )
    if config.training.noise_seed is not None:
        raise ConfigError(
            "training.noise_seed is set in the base: all trials would share noise, and their guarantees "
            "would be void. Leave it out."
        )
    if config.training.reference:
        raise ConfigError(
            "training.reference is set in the base: every trial would train a reference of its own. Leave it "
            "out, and say `reference = true` at the top of the sweep."
        )
    refuse_start(config, "a trial of a sweep")
    raw["data"] = {**raw["data"], "train": list(config.data.train)}
    if isinstance(config.data.test, tuple):
        raw["data"]["test"] = list(config.data.test)
    return raw, config


def _draw(document: Mapping[str, Any], draw: str) -> tuple[list[Settings], tuple[str, ...]]:
    """The settings of every trial as drawn, and the keys that vary."""
    trials, table = document.get("trials"), document.get("axes", {})
    if draw == "list":
        if table:
            raise ConfigError('draw = "list" takes [[trials]], not [axes].')
        if not isinstance(trials, list | tuple) or not trials:
            raise ConfigError('draw = "list" needs at least one [[trials]] table.')
        for item in trials:
            if not isinstance(item, Mapping) or not item:
                raise ConfigError(f"trials: expected tables with settings, got {item!r}.")
        drawn = [flat_settings(item) for item in trials]
        return drawn, tuple(dict.fromkeys(key for settings in drawn for key in settings))
    if not isinstance(table, Mapping) or not table:
        raise ConfigError(f'draw = "{draw}" needs [axes] with at least one axis.')
    axes = read_axes(table, draw)
    check_separate(axes)
    keys = tuple(key for axis in axes for key in axis.keys)
    if draw == "grid":
        for key in ("trials", "seed"):
            if key in document:
                raise ConfigError(f'{key} is of draw = "list" or "random", got draw = "grid".')
        return list(grid(axes)), keys
    for key, least in (("trials", 1), ("seed", 0)):
        value = document.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(
                f'{key}: expected a whole number >= {least} with draw = "random", got {value!r}.'
            )
    if document["trials"] > MOST_TRIALS:
        raise ConfigError(f"trials: expected at most {MOST_TRIALS:,}, got {document['trials']:,}.")
    return list(draw_random(axes, document["trials"], document["seed"])), keys


def _plain_axes(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The axes as given, by dotted key."""
    plain: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and not {"low", "high"} & set(value):
            plain |= _plain_axes(value, f"{prefix}{name}.")
        else:
            plain[f"{prefix}{name}"] = value
    return plain


Made = tuple[Settings, Config]


def _trials(
    raw: Mapping[str, Any],
    drawn: Iterable[Settings],
    axes: tuple[str, ...],
    *,
    merge: bool,
) -> list[Made]:
    """Settings and configurations; trials without noise and clipping that come out equal are one.

    A clip norm or a learning rate of [reference]'s own leaves no trace in them.
    """
    made: list[Made] = []
    seen: dict[str, Settings] = {}
    for settings in drawn:
        config = configured(raw, settings)
        key = fingerprint_of(config)
        if key in seen:
            if merge and unprotected(settings):
                continue
            raise ConfigError(
                f"Expected trials that differ, got two with {in_words(settings)}: they would spend privacy "
                "twice and learn nothing new. Drop one; to repeat a setting, vary training.init_seed."
            )
        seen[key] = settings
        check_trial_plan(config, settings)
        made.append((effective_settings(settings, config, axes), config))
    return made


def _references(raw: Mapping[str, Any], trials: list[Made], axes: tuple[str, ...]) -> list[Made]:
    """One trial without noise and clipping for all that can be compared with it, unless it is there."""
    known = {fingerprint_of(config) for _, config in trials}
    made: list[Made] = []
    for settings, _ in trials:
        common = {
            key: value
            for key, value in settings.items()
            if value is not None
            and any(key == name or key.startswith(f"{name}.") for name in _COMMON)
        }
        common["privacy.epsilon"] = math.inf
        config = configured(raw, common)
        if fingerprint_of(config) not in known:
            known.add(fingerprint_of(config))
            made.append((effective_settings(common, config, axes), config))
    return made


def _numbered(trials: list[Made]) -> Iterable[Trial]:
    """Trials with names of equal length."""
    width = max(4, len(str(len(trials))))
    for number, (settings, config) in enumerate(trials, 1):
        yield Trial(name=f"{number:0{width}d}", settings=settings, config=config)
