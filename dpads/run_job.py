"""One training run: reference, private training, metrics and files; what an interrupted run did is kept."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpads import run_files as files
from dpads.accounting.ledger import Ledger
from dpads.config import Config
from dpads.errors import CheckpointError
from dpads.evaluation import Metrics, evaluate_outputs, no_metrics, relative_increase
from dpads.hosts import Hosts
from dpads.models.base import Model
from dpads.plan import Plan
from dpads.record import RunRecord, describe_model, parameters_of, versions
from dpads.run import Run, note_evaluation
from dpads.run_data import RunRows, resolve_plan
from dpads.training import Performance, Progress, RowProgress, Trainer, TrainingSettings
from dpads.training_start import StartModel

# What the ledger holds once a run's keys were used.
BEGUN = ("training", "dp_count", "selection")


@dataclass(frozen=True)
class RunProgress:
    """Where a run stands; nothing in it is computed from private rows.

    Attributes:
        stage: "reference" (without noise) or "training".
        iteration: iterations done.
        iterations: iterations planned.
        examples_per_second: expected batch size over the time per iteration.
        seconds_left: of this stage, at that speed.
        epsilon_spent: an upper bound so far; None where the stage promises nothing.
    """

    stage: Literal["reference", "training"]
    iteration: int
    iterations: int
    examples_per_second: float
    seconds_left: float
    epsilon_spent: float | None


def settings_of(config: Config) -> TrainingSettings:
    """The training settings of a configuration."""
    training = config.training
    return TrainingSettings(
        backend=training.backend,
        table_noise=training.table_noise,
        table_optimizer=training.table_optimizer,
        tower_optimizer=training.tower_optimizer,
        init_seed=training.init_seed,
        noise_seed=training.noise_seed,
        positive_weight=training.positive_weight,
        negative_weight=training.negative_weight,
        prior=config.prior,
        recalibration=config.recalibration,
        selection=config.selection,
    )


def record_of(
    config: Config,
    rows: RunRows,
    plan: Plan,
    model: Model,
    performance: Performance,
    *,
    executed: int,
    replayed: int | None,
    reference: bool,
) -> RunRecord:
    """How a run of a configuration came about, now that its model is there."""
    human = dataclasses.asdict(config.statement)
    held_out = rows.test is not None and rows.test_rows != "train_and_test"
    return RunRecord(
        created_at=files.now(),
        plan=json.loads(plan.to_json()),
        settings=settings_of(config).to_dict(),
        performance=dataclasses.asdict(performance),
        model=config.model.to_dict(),
        schema=config.schema.to_dict(),
        train_fingerprint=rows.train.fingerprint,
        train_store=rows.train.whole_fingerprint,
        test_fingerprint=rows.test.fingerprint if rows.test is not None and held_out else None,
        executed=executed,
        replayed=replayed,
        reference=reference,
        artifacts={
            files.PARAMETERS: files.sha256(*parameters_of(model)),
            files.MODEL: files.sha256(describe_model(model).encode()),
        },
        statement={key: value for key, value in human.items() if value is not None},
        versions=versions(config.training.backend),
    )


def declare_upstream(ledger: Ledger, config: Config) -> None:
    """Puts on a ledger what happened to the rows before, as the configuration says it; each item once."""
    declared: list[tuple[str, dict[str, str]]] = []
    if config.statement.upstream is not None:
        declared.append((config.statement.upstream, {}))
    kept = config.schema.negatives_kept
    if kept < 1.0:
        text = (
            f"Negatives were left out before: a share of {kept:g} of them was kept, as the schema "
            "declares. Predictions are corrected for it; the guarantee is about the rows that stayed."
        )
        declared.append((text, {"declared_in": "schema"}))
    known = {entry.description for entry in ledger.entries if entry.kind == "upstream"}
    for text, details in declared:
        if text not in known:
            ledger.append(
                kind="upstream",
                description=text,
                rows="train",
                treatment="not_covered",
                details=details,
            )


@dataclass(frozen=True)
class Job:
    """One training run's ingredients."""

    config: Config
    rows: RunRows
    start: StartModel | None
    performance: Performance
    on_progress: Callable[[RunProgress], None] | None
    on_rows: Callable[[RowProgress], None] | None
    on_statement: Callable[[int, int], None] | None
    hosts: Hosts

    def carry_out(self, ledger: Ledger, folder: Path | None) -> Run:
        """Reference, private training, metrics, files; what an interrupted run did is kept."""
        declare_upstream(ledger, self.config)
        reference = self._reference_metrics(ledger, folder) if self._wants_reference else None
        trainer = self._trainer(ledger, folder)
        trainer.run(self._watch("training"))
        results = self._results(trainer.model, ledger, reference)
        run = Run(
            model=trainer.model,
            plan=self.rows.plan,
            record=self._record(trainer),
            config=self.config,
            ledger=ledger,
            metrics=results,
        )
        if folder is not None:
            run.write(folder, self.on_statement)
            trainer.discard_checkpoints()
        return run

    @property
    def _wants_reference(self) -> bool:
        """Whether a reference is trained."""
        return self.config.training.reference

    @property
    def _settings(self) -> TrainingSettings:
        """The settings of the private training."""
        return settings_of(self.config)

    def _trainer(self, ledger: Ledger, folder: Path | None) -> Trainer:
        """The private trainer, new or from its checkpoint."""
        checkpoints = None if folder is None else folder / files.CHECKPOINTS
        rows, model, settings = self.rows, self.config.model, self._settings
        kept = checkpoints is not None and checkpoints.is_dir()
        if self.hosts.of_first(b"kept" if kept else b""):
            return Trainer.resume(
                checkpoints,
                rows.train,
                model,
                rows.plan,
                settings,
                self.performance,
                ledger,
                self.on_rows,
                self.start,
            )
        if any(entry.kind in BEGUN for entry in ledger.entries):
            raise CheckpointError(
                f"{checkpoints}: missing, although training began. Its privacy is spent and its model "
                "lost; train anew under another --out."
            )
        return Trainer(
            rows.train,
            model,
            rows.plan,
            settings,
            self.performance,
            ledger,
            checkpoints,
            self.on_rows,
            self.start,
        )

    def _reference_metrics(self, ledger: Ledger, folder: Path | None) -> dict[str, Any]:
        """Trains without noise and clipping and computes its test metrics.

        The ledger says so first: a model without noise on private rows is covered by nothing.
        """
        kept = None if folder is None else folder / files.REFERENCE
        done = None if kept is None or not kept.is_file() else files.read_json(kept)
        if known := json.loads(self.hosts.of_first(json.dumps(done).encode())):
            return dict(known)
        without = dataclasses.replace(self.config.privacy, epsilon=None, noise_multiplier=0.0)
        own = self.config.reference
        trainer = Trainer(
            self.rows.train,
            self.config.model,
            resolve_plan(self.config, without, math.inf, self.rows.units),
            dataclasses.replace(
                self._settings,
                table_optimizer=own.table_optimizer,
                tower_optimizer=own.tower_optimizer,
            ),
            self.performance,
            Ledger(),
            on_rows=self.on_rows,
            start=self.start,
        )
        ledger.append(
            kind="reference",
            description="A reference model was trained without noise and clipping on train rows",
            rows="train",
            treatment="not_covered",
        )
        trainer.run(self._watch("reference"))
        result = self._evaluate(trainer.model, ledger)[0].to_dict()
        if kept is not None:
            files.write_text(kept, files.to_json(result))
        return result

    def _evaluate(self, model: Model, ledger: Ledger) -> list[Metrics]:
        """Exact metrics on the test rows, after the ledger says so; uncalibrated ones second, if any."""
        if self.rows.test is None:
            return [no_metrics(self.config.schema.task, "no test rows were given")]
        outputs = [model.output]
        if model.output.calibration is not None:
            outputs.append(dataclasses.replace(model.output, calibration=None))
        note_evaluation(ledger, self.rows.test_rows)
        return evaluate_outputs(model, self.rows.test, outputs)

    def _results(
        self, model: Model, ledger: Ledger, reference: dict[str, Any] | None
    ) -> dict[str, Any]:
        """What metrics.json holds."""
        own, *before = self._evaluate(model, ledger)
        results = own.to_dict()
        if before:
            results["before_recalibration"] = before[0].to_dict()
        if reference is None:
            return results
        increase = relative_increase(self.config.schema.task, own, reference)
        return {**results, "reference": reference, "relative_increase": increase}

    def _record(self, trainer: Trainer) -> RunRecord:
        """How the run came about."""
        return record_of(
            self.config,
            self.rows,
            self.rows.plan,
            trainer.model,
            self.performance,
            executed=trainer.executed,
            replayed=trainer.replayed,
            reference=self._wants_reference,
        )

    def _watch(self, stage: Literal["reference", "training"]) -> Callable[[Progress], None] | None:
        """Passes the trainer's progress on, with the privacy loss so far."""
        if self.on_progress is None:
            return None
        report = self.on_progress
        promises = stage == "training" and self.rows.plan.is_private

        def watch(at: Progress) -> None:
            spent = self.rows.plan.epsilon_spent(at.iteration) if promises else None
            report(
                RunProgress(
                    stage,
                    at.iteration,
                    at.iterations,
                    at.examples_per_second,
                    at.seconds_left,
                    spent,
                )
            )

        return watch
