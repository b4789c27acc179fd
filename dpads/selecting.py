"""The winner of a sweep as a run of its own, whose statement charges it for every other trial.

Every trial of a sweep may be looked at, so all of them compose: those that failed or were cut off too, for
they were trained in part, and those that never began, for somebody may have stopped the sweep after a look at
the others. The metrics by which the winner was chosen are exact reads of test rows, which nothing covers; the
ledger says on which rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from dpads import run_files as files
from dpads._validate import nearest
from dpads.accounting.ledger import Ledger
from dpads.errors import ConfigError
from dpads.evaluation import HEADLINE_LOSS
from dpads.run import Run
from dpads.selecting_ledger import (
    check_comparable,
    check_winner,
    looks_at_others,
    others_charged,
    own_entries,
    trainings_of,
)
from dpads.sweep_folder import sole_user
from dpads.sweeping import Sweep

if TYPE_CHECKING:
    from dpads.sweep_config import Trial

SELECTED: Final = "selected"
STAGE_MARK: Final = ".recipe"
_RECIPE_FILES: Final = ("recipe.json", "asked.json")
SEEDS: Final = ("training.init_seed", "data.split_seed")
# Metrics that order trials; calibration does not: it is best at 1.
ORDERING: Final[Mapping[bool, tuple[str, ...]]] = {
    True: ("auc_loss", "auc", "pr_auc", "log_loss", "normalized_entropy", "ece"),
    False: ("poisson_log_loss", "rmse"),
}
HIGHER: Final = ("auc", "pr_auc")
_ROWS_WORDS: Final[Mapping[str, str]] = {
    "test": "test rows that were split off",
    "declared_test": "rows that the configuration calls test rows",
    "train_and_test": "rows of which some are training rows",
}


@dataclass(frozen=True)
class Choice:
    """How a winner was chosen.

    Attributes:
        trial: the winner.
        by: the metric.
        mean: of the winner's settings, over their seeds.
        seeds: how many trials of those settings finished.
        settings: how many settings were compared.
        rows: what the ledger calls the rows that the metric was computed on.
    """

    trial: Trial
    by: str
    mean: float
    seeds: int
    settings: int
    rows: str

    @property
    def in_words(self) -> str:
        """How the winner was chosen, on which rows, and what covers that."""
        best = "highest" if self.by in HIGHER else "lowest"
        over = (
            ""
            if self.seeds == 1
            else f", the mean over {self.seeds} seeds, of which it is the first"
        )
        return (
            f"Trial {self.trial.name} has the {best} {self.by}, {self.mean:.5g}{over}, of {self.settings} "
            f"private settings. The metric was read exactly on {_ROWS_WORDS[self.rows]}: this choice is not "
            "covered by the guarantee."
        )


def select(
    sweep: str | Path | Sweep,
    *,
    by: str | None = None,
    out: str | Path | None = None,
    on_statement: Callable[[int, int], None] | None = None,
) -> Run:
    """Makes the winner of a sweep a run of its own, charged for all other private trials.

    The winner is the first trial (lowest seeds) of the settings whose metric is best in the mean over
    init_seed and split_seed, among private trials that finished.

    Args:
        sweep: a sweep's folder.
        by: the metric; default: the task's headline loss.
        out: the run's folder, which must not exist; default: selected/ in the sweep's folder.
        on_statement: called with how much of a guarantee for users is computed, and of how much.

    Returns:
        The run.

    Raises:
        ConfigError: the path is no sweep, a metric is unknown, `out` exists, no private trial finished, or
            private trials differ in unit, relation, cap or number of units, so that they do not compose,
            or the sweep is a stage of a recipe.
        RunError: the sweep is running, or the winner's folder is not the one that was announced.

    Guarantees:
        - Every other private trial of the sweep's file is charged, whether it finished, failed or never
          began; one that was trained anew, each time.
        - What else the trials' own ledgers hold, such as later metrics, is on the winner's ledger too.
        - The ledger says on which rows the metric that chose was read, and that nothing covers that.
    """
    found = sweep if isinstance(sweep, Sweep) else Sweep.open(sweep)
    target = found.path / SELECTED if out is None else Path(out)
    files.refuse_existing(target)
    _refuse_stage(found.path)
    with sole_user(found.path):
        choice = choose(found, by)
        check_comparable(found)
        winner = Run.load(found.folder_of(choice.trial.name))
        trainings = trainings_of(found, winner.plan.dataset_size)
        check_winner(winner, choice.trial, trainings)
        charged = others_charged(found, choice.trial, trainings)
        compared = len(charged) > 0
        ledger = Ledger()
        for fields in (
            *own_entries(winner, compared),
            *charged,
            *_how_chosen(found, choice, compared),
            *looks_at_others(found, winner, choice.trial),
        ):
            ledger.append(**fields)
        run = Run(
            model=winner.model,
            plan=winner.plan,
            record=winner.record,
            config=winner.config,
            ledger=ledger,
            metrics=winner.metrics,
        )
        run.statement(on_statement)
        run.save(target)
    return run


def choose(sweep: Sweep, by: str | None = None) -> Choice:
    """The winner among the private trials of a sweep that finished.

    Args:
        sweep: the sweep.
        by: the metric; default: the task's headline loss.

    Raises:
        ConfigError: the metric is unknown or says nothing about better and worse, or no private trial
            finished with it.
    """
    task = sweep.config.base.schema.task
    metric = HEADLINE_LOSS[task] if by is None else by
    known = ORDERING[task != "count"]
    if metric not in known:
        raise ConfigError(
            f"Expected a metric that trials can be ordered by, got {metric!r}."
            + nearest(metric, known)
        )
    groups: dict[str, list[tuple[Trial, float]]] = {}
    for trial in sweep.trials:
        folder = sweep.folder_of(trial.name)
        if trial.reference or not files.is_run(folder):
            continue
        value = files.read_json(folder / files.METRICS).get(metric)
        if value is not None:
            own = {key: value for key, value in trial.settings.items() if key not in SEEDS}
            name = json.dumps(own, sort_keys=True)
            groups.setdefault(name, []).append((trial, float(value)))
    if not groups:
        raise ConfigError(
            f"{sweep.path}: no private trial has finished and has {metric}. Start the sweep again to go on "
            "with it, or look at its results for what failed."
        )
    sign = -1.0 if metric in HIGHER else 1.0
    best = min(groups.values(), key=lambda trials: sign * fmean(value for _, value in trials))
    winner = min((trial for trial, _ in best), key=_seeds)
    return Choice(
        trial=winner,
        by=metric,
        mean=fmean(value for _, value in best),
        seeds=len(best),
        settings=len(groups),
        rows=_scored_rows(sweep, winner),
    )


def _seeds(trial: Trial) -> tuple[int, int, str]:
    """The order of trials of equal settings."""
    return trial.config.training.init_seed, trial.config.split_seed, trial.name


def _scored_rows(sweep: Sweep, winner: Trial) -> str:
    """What the ledger calls the rows on which trials were compared."""
    own = Ledger.load(sweep.folder_of(winner.name) / files.LEDGER).entries
    rows = {entry.rows for entry in own if entry.kind == "evaluation"}
    splits = {trial.config.split_seed for trial in sweep.trials if not trial.reference}
    if len(splits) > 1 or len(rows) != 1:
        # Rows that one trial was tested on are rows that another one, and maybe the winner, trained on.
        return "train_and_test"
    return rows.pop()


def _refuse_stage(folder: Path) -> None:
    """Refuses a stage of a recipe, whose trials were chosen after a look at earlier stages.

    Raises:
        ConfigError: the folder is one.
    """
    above = folder.absolute().parents[:2]
    marked = (folder / STAGE_MARK).exists()
    if marked or any((place / name).is_file() for place in above for name in _RECIPE_FILES):
        raise ConfigError(
            f"{folder}: this is a stage of a recipe, and its trials were planned after a look at the results "
            "of earlier stages: what they cost does not add up. Use the recipe's own model, in model/ of "
            "the recipe's folder: its statement counts every stage."
        )


def _how_chosen(sweep: Sweep, choice: Choice, compared: bool) -> Iterator[dict[str, Any]]:
    """Ledger entries of what nothing covers: models without noise, and the metrics that chose."""
    outside = "public_data_only" if sweep.config.rows != "private" else "not_covered"
    for entry in sweep.ledger.entries:
        if entry.kind == "reference":
            yield {
                "kind": "reference",
                "description": "A trial of the sweep was trained without noise and clipping",
                "rows": "train",
                "treatment": outside,
                "details": {"chose_configuration": False},
            }
    if compared:
        yield {
            "kind": "evaluation",
            "description": f"Exact metrics of all trials on {_ROWS_WORDS[choice.rows]}: this model was "
            f"chosen by {choice.by} among {choice.settings} settings",
            "rows": choice.rows,
            "treatment": outside,
            "details": {"chose_configuration": True, "metric": choice.by},
        }
