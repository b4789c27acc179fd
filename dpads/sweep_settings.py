"""From the settings of a trial to its configuration, and back."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpads.config import Config, parse_config
from dpads.config_toml import to_document, toml_value
from dpads.errors import InputError
from dpads.plan import PrivacySpec
from dpads.run_data import resolve_plan
from dpads.sweep_axes import Settings


def unprotected(settings: Settings) -> bool:
    """Whether settings mean: without noise and clipping."""
    epsilon = settings.get("privacy.epsilon")
    return isinstance(epsilon, float) and epsilon == math.inf


def configured(raw: Mapping[str, Any], settings: Settings) -> Config:
    """The configuration of one trial; what is wrong with it is said with its settings."""
    try:
        return _applied(raw, settings)
    except InputError as error:
        culprit = settings
        for key, value in settings.items():  # one setting alone may be what is wrong
            try:
                _applied(raw, {key: value})
            except InputError as single:
                if str(single) == str(error):
                    culprit = {key: value}
                    break
        raise type(error)(f"A trial with {in_words(culprit)}: {error}") from None


def _applied(raw: Mapping[str, Any], settings: Settings) -> Config:
    """The base with settings put in."""
    document = copy.deepcopy(dict(raw))
    for key in sorted(settings, key=lambda key: key.count(".")):
        *path, last = key.split(".")
        table = document
        for name in path:
            table = table.setdefault(name, {})
        if last == "name" and table.get("name", settings[key]) != settings[key]:
            table.clear()  # another optimizer's keys are not this one's
        table[last] = copy.deepcopy(settings[key])
    privacy = document.setdefault("privacy", {})
    # Of the two one follows from the other: an axis of one replaces the base's other.
    if "privacy.epsilon" in settings and "privacy.noise_multiplier" not in settings:
        privacy.pop("noise_multiplier", None)
    if "privacy.noise_multiplier" in settings and "privacy.epsilon" not in settings:
        privacy.pop("epsilon", None)
    if not unprotected(settings):
        return parse_config(document, base=Path())
    del privacy["epsilon"]
    privacy |= {"noise_multiplier": 0.0, "l2_clip_norm": math.inf}
    config = parse_config(document, base=Path())
    training = dataclasses.replace(
        config.training,
        table_optimizer=config.reference.table_optimizer,
        tower_optimizer=config.reference.tower_optimizer,
    )
    return dataclasses.replace(config, training=training)


def fingerprint_of(config: Config) -> str:
    """The same text for configurations that train the same."""
    document = to_document(config)
    document.pop("reference", None)
    document["data"]["split_seed"] = config.split_seed
    return toml_value(document)


def effective(config: Config, key: str) -> Any:
    """What a configuration says under a dotted key of a sweep; None where it says nothing.

    Args:
        config: of a trial.
        key: such as "privacy.epsilon", which is inf where there is no noise.
    """
    if key == "privacy.epsilon" and config.privacy.noise_multiplier == 0.0:
        return math.inf
    if key == "data.split_seed":
        return config.split_seed
    value: Any = to_document(config)
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def effective_settings(settings: Settings, config: Config, axes: tuple[str, ...]) -> Settings:
    """The value of every axis, as it is in effect; a model as it was written."""
    return {
        key: settings[key] if key == "model" and key in settings else effective(config, key)
        for key in axes
    }


def check_trial_plan(config: Config, settings: Settings) -> None:
    """Checks the public numbers of a plan, as far as no calibration is needed."""
    if config.privacy.dataset_size is None:
        return
    try:
        check_plan(config, None)
    except InputError as error:
        raise type(error)(f"A trial with {in_words(settings)}: {error}") from None


def check_plan(config: Config, units: int | None) -> int:
    """Checks batch size, sampling and iterations; returns the iterations.

    Args:
        config: of a trial.
        units: the store's own number of units.

    Raises:
        ConfigError: they do not fit together.
    """
    fixed: PrivacySpec = config.privacy
    clip = config.l2_clip_norm
    if fixed.epsilon is not None:
        fixed = dataclasses.replace(fixed, epsilon=None, noise_multiplier=1.0)
    return resolve_plan(config, fixed, clip, units).mechanism.iterations


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings as a person writes them."""
    return ", ".join(f"{key} = {toml_value(value)}" for key, value in settings.items())
