"""What a run is trained with, beside the mechanism's numbers, and how it reports where it stands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from dpads.errors import ConfigError
from dpads.kernels.workers import available_cores
from dpads.models.output import check_class_weight
from dpads.optimizers import (
    Adam,
    Optimizer,
    Sgd,
    check_table_optimizer,
    optimizer_to_dict,
)
from dpads.private_sums_config import PriorConfig, RecalibrationConfig, SelectionConfig
from dpads.tables import check_table_noise


@dataclass(frozen=True, kw_only=True)
class Performance:
    """How the work is done; changing it never changes privacy.

    Attributes:
        threads: for kernels and torch, at most as many as cores that this process may use; None
            for all of them.
        physical_batch_size: examples in memory at a time; None for the whole batch. The result
            changes by rounding alone.
        checkpoint_seconds: time between checkpoints, where a folder for them was given.
    """

    threads: int | None = None
    physical_batch_size: int | None = None
    checkpoint_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("threads", "physical_batch_size"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ConfigError(f"Expected {name} to be a positive integer, got {value!r}.")
        if self.threads is not None and self.threads > available_cores():
            raise ConfigError(
                f"Expected threads to be at most {available_cores()}, the cores that this process may use, "
                f"got {self.threads}."
            )
        if not self.checkpoint_seconds > 0:
            raise ConfigError(
                f"Expected checkpoint_seconds to be positive, got {self.checkpoint_seconds!r}."
            )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What is trained with, beside the mechanism's numbers in the plan.

    Attributes:
        backend: "torch" or "jax".
        table_noise: "lazy" or "dense"; the law is the same.
        table_optimizer: `Sgd`.
        tower_optimizer: `Sgd`, `Adam` or `AdamBC`.
        init_seed: of initial parameters and splits; public and harmless.
        noise_seed: for tests only; recorded, and voids the claim.
        positive_weight: factor of the losses of positive examples.
        negative_weight: factor of the losses of negative examples.
        prior: where the output starts.
        recalibration: what is fitted after training, where the plan has a release for it.
        selection: which rows of tables are trained, where the plan has a release for it.
    """

    backend: str = "torch"
    table_noise: str = "lazy"
    table_optimizer: Optimizer = field(default_factory=Sgd)
    tower_optimizer: Optimizer = field(default_factory=Adam)
    init_seed: int = 0
    noise_seed: int | None = None
    positive_weight: float = 1.0
    negative_weight: float = 1.0
    prior: PriorConfig = field(default_factory=PriorConfig)
    recalibration: RecalibrationConfig = field(default_factory=RecalibrationConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        check_table_noise(self.table_noise)
        check_table_optimizer(self.table_optimizer)
        for name in ("positive_weight", "negative_weight"):
            check_class_weight(name, getattr(self, name))
        for name in ("init_seed", "noise_seed"):
            value = getattr(self, name)
            if value is None and name == "noise_seed":
                continue
            if not (isinstance(value, int) and value >= 0):
                raise ConfigError(f"Expected {name} to be an integer >= 0, got {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "backend": self.backend,
            "table_noise": self.table_noise,
            "table_optimizer": optimizer_to_dict(self.table_optimizer),
            "tower_optimizer": optimizer_to_dict(self.tower_optimizer),
            "init_seed": self.init_seed,
            "noise_seed": self.noise_seed,
            "positive_weight": self.positive_weight,
            "negative_weight": self.negative_weight,
            "prior": dataclasses.asdict(self.prior),
            "recalibration": dataclasses.asdict(self.recalibration),
            "selection": dataclasses.asdict(self.selection),
        }


@dataclass(frozen=True)
class Progress:
    """Where a run stands; nothing in it depends on private rows beyond the time that they take.

    Attributes:
        iteration: iterations done.
        iterations: iterations planned.
        examples_per_second: expected batch size over the time per iteration.
        seconds_left: at that speed.
    """

    iteration: int
    iterations: int
    examples_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class RowProgress:
    """How far the tables are made or finished; a public number.

    Attributes:
        stage: "initialising" before the first iteration, "finishing" after the last.
        rows: rows of tables done.
        total: rows of all tables.
    """

    stage: Literal["initialising", "finishing"]
    rows: int
    total: int
