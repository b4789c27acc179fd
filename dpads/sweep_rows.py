"""The trials of a sweep as its report reads them: rows, what varied among them, and words for it.

Everything here reads `sweep.json` and `results.parquet` and nothing else.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from dpads.accounting.wording import rows_words
from dpads.errors import RunError

SWEEP: Final = "sweep.json"
RESULTS: Final = "results.parquet"
FORMAT: Final = 1

EPSILON: Final = "privacy.epsilon"
BATCH: Final = "training.expected_batch_size"
MODEL: Final = "model"
MODEL_NAME: Final = "model.name"
UNIT: Final = "privacy.unit"
CAP: Final = "privacy.max_examples_per_unit"
SEEDS: Final = ("training.init_seed", "data.split_seed")

# More than these make a picture nobody can read: they are told apart in the table alone.
MOST_LINES: Final = 8

TASK_WORDS: Final[Mapping[str, str]] = {
    "ctr": "Click-through rate",
    "cvr": "Conversion rate",
    "count": "Number of conversions",
}
METRIC_WORDS: Final[Mapping[str, str]] = {
    "auc_loss": "AUC loss",
    "poisson_log_loss": "Poisson log loss",
    "calibration": "calibration",
    "ece": "expected calibration error",
    "normalized_entropy": "normalized entropy",
}
KEY_WORDS: Final[Mapping[str, str]] = {
    EPSILON: "epsilon",
    BATCH: "expected batch size",
    MODEL: "model",
    MODEL_NAME: "model",
    UNIT: "privacy unit",
    CAP: "examples kept per unit",
    "privacy.delta": "delta",
    "privacy.l2_clip_norm": "clip norm",
    "privacy.noise_multiplier": "noise multiplier",
    "training.epochs": "epochs",
    "training.init_seed": "init seed",
    "data.split_seed": "split seed",
    "training.table_optimizer.learning_rate": "tables' learning rate",
    "training.tower_optimizer.learning_rate": "tower's learning rate",
    "training.table_optimizer": "tables' optimizer",
    "training.tower_optimizer": "tower's optimizer",
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SweepRows:
    """What a sweep's folder says of its trials.

    Attributes:
        document: `sweep.json`.
        rows: One mapping per trial that has begun, in order: the columns of `results.parquet`.
    """

    document: Mapping[str, Any]
    rows: Sequence[Row]

    @classmethod
    def read(cls, folder: Path) -> SweepRows:
        """Reads a sweep's folder.

        Raises:
            RunError: `sweep.json` or `results.parquet` is missing, or another format wrote it.
        """
        import polars as pl

        for name in (SWEEP, RESULTS):
            if not (folder / name).is_file():
                raise RunError(
                    f"Expected {name} in the sweep's folder {folder}, found none. A sweep writes it: "
                    "run `dpads sweep` there first."
                )
        document = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise RunError(
                f"Expected {folder / SWEEP} in format {FORMAT}, got {document.get('format')!r}. "
                "Report it with the version of dpads that wrote it."
            )
        rows = pl.read_parquet(folder / RESULTS).sort("trial").to_dicts()
        return cls(document, rows)

    @property
    def task(self) -> str:
        """ctr, cvr or count."""
        return str(self.document["task"])

    @property
    def loss(self) -> str:
        """The column of the task's headline loss."""
        return str(self.document["loss"])

    @property
    def is_private(self) -> bool:
        """Whether the training rows were declared private."""
        return bool(self.document["rows"] == "private")

    @property
    def axes(self) -> tuple[str, ...]:
        """The dotted keys that were swept."""
        return tuple(self.document["axes"])

    @cached_property
    def done(self) -> list[Row]:
        """The trials that finished with a loss."""
        return [r for r in self.rows if r["status"] == "done" and r.get(self.loss) is not None]

    @property
    def noisy(self) -> list[Row]:
        """Those of them that were trained with noise."""
        return [row for row in self.done if not row["reference"]]

    @property
    def noise_free(self) -> list[Row]:
        """Those of them that were trained without."""
        return [row for row in self.done if row["reference"]]

    @cached_property
    def added_references(self) -> frozenset[str]:
        """The trials that no axis asked for: they ran only to be compared with."""
        return frozenset(t["trial"] for t in self.document["trials"] if t.get("reference"))

    @cached_property
    def model_labels(self) -> Mapping[Hashable, str]:
        """What each model is called: its name, and what tells it from others of that name."""
        return _model_labels({row.get(MODEL) or row[MODEL_NAME] for row in self.rows})

    def model_of(self, row: Row) -> str:
        """What the trial's model is called."""
        return self.model_labels[row.get(MODEL) or row[MODEL_NAME]]

    def values(self, key: str) -> list[Any]:
        """The distinct values of a setting among all trials, sorted."""
        return distinct(row.get(key) for row in self.rows)

    def varies(self, key: str) -> bool:
        """Whether a setting differs among the trials."""
        return len(self.values(key)) > 1

    @cached_property
    def other_axes(self) -> tuple[str, ...]:
        """What varied beside epsilon and seeds."""
        return tuple(k for k in self.axes if k not in (EPSILON, *SEEDS) and self.varies(k))

    def group_of(self, row: Row) -> str:
        """Whom the trial protects, in words; only trials that protect the same are compared."""
        return unit_words(row.get(UNIT), row.get(CAP))

    def axis_words(self, key: str) -> str:
        """All values of an axis."""
        if key == MODEL:
            return ", ".join(self.model_labels.values())
        found = [value_words(value) for value in self.values(key)]
        if len(found) > 12:
            return f"{len(found)} values from {found[0]} to {found[-1]}"
        return ", ".join(found)

    def settings_words(self, row: Row, keys: Iterable[str]) -> str:
        """A trial's settings in words."""
        return ", ".join(
            f"model {self.model_of(row)}"
            if key == MODEL
            else f"{key_words(key)} {value_words(row.get(key))}"
            for key in keys
        )


def lowest(sweep: SweepRows, rows: Sequence[Row]) -> list[Row]:
    """The trials of the setting whose mean loss over seeds is lowest; none where there are no trials.

    A setting of which a seed failed is not among them, unless all are: it would be compared on other
    splits.
    """
    keys = [key for key in sweep.axes if key not in SEEDS]
    found = grouped(rows, lambda row: (epsilon_of_row(row), *(row.get(key) for key in keys)))
    most = max((len(seeds) for seeds in found.values()), default=0)
    whole = [seeds for seeds in found.values() if len(seeds) == most]
    return min(whole, key=lambda seeds: statistics.fmean(r[sweep.loss] for r in seeds), default=[])


def epsilon_of_row(row: Row) -> float:
    """The epsilon that a trial was asked to keep, or the accounted one where noise was asked for."""
    wanted = row.get(EPSILON)
    if wanted is not None:
        return float(wanted)
    accounted = float(row["epsilon"])
    return accounted if math.isinf(accounted) else float(f"{accounted:.3g}")


def distinct(values: Iterable[Any]) -> list[Any]:
    """The distinct values, numbers by size, then texts."""
    found = {value for value in values if value is not None}
    return sorted(found, key=lambda v: (isinstance(v, str), v))


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by key, in the order of their first one."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def key_words(key: str) -> str:
    """A dotted key as people say it."""
    return KEY_WORDS.get(key, key)


def value_words(value: Any) -> str:
    """A setting's value as people write it.

    Examples:
        >>> value_words(float("inf")), value_words(1e-06), value_words(1024), value_words(None)
        ('infinity', '1e-6', '1,024', 'default')
    """
    if value is None:
        return "default"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isinf(value):
        return "infinity"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.6g}".replace("e-0", "e-")


def unit_words(unit: Any, cap: Any) -> str:
    """Whom a guarantee protects."""
    kept = "" if cap is None else f", at most {rows_words(int(cap))} kept of each"
    return f"one {unit or 'example'}{kept}"


def _model_labels(models: Iterable[str]) -> dict[Hashable, str]:
    """Names of models, which a configuration gives as a name or as a table in JSON."""
    tables = {model: _table(model) for model in distinct(models)}
    names = [str(table.get("name")) for table in tables.values()]
    labels: dict[Hashable, str] = {}
    for (model, table), name in zip(tables.items(), names, strict=True):
        rest = {key: value for key, value in table.items() if key != "name"}
        details = ", ".join(f"{key} {json.dumps(value)}" for key, value in sorted(rest.items()))
        labels[model] = f"{name} ({details or 'defaults'})" if names.count(name) > 1 else name
    return labels


def _table(model: str) -> dict[str, Any]:
    """A model's table; a bare name is a table with nothing else."""
    try:
        table = json.loads(model)
    except json.JSONDecodeError:
        return {"name": model}
    return table if isinstance(table, dict) else {"name": model}
