"""[prior], [recalibration] and [selection]: noisy sums over private rows beside training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dpads.accounting.releases import Wanted, check_share
from dpads.errors import ConfigError
from dpads.schema import FeatureSchema

# Of one row's vector the part that counts rows has this share of the label's bound as its largest entry: the
# label's part is what fits are uncertain of.
COUNTING = 0.5
_PRIOR_SHARE = 0.01
_RECALIBRATION_SHARE = 0.02
_SELECTION_SHARE = 0.1
_THRESHOLD = 10.0  # examples


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """[prior]: where the model's output starts.

    Attributes:
        kind: "zero"; "public", from `rate`; or "dp_count", from a noisy count of rows and labels, an
            access with an entry on the ledger and a share of the budget.
        rate: public: the share of positive labels, or the mean count per unit of exposure.
        share: of the budget, for "dp_count".

    Raises:
        ConfigError: a value is out of range, or a rate is missing or given without use.
    """

    kind: Literal["zero", "public", "dp_count"] = "zero"
    rate: float | None = None
    share: float = _PRIOR_SHARE

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, ("zero", "public", "dp_count"))
        if self.kind != "dp_count":
            _refuse_idle("share", self.share, _PRIOR_SHARE, 'kind = "dp_count"')
        check_share("share", self.share)
        if (self.rate is None) == (self.kind == "public"):
            raise ConfigError(
                f'Expected rate exactly with kind = "public", got kind = "{self.kind}" and rate = '
                f"{self.rate}. It is the rate of positive labels that is known from elsewhere."
            )
        rate: object = self.rate
        if rate is not None and not _is_positive(rate):
            raise ConfigError(f"Expected rate to be a number > 0, got {rate!r}.")

    def check_schema(self, schema: FeatureSchema) -> None:
        """Refuses a rate that a schema's labels cannot have.

        Raises:
            ConfigError: the task is one of probabilities, and the rate is none.
        """
        if self.rate is not None and schema.task != "count" and not self.rate < 1.0:
            raise ConfigError(
                f'[prior] Expected rate below 1 with task = "{schema.task}", got {self.rate!r}. It is the '
                "share of positive labels."
            )


@dataclass(frozen=True, kw_only=True)
class RecalibrationConfig:
    """[recalibration]: a calibration of the trained model's logit, fitted to noisy sums.

    Attributes:
        kind: "scale_and_bias", "buckets" or "none". None: "scale_and_bias", but "none" where the
            schema has a column of weights and no `largest_weight` bounds them.
        share: of the budget.
        largest_count: counts above it count as it, here and in a "dp_count" prior; public.
        largest_exposure: rows of more exposure count as rows of that much at the same rate; public.
        largest_weight: rows of more weight count as rows of that much; public.

    Raises:
        ConfigError: a value is out of range.
    """

    kind: Literal["scale_and_bias", "buckets", "none"] | None = None
    share: float = _RECALIBRATION_SHARE
    largest_count: float = 5.0
    largest_exposure: float = 1.0
    largest_weight: float | None = None

    def __post_init__(self) -> None:
        if self.kind is not None:
            _check_choice("kind", self.kind, ("scale_and_bias", "buckets", "none"))
        if self.kind == "none":
            _refuse_idle("share", self.share, _RECALIBRATION_SHARE, "another kind")
        check_share("share", self.share)
        for name in ("largest_count", "largest_exposure", "largest_weight"):
            value = getattr(self, name)
            if value is None and name == "largest_weight":
                continue
            if not _is_positive(value):
                raise ConfigError(
                    f"Expected {name} to be a number > 0, got {value!r}. It bounds what one row can "
                    "change, so it has to be known without a look at the rows."
                )

    def resolved(self, schema: FeatureSchema) -> Literal["scale_and_bias", "buckets", "none"]:
        """What is fitted to rows of a schema.

        Raises:
            ConfigError: something is asked for, and nothing bounds the rows' weights.
        """
        unbounded = schema.weight is not None and self.largest_weight is None
        if self.kind is None:
            return "none" if unbounded else "scale_and_bias"
        if unbounded and self.kind != "none":
            raise ConfigError(
                f'[recalibration] Expected largest_weight with the column of weights "{schema.weight}", '
                "got none. Set it to a public bound of the weights: one row of that weight is what the "
                "noise hides."
            )
        return self.kind

    def label_bound(self, schema: FeatureSchema) -> float:
        """The largest label of a row."""
        return float(self.largest_count) if schema.task == "count" else 1.0


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """[selection]: which rows of the tables are trained.

    Attributes:
        kind: "none": all of them; "noisy_count": those that enough examples have, by a noisy count.
        share: of the budget, for "noisy_count".
        threshold: examples that a row must have, by its noisy count.

    Raises:
        ConfigError: a value is out of range.
    """

    kind: Literal["none", "noisy_count"] = "none"
    share: float = _SELECTION_SHARE
    threshold: float = _THRESHOLD

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, ("none", "noisy_count"))
        if self.kind == "none":
            _refuse_idle("share", self.share, _SELECTION_SHARE, 'kind = "noisy_count"')
            _refuse_idle("threshold", self.threshold, _THRESHOLD, 'kind = "noisy_count"')
        check_share("share", self.share)
        if not _is_positive(self.threshold):
            raise ConfigError(
                f"Expected threshold to be a number of examples > 0, got {self.threshold!r}."
            )


def wanted_releases(
    schema: FeatureSchema,
    prior: PriorConfig,
    selection: SelectionConfig,
    recalibration: RecalibrationConfig,
) -> tuple[Wanted, ...]:
    """The releases that a configuration asks for; public, like everything they are made of."""
    wanted = []
    # A row's vector has its label, at most the bound, and COUNTING times the bound where it counts rows.
    label = recalibration.label_bound(schema)
    if prior.kind == "dp_count":
        row = label * math.sqrt(1.0 + COUNTING**2)
        wanted.append(Wanted(kind="dp_count", share=prior.share, l2_clip_norm=row))
    if selection.kind == "noisy_count":
        # One row of a table for each field: more of them are scaled down together.
        bound = math.sqrt(max(1, len(schema.fields)))
        wanted.append(Wanted(kind="selection", share=selection.share, l2_clip_norm=bound))
    if recalibration.resolved(schema) != "none":
        # The label's residual twice: in the total, and shared between two nodes.
        row = label * math.sqrt(2.0 + COUNTING**2)
        wanted.append(Wanted(kind="recalibration", share=recalibration.share, l2_clip_norm=row))
    return tuple(wanted)


def _is_positive(value: object) -> bool:
    """Whether it is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0.0 < value < math.inf


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in known:
        raise ConfigError(f"Expected {name} to be one of {', '.join(known)}, got {value!r}.")


def _refuse_idle(name: str, value: object, default: float, needed: str) -> None:
    """Refuses a number that is given where it changes nothing: somebody thinks that it does."""
    if value != default:
        raise ConfigError(
            f"Expected {name} only with {needed}, got {name} = {value!r}. Leave it out."
        )
