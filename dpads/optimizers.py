"""What the user chooses as optimizers; how noisy gradients move the parameters.

Tables take `Sgd` alone: lazy noise is exact only where the update is linear in the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeAlias, get_args

from dpads._validate import nearest
from dpads.errors import ConfigError
from dpads.schedules import ScheduleName


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """theta <- (1 - eta_t * weight_decay) * theta - eta_t * gradient.

    Attributes:
        learning_rate: eta_0, positive.
        schedule: "constant", "linear" or "cosine".
        weight_decay: decoupled, >= 0.
    """

    name: ClassVar[str] = "sgd"
    learning_rate: float = 0.5
    schedule: ScheduleName = "constant"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with decoupled weight decay, for the tower.

    Attributes:
        learning_rate: eta_0, positive.
        schedule: "constant", "linear" or "cosine".
        weight_decay: decoupled, >= 0.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        stability: the constant added to the root of the second moment, positive.

    References:
        Kingma and Ba 2014, arXiv 1412.6980; Loshchilov and Hutter 2017, arXiv 1711.05101.
    """

    name: ClassVar[str] = "adam"
    learning_rate: float = 1e-3
    schedule: ScheduleName = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    stability: float = 1e-8

    def __post_init__(self) -> None:
        _check(self)
        _check_betas(self)
        if not (self.stability > 0.0 and math.isfinite(self.stability)):
            raise ConfigError(f"Expected a positive stability constant, got {self.stability}.")


@dataclass(frozen=True, kw_only=True)
class AdamBC:
    """DP-AdamBC: Adam without what the noise adds to the second moment, for the tower.

    The square of a noisy gradient is, in expectation, that of the true one plus the variance of the noise,
    (noise_multiplier * l2_clip_norm / expected_batch_size)^2 in every coordinate. That is a public number,
    and is subtracted, with Adam's moments m and v (corrected for their start at zero):

        theta <- (1 - eta_t * weight_decay) * theta - eta_t * m / sqrt(max(v - variance, floor))

    Without noise it is Adam, with a floor in place of its stability constant.

    Attributes:
        learning_rate: eta_0, positive.
        schedule: "constant", "linear" or "cosine".
        weight_decay: decoupled, >= 0.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        floor: the smallest corrected second moment, positive (gamma' of the paper): of squares of averaged
            gradients, so that it has to fall with the square of the batch size.

    References:
        Tang, Shpilevskiy and Lecuyer 2023, arXiv 2312.14334 v1, algorithm 1.
    """

    name: ClassVar[str] = "adambc"
    learning_rate: float = 1e-3
    schedule: ScheduleName = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    floor: float = 5e-8

    def __post_init__(self) -> None:
        _check(self)
        _check_betas(self)
        floor: Any = self.floor
        if not (isinstance(floor, int | float) and floor > 0.0 and math.isfinite(floor)):
            raise ConfigError(
                f"Expected a positive floor, got {floor!r}. It is the smallest second moment that a step is "
                "divided by the root of, such as 5e-8."
            )


Optimizer: TypeAlias = Sgd | Adam | AdamBC
OPTIMIZERS: dict[str, type[Sgd] | type[Adam] | type[AdamBC]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adambc": AdamBC,
}


def optimizer_from_dict(table: Mapping[str, Any]) -> Optimizer:
    """Reads { name = "sgd", learning_rate = 0.5, ... }; `name` defaults to "sgd".

    Raises:
        ConfigError: an unknown name or key, or a value out of range.
    """
    values = dict(table)
    name = str(values.pop("name", "sgd"))
    if name not in OPTIMIZERS:
        raise ConfigError(f'Unknown optimizer "{name}".' + nearest(name, OPTIMIZERS))
    kind = OPTIMIZERS[name]
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f'Unknown key "{key}" of optimizer "{name}".' + nearest(key, known))
    return kind(**values)


def optimizer_to_dict(optimizer: Optimizer) -> dict[str, Any]:
    """Plain data that `optimizer_from_dict` reads back."""
    return {"name": optimizer.name, **asdict(optimizer)}


def check_table_optimizer(optimizer: Optimizer) -> Sgd:
    """Refuses what lazy noise cannot be exact for.

    Raises:
        ConfigError: the optimizer is not `Sgd`.
    """
    if isinstance(optimizer, Sgd):
        return optimizer
    raise ConfigError(
        f'Tables cannot use optimizer "{optimizer.name}": noise that a row missed can be made up for in one '
        'draw only where the update is linear in the noise. Use table_optimizer = { name = "sgd" }.'
    )


def _check_betas(optimizer: Adam | AdamBC) -> None:
    """Checks how fast the moments forget."""
    for key in ("beta1", "beta2"):
        if not 0.0 <= getattr(optimizer, key) < 1.0:
            raise ConfigError(f"Expected {key} in [0, 1), got {getattr(optimizer, key)}.")


def _check(optimizer: Optimizer) -> None:
    """Checks what all optimizers share."""
    rate: Any = optimizer.learning_rate  # what TOML or a caller gave, of whatever type
    decay: Any = optimizer.weight_decay
    if not (isinstance(rate, int | float) and rate > 0.0 and math.isfinite(rate)):
        raise ConfigError(f"Expected a positive learning_rate, got {rate!r}.")
    if optimizer.schedule not in get_args(ScheduleName):
        raise ConfigError(
            f'Unknown schedule "{optimizer.schedule}".'
            + nearest(str(optimizer.schedule), get_args(ScheduleName))
        )
    if not (isinstance(decay, int | float) and 0.0 <= decay and decay * rate < 1.0):
        raise ConfigError(
            f"Expected weight_decay >= 0 with weight_decay * learning_rate < 1, got {decay!r} "
            f"at learning_rate {rate!r}."
        )
