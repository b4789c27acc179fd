"""results.parquet: one row a trial, with settings, metrics, cost and what it lost against the baseline."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dpads.config_toml import to_document, toml_value
from dpads.evaluation import BINARY_METRICS, COUNT_METRICS, HEADLINE_LOSS
from dpads.plan import Plan
from dpads.run_files import METRICS, RUN, is_run, partial_of, read_json, write_bytes
from dpads.sweep_config import Trial
from dpads.sweep_settings import effective
from dpads.sweep_trial import TrialOutcome

if TYPE_CHECKING:
    import polars as pl

    from dpads.schema import Task

RESULTS: Final = "results.parquet"
ALWAYS: Final = (
    "model.name",
    "privacy.unit",
    "privacy.epsilon",
    "privacy.l2_clip_norm",
    "training.expected_batch_size",
    "training.epochs",
    "training.table_optimizer.learning_rate",
    "training.tower_optimizer.learning_rate",
    "training.init_seed",
    "data.split_seed",
)
"""Settings that every table has, whether they vary or not."""
_INCREASE: Final = ("relative_increase", "relative_increase_low", "relative_increase_high")
_NUMBERS: Final = ("noise_multiplier", "sampling_prob", "iterations", "epsilon", "delta")

Row = dict[str, Any]


@dataclass(frozen=True)
class _Measured:
    """What a whole run says: metrics, and the mechanism's numbers."""

    metrics: Mapping[str, Any]
    numbers: Row


class Results:
    """The table of a sweep's trials; whole runs are read once.

    Args:
        folder: of the sweep.
        trials: all of them.
    """

    def __init__(self, folder: Path, trials: Sequence[Trial]) -> None:
        self._folder = folder
        self._trials = trials
        self._axes = tuple(dict.fromkeys(key for trial in trials for key in trial.settings))
        self._task: Task = trials[0].config.schema.task
        self._measured: dict[str, _Measured] = {}

    def write(self, outcomes: Mapping[str, TrialOutcome], *, running: frozenset[str]) -> None:
        """Writes results.parquet as a whole: a reader sees the old table or the new one.

        Args:
            outcomes: how trials ended, by name.
            running: trials that are under way, which get no row yet.

        Raises:
            OSError: it cannot be written; the old table stays.
        """
        memory = io.BytesIO()
        self.table(outcomes, running=running).write_parquet(memory)
        write_bytes(self._folder / RESULTS, memory.getbuffer())

    def table(
        self, outcomes: Mapping[str, TrialOutcome], *, running: frozenset[str]
    ) -> pl.DataFrame:
        """One row for every trial that has begun and is not under way."""
        import polars as pl

        rows = []
        for trial in self._trials:
            if trial.name in running:
                continue
            row = self._row(trial, outcomes.get(trial.name))
            if row is not None:
                rows.append((trial, row))
        self._compare(rows)
        schema = self._schema()
        columns = {name: [row.get(name) for _, row in rows] for name in schema}
        return pl.DataFrame(
            [
                pl.Series(name, values, dtype=kind, strict=True)
                if (kind := schema[name]) is not None
                else _series(name, values)
                for name, values in columns.items()
            ]
        )

    def _row(self, trial: Trial, outcome: TrialOutcome | None) -> Row | None:
        """What is known of a trial; nothing where it has not begun."""
        run = self._folder / "trials" / trial.name
        done = is_run(run)
        if not done and outcome is None and not partial_of(run).exists():
            return None
        failed = not done and outcome is not None and outcome.status == "failed"
        row: Row = {
            "trial": trial.name,
            "status": "done" if done else "failed" if failed else "interrupted",
            "error": outcome.error if failed and outcome is not None else None,
            "reference": trial.reference,
            **{key: _plain(value) for key, value in trial.settings.items()},
            **{key: effective(trial.config, key) for key in ALWAYS},
            "run": str(run.relative_to(self._folder)) if done else None,
        }
        if outcome is not None:
            row |= {"seconds": outcome.seconds, "memory_bytes": outcome.memory_bytes}
        if done:
            measured = self._read(trial, run, outcome)
            row |= measured.numbers
            intervals = measured.metrics.get("intervals", {})
            for name in self._metric_names:
                low, high = intervals.get(name) or (None, None)
                row |= {name: measured.metrics.get(name), f"{name}_low": low, f"{name}_high": high}
        return row

    def _read(self, trial: Trial, run: Path, outcome: TrialOutcome | None) -> _Measured:
        """A whole run's numbers."""
        if trial.name not in self._measured:
            plan = Plan.from_dict(read_json(run / RUN)["plan"])
            known = outcome.epsilon if outcome is not None else None
            if not plan.is_private:
                known = math.inf
            numbers = {
                "noise_multiplier": plan.mechanism.noise_multiplier,
                "sampling_prob": plan.mechanism.sampling_prob,
                "iterations": plan.mechanism.iterations,
                "epsilon": plan.loss.epsilon if known is None else known,
                "delta": plan.delta,
            }
            self._measured[trial.name] = _Measured(read_json(run / METRICS), numbers)
        return self._measured[trial.name]

    def _compare(self, rows: Sequence[tuple[Trial, Row]]) -> None:
        """By how much each trial's loss exceeds its baseline's, as a fraction of the baseline's."""
        loss = HEADLINE_LOSS[self._task]
        baselines = _baselines(
            [(t, row[loss]) for t, row in rows if t.reference and row.get(loss) is not None]
        )
        for trial, row in rows:
            base = baselines.get(trial.group)
            if base is None:
                continue
            for name, of in zip(_INCREASE, (loss, f"{loss}_low", f"{loss}_high"), strict=True):
                value = row.get(of)
                row[name] = None if value is None else (value - base) / abs(base)

    @property
    def _metric_names(self) -> tuple[str, ...]:
        """Metrics of the task."""
        return COUNT_METRICS if self._task == "count" else BINARY_METRICS

    def _schema(self) -> dict[str, Any]:
        """Columns and their types, in order; None where values decide."""
        import polars as pl

        metrics = [f"{n}{end}" for n in self._metric_names for end in ("", "_low", "_high")]
        return {
            "trial": pl.String,
            "status": pl.String,
            "error": pl.String,
            "reference": pl.Boolean,
            **dict.fromkeys((*self._axes, *ALWAYS)),
            **dict.fromkeys((*metrics, *_INCREASE, *_NUMBERS), pl.Float64),
            "iterations": pl.Int64,
            "seconds": pl.Float64,
            "memory_bytes": pl.Int64,
            "run": pl.String,
        }


def _baselines(losses: Sequence[tuple[Trial, float]]) -> dict[tuple[Any, ...], float]:
    """The loss to compare with, by what must be equal: of several settings without noise the best.

    Which is best is the same for all seeds: the one whose mean over them is lowest.
    """
    settings: dict[tuple[Any, ...], dict[str, list[tuple[Trial, float]]]] = {}
    for trial, loss in losses:
        same_model = settings.setdefault(trial.group[:3], {})
        same_model.setdefault(_without_seeds(trial), []).append((trial, loss))
    found: dict[tuple[Any, ...], float] = {}
    for several in settings.values():
        best = min(several.values(), key=lambda own: sum(loss for _, loss in own) / len(own))
        found |= {trial.group: loss for trial, loss in best if loss}
    return found


def _without_seeds(trial: Trial) -> str:
    """All settings of a trial but its seeds."""
    document = to_document(trial.config)
    for table, key in (("training", "init_seed"), ("data", "split_seed")):
        document[table].pop(key, None)
    document.pop("reference", None)
    return toml_value(document)


def _plain(value: Any) -> Any:
    """A setting as a cell: tables and lists as JSON."""
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, sort_keys=True, default=str)
    return value


def _series(name: str, values: Sequence[Any]) -> pl.Series:
    """A column of settings with the narrowest type that holds them all; else of JSON."""
    import polars as pl

    kinds = {type(value) for value in values if value is not None}
    for wanted, dtype in (
        ({bool}, pl.Boolean),
        ({int}, pl.Int64),
        ({int, float}, pl.Float64),
        ({str}, pl.String),
    ):
        if kinds <= wanted:
            return pl.Series(name, values, dtype=dtype, strict=False)
    texts = [None if value is None else json.dumps(value) for value in values]
    return pl.Series(name, texts, dtype=pl.String)
