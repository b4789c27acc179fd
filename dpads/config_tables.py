"""The tables of a configuration, as frozen dataclasses: what their values mean is checked here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeGuard

from dpads._validate import expect_kind
from dpads.accounting.facts import HumanFacts
from dpads.errors import ConfigError
from dpads.models.base import Description
from dpads.models.output import check_class_weight
from dpads.optimizers import Adam, AdamBC, Optimizer, Sgd, check_table_optimizer
from dpads.plan import PrivacySpec
from dpads.private_sums_config import PriorConfig, RecalibrationConfig, SelectionConfig
from dpads.schema import FeatureSchema


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """[data]: where the rows are.

    Attributes:
        train: logs (paths or globs, .parquet .arrow .csv .tsv, plain or .gz/.zst), or one store.
        test: likewise; or a fraction in (0, 1), split off per unit by a keyed hash; or None.
        split_seed: of the keyed hash that splits test rows off and caps users; public and harmless.
            None: training.init_seed.
    """

    train: tuple[str, ...]
    test: tuple[str, ...] | float | None = None
    split_seed: int | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("Expected at least one path in train, got an empty list.")
        if self.test == ():
            raise ConfigError(
                "Expected at least one path in test, got an empty list. Leave it out."
            )
        if isinstance(self.test, float) and not 0.0 < self.test < 1.0:
            raise ConfigError(
                f"Expected test to be paths or a fraction in (0, 1), got {self.test}."
            )
        seed: object = self.split_seed
        if seed is not None and not (_is_whole(seed) and 0 <= seed < 2**63):
            raise ConfigError(
                f"Expected split_seed to be a whole number in [0, 2^63), got {seed!r}."
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """[training]: how to train; nothing here is a privacy parameter but the expected batch size.

    Attributes:
        expected_batch_size: units per iteration in expectation; gradients are divided by it.
        epochs: passes over the units in expectation.
        backend: "torch", on the processor, or "jax", on what JAX finds: processor, GPU or TPU.
        table_noise: "lazy" or "dense": the same law, two costs.
        table_optimizer: how tables move.
        tower_optimizer: how the dense part moves.
        init_seed: of initial parameters, and of the split where data.split_seed is not set; public
            and harmless.
        noise_seed: for tests only: makes noise reproducible and voids the claim.
        positive_weight: factor of the losses of positive examples, before they are clipped; binary tasks.
            Predictions take it back.
        negative_weight: likewise of negative ones.
        reference: also train without noise and clipping, to compare with: an access that the
            guarantee does not cover.
        start_from: the folder of an earlier run of the same model on the same columns: training starts
            from its final parameters, and its ledger is carried on.
        start_from_public: whether somebody vouches that the earlier run's rows are nobody's data that
            this guarantee is about; then nothing is carried on.
    """

    expected_batch_size: int = 1024
    epochs: float = 5
    backend: Literal["torch", "jax"] = "torch"
    table_noise: Literal["lazy", "dense"] = "lazy"
    table_optimizer: Optimizer = field(default_factory=Sgd)
    tower_optimizer: Optimizer = field(default_factory=Adam)
    init_seed: int = 7
    noise_seed: int | None = None
    positive_weight: float = 1.0
    negative_weight: float = 1.0
    reference: bool = False
    start_from: str | None = None
    start_from_public: bool = False

    def __post_init__(self) -> None:
        _check_optimizers(self.table_optimizer, self.tower_optimizer)
        if self.start_from_public and self.start_from is None:
            raise ConfigError(
                "Expected start_from with start_from_public, got none. Name the folder of the run whose "
                "rows are public."
            )
        for name in ("positive_weight", "negative_weight"):
            check_class_weight(name, getattr(self, name))
        batch: object = self.expected_batch_size
        if not (_is_whole(batch) and batch >= 1):
            raise ConfigError(
                f"Expected expected_batch_size to be a whole number >= 1, got {batch!r}."
            )
        epochs: object = self.epochs
        is_number = isinstance(epochs, int | float) and not isinstance(epochs, bool)
        if not (is_number and 0.0 < self.epochs < float("inf")):
            raise ConfigError(f"Expected epochs to be a finite number > 0, got {epochs!r}.")


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """[reference]: what the non-private reference does otherwise; its optimizers alone.

    Attributes:
        table_optimizer: how tables move.
        tower_optimizer: how the dense part moves.
    """

    table_optimizer: Optimizer
    tower_optimizer: Optimizer

    def __post_init__(self) -> None:
        _check_optimizers(self.table_optimizer, self.tower_optimizer)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole configuration.

    Attributes:
        data: [data], paths made absolute.
        schema: [schema].
        model: [model].
        privacy: [privacy] without l2_clip_norm.
        l2_clip_norm: [privacy] l2_clip_norm; inf only without noise.
        training: [training].
        reference: [reference], filled up from [training].
        prior: [prior].
        recalibration: [recalibration].
        selection: [selection].
        statement: [statement], facts that only people know.
    """

    data: DataConfig
    schema: FeatureSchema
    model: Description
    privacy: PrivacySpec
    l2_clip_norm: float
    training: TrainingConfig
    reference: ReferenceConfig
    prior: PriorConfig = field(default_factory=PriorConfig)
    recalibration: RecalibrationConfig = field(default_factory=RecalibrationConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    statement: HumanFacts = field(default_factory=HumanFacts)

    def __post_init__(self) -> None:
        for name, kind, example in (
            ("privacy", PrivacySpec, "dpads.PrivacySpec(epsilon=3.0)"),
            ("prior", PriorConfig, 'dpads.PriorConfig(kind="dp_count")'),
            ("recalibration", RecalibrationConfig, 'dpads.RecalibrationConfig(kind="none")'),
            ("selection", SelectionConfig, 'dpads.SelectionConfig(kind="noisy_count")'),
        ):
            expect_kind(name, getattr(self, name), kind, example)
        self.model.check_backend(self.training.backend)
        self.prior.check_schema(self.schema)
        training = self.training
        if self.schema.task == "count" and (training.positive_weight, training.negative_weight) != (
            1.0,
            1.0,
        ):
            raise ConfigError(
                "[training] positive_weight and negative_weight are factors of two classes: counts have "
                "none. Name a weight column in [schema] instead."
            )

    @property
    def split_seed(self) -> int:
        """The seed that tells which units are test units, and which rows of a user are kept."""
        own = self.data.split_seed
        return self.training.init_seed if own is None else own


def _check_optimizers(table: Optimizer, tower: Optimizer) -> None:
    """Checks that they are optimizers, and that the tables' suits lazy noise."""
    for name, value in (("table_optimizer", table), ("tower_optimizer", tower)):
        expect_kind(name, value, (Sgd, Adam, AdamBC), "dpads.Sgd(learning_rate=0.5)")
    check_table_optimizer(table)


def _is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
