"""Trials of a recipe's stages: small sweeps, on the recipe's ledger before they run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dpads import run_files as files
from dpads.accounting.events import EventTree
from dpads.accounting.ledger import Ledger
from dpads.config import Config, DataConfig
from dpads.errors import RunError
from dpads.evaluation import HEADLINE_LOSS
from dpads.plan import PrivacySpec
from dpads.recipe_ask import ASKED, How, RecipeRows, noisy
from dpads.recipe_budget import STAGES, FilterFile, check_unspent, stage_folder
from dpads.recipe_choice import Tried, Values, tried_of
from dpads.recipe_stages import RowsName, with_values
from dpads.run_data import resolve_plan
from dpads.store import ExampleStore
from dpads.sweep_config import parse_sweep
from dpads.sweep_ledger import one_of
from dpads.sweep_progress import SweepProgress
from dpads.sweeping import sweep

TEST_SHARE: Final = 0.2  # of public rows


class StageTrials:
    """Runs the trials of stages.

    Args:
        folder: of the recipe.
        how: what was asked for.
        rows: the rows.
        ledger: of the recipe.
    """

    def __init__(self, folder: Path, how: How, rows: RecipeRows, ledger: Ledger) -> None:
        self._folder, self._how, self._rows, self._ledger = folder, how, rows, ledger

    def tell(self, title: str, at: SweepProgress | None = None) -> None:
        """Tells whoever watches."""
        if self._how.on_progress is not None:
            self._how.on_progress(title, at)

    def noise_free(
        self, name: str, title: str, config: Config, settings: Sequence[Values]
    ) -> list[Tried]:
        """Trials without noise: on public or made-up rows, or on the ledger before they run."""
        rows = self._how.noise_free_rows
        if not (self._noted(name) and (self._folder / STAGES / name).exists()):
            self._note_noise_free(name, title, len(settings))
        stage_folder(self._folder, name, len(settings), rows)
        base = dataclasses.replace(noisy(config, 0.0), l2_clip_norm=math.inf)
        if self._rows.public is not None:
            base = _on_public(base, self._rows.public)
        return self._trials(name, title, base, settings, rows)

    def private(
        self,
        name: str,
        title: str,
        config: Config,
        settings: Sequence[Values],
        event: EventTree,
        budget: FilterFile,
    ) -> list[Tried]:
        """Trials with noise, all of which are taken out of the filter's total first.

        Args:
            name: of the stage.
            title: for people.
            config: with the noise multiplier.
            settings: of the trials.
            event: of each.
            budget: the filter.

        Raises:
            BudgetError: they do not fit.
            CheckpointError: the stage's folder is not the one that they were taken out for.
            RunError: another mechanism ran, or one more often.
        """
        if not self._noted(name):
            self._ledger.append(
                kind="evaluation",
                description=f"{title}: {len(settings)} models were compared by exact metrics",
                rows=self._rows.test_rows,
                treatment="not_covered",
                details={"chose_configuration": True, "stage": name},
            )
        identity = stage_folder(self._folder, name, len(settings), "private")
        path = self._folder / STAGES / name / files.LEDGER
        if name not in budget.folders:
            check_unspent(path.parent)
        for place in range(len(settings)):
            budget.spend(f"{name}/{place}", event, identity)
        found = self._trials(name, title, config, settings, "private", self._looks(name))
        charged = [entry for entry in Ledger.load(path).entries if entry.kind == "tuning"]
        if len(charged) > len(settings) or any(entry.dp_event != event for entry in charged):
            raise RunError(
                f"{path}: other trials were charged than were taken out of the filter's total, as where "
                "a trial was lost and trained anew. No guarantee can be stated; begin anew under "
                "another --out."
            )
        return found

    def _trials(
        self,
        name: str,
        title: str,
        base: Config,
        settings: Sequence[Values],
        rows: RowsName,
        first: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Tried]:
        """The trials of a stage that finished."""
        self.tell(title)
        document = {
            "draw": "list",
            "rows": rows,
            "trials": [dict(item) for item in settings],
            "base": with_values(base, {}),
        }
        found = sweep(
            parse_sweep(document, base=Path("/")),
            out=self._folder / STAGES / name,
            workers=self._how.workers,
            threads=self._how.threads,
            first=first,
            on_progress=lambda at: self.tell(title, at),
        )
        loss_name = HEADLINE_LOSS[base.schema.task]
        tried = []
        for trial in found.trials:
            run = found.folder_of(trial.name)
            measured = files.read_json(run / files.METRICS) if files.is_run(run) else {}
            one = tried_of(trial.settings, measured, loss_name, trial.name)
            if one is not None:
                tried.append(one)
        if not tried:
            raise RunError(
                f"{found.path}: no trial finished with a {loss_name}. Its results.parquet says what failed."
            )
        return tried

    def _looks(self, name: str) -> list[dict[str, Any]]:
        """What the ledger of a trial with noise begins with: the looks that led to its settings."""
        asked = files.sha256((self._folder / ASKED).read_bytes())
        looks = [
            entry for entry in self._ledger.entries if entry.kind in ("reference", "evaluation")
        ]
        return one_of(self._how.trials, asked, "private", "a recipe") + [
            entry.to_dict() for entry in looks if entry.details.get("stage") != name
        ]

    def _note_noise_free(self, name: str, title: str, count: int) -> None:
        """Ledger entries of a stage without noise, unless its rows were made up."""
        rows = self._how.noise_free_rows
        if rows == "synthetic":
            return
        private = rows == "private"
        for kind, read, what in (
            ("reference", "train", "were trained without noise"),
            ("evaluation", self._rows.test_rows, "were compared by exact metrics"),
        ):
            self._ledger.append(
                kind=kind,
                description=f"{title}: {count} models {what}{'' if private else ' on public rows'}",
                rows=read if private else "none",
                treatment="not_covered" if private else "public_data_only",
                details={"chose_configuration": True, "stage": name},
            )

    def _noted(self, name: str, kind: str = "evaluation") -> bool:
        """Whether a stage is on the ledger."""
        return any(e.kind == kind and e.details.get("stage") == name for e in self._ledger.entries)


def _on_public(config: Config, store: ExampleStore) -> Config:
    """The configuration on public rows: as many iterations, batches as large as there are rows for."""
    privacy = config.privacy
    units = max(1, int(store.num_units(privacy.unit) * (1.0 - TEST_SHARE)))
    plan = resolve_plan(config, privacy, config.l2_clip_norm, None)
    size = min(plan.mechanism.expected_batch_size, units)
    spec = PrivacySpec(
        noise_multiplier=0.0,
        delta=plan.delta,
        unit=privacy.unit,
        max_examples_per_unit=privacy.max_examples_per_unit,
        sampling_prob=size / units,
        iterations=plan.mechanism.iterations,
    )
    return dataclasses.replace(
        config,
        data=DataConfig(
            train=(str(store.path.absolute()),), test=TEST_SHARE, split_seed=config.split_seed
        ),
        privacy=spec,
        training=dataclasses.replace(config.training, expected_batch_size=size),
    )
