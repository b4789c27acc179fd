"""One start of a sweep: what is to be done, and what is written down while it is done."""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import dpads
from dpads.config_toml import to_toml
from dpads.errors import ConfigError, DpadsError
from dpads.evaluation import HEADLINE_LOSS
from dpads.kernels.workers import available_cores
from dpads.run_files import LEDGER, is_run, now, partial_of, read_json, sha256, to_json, write_text
from dpads.sweep_composition import composed_costs
from dpads.sweep_config import SweepConfig
from dpads.sweep_engine import OnEvent, TrialEvent
from dpads.sweep_folder import STORE, SWEEP, SWEEP_TOML, TRIALS
from dpads.sweep_ledger import one_of, read_ledger
from dpads.sweep_progress import ADDING_UP, SweepProgress, Tracker, work_of
from dpads.sweep_results import Results
from dpads.sweep_stores import open_stores
from dpads.sweep_trial import TrialOutcome, TrialTask, outcome_file, read_outcome

Engine = Literal["local", "ray"]
FORMAT: Final = 1


@dataclass
class Job:
    """One start of a sweep."""

    folder: Path
    config: SweepConfig
    tasks: Sequence[TrialTask]
    work: Mapping[str, float]
    outcomes: dict[str, TrialOutcome]
    workers: int | None
    threads: int
    facts: Mapping[str, Any]

    @classmethod
    def begin(
        cls,
        folder: Path,
        config: SweepConfig,
        workers: int | None,
        threads: int | None,
        engine: Engine,
        retry_failed: bool,
        on_prepare: Callable[[int], None] | None,
        first: Sequence[Mapping[str, Any]] | None,
    ) -> Job:
        """Checks everything that can be checked before a trial runs, and finds what is to be done."""
        facts = read_json(folder / SWEEP) if (folder / SWEEP).exists() else {}
        read_ledger(folder)
        stores = open_stores(config, folder / STORE, on_prepare)
        work = {
            trial.name: work_of(trial.config, stores.iterations_of(trial))
            for trial in config.trials
        }
        runs = {trial.name: folder.absolute() / TRIALS / trial.name for trial in config.trials}
        outcomes = {name: kept for name, run in runs.items() if (kept := read_outcome(run))}
        failed = {
            name
            for name, kept in outcomes.items()
            if kept.status == "failed" and not is_run(runs[name])
        }
        begun = any(partial_of(run).exists() for run in runs.values())
        workers, threads = _shares(
            workers, threads, engine, len(runs), facts.get("threads") if begun else None
        )
        todo = [
            trial
            for trial in config.trials
            if not is_run(runs[trial.name]) and (retry_failed or trial.name not in failed)
        ]
        todo.sort(key=lambda trial: -work[trial.name])  # so that no long one is left for the end
        if first is None:
            asked = sha256((folder / SWEEP_TOML).read_bytes())
            first = one_of(len(config.trials), asked, config.rows)
        tasks = [
            TrialTask(
                name=trial.name,
                config=to_toml(stores.config_of(trial)),
                folder=str(runs[trial.name]),
                ledger=str(folder.absolute() / LEDGER),
                rows=config.rows,
                test_rows=stores.test_rows,
                threads=threads,
                retry=trial.name in failed,
                first=first,
            )
            for trial in todo
        ]
        for task in tasks:  # what ended before is not how this try ends
            outcomes.pop(task.name, None)
        return cls(folder, config, tasks, work, outcomes, workers, threads, facts)

    def carry_out(
        self,
        engine: Callable[[OnEvent], object],
        on_progress: Callable[[SweepProgress], None] | None,
    ) -> SweepProgress:
        """Runs what is to be done; results are renewed after each trial. Tells where the sweep ended."""
        todo = {task.name: self.work[task.name] for task in self.tasks}
        failed = sum(kept.status == "failed" for kept in self.outcomes.values())
        done = len(self.config.trials) - len(todo) - failed
        tracker = Tracker(todo, done, failed)
        results = Results(self.folder, self.config.trials)
        began = time.monotonic()
        self._note(0.0)

        ready = threading.Thread(target=_get_ready, args=(self.folder,), daemon=True)

        def take(event: TrialEvent) -> None:
            tracker.take(event)
            # A worker has nothing left to do: its core gets the report's libraries and the cost ready.
            if event.outcome is not None and not tracker.waiting and not ready.ident:
                ready.start()
            if event.outcome is not None:
                self._keep(event.outcome)
                results.write(self.outcomes, running=tracker.running)
                self._note(time.monotonic() - began)
            if on_progress is not None:
                on_progress(tracker.progress)

        if on_progress is not None:
            on_progress(tracker.progress)
        try:
            if self.tasks:
                engine(take)
                if on_progress is not None:
                    on_progress(replace(tracker.progress, doing=ADDING_UP))
        finally:
            if ready.ident:
                ready.join()
            results.write(self.outcomes, running=frozenset())
            self._note(time.monotonic() - began)
        ledger = read_ledger(self.folder)
        costs = [cost.to_dict() for cost in composed_costs(ledger)]
        self._note(time.monotonic() - began, {"cost": costs, "cost_of": ledger.head})
        return tracker.progress

    def _keep(self, outcome: TrialOutcome) -> None:
        """Keeps how a trial ended; a worker that died could not."""
        self.outcomes[outcome.name] = outcome
        if outcome.error_kind == "worker":
            run = self.folder / TRIALS / outcome.name
            with suppress(OSError):
                write_text(outcome_file(run), to_json(outcome.to_dict()))

    def _note(self, seconds: float, more: Mapping[str, Any] | None = None) -> None:
        """Renews sweep.json."""
        task = self.config.base.schema.task
        document = {
            "format": FORMAT,
            "dpads_version": dpads.__version__,
            "created_at": self.facts.get("created_at", now()),
            "task": task,
            "loss": HEADLINE_LOSS[task],
            "rows": self.config.rows,
            "axes": list(self.config.axes),
            "trials": [
                {
                    "trial": trial.name,
                    "settings": {key: _without_infinity(v) for key, v in trial.settings.items()},
                    "reference": trial.reference,
                }
                for trial in self.config.trials
            ],
            "seconds": float(self.facts.get("seconds", 0.0)) + seconds,
            "workers": self.workers,
            "threads": self.threads,
            **(more or {}),
        }
        write_text(self.folder / SWEEP, to_json(document))


def _get_ready(folder: Path) -> None:
    """Loads and computes what the end of a sweep needs, while its last trials train."""
    with suppress(ImportError):
        for name in ("dpads.sweep_report", "altair", "vl_convert"):
            importlib.import_module(name)
    with suppress(DpadsError):
        composed_costs(read_ledger(folder))  # which keeps what it computed


def _without_infinity(value: Any) -> Any:
    """JSON has no infinity."""
    return "inf" if value == math.inf else value


def _shares(
    workers: int | None, threads: int | None, engine: Engine, trials: int, before: int | None
) -> tuple[int | None, int]:
    """How many trials at a time, and threads for each.

    Args:
        workers: as asked.
        threads: as asked.
        engine: on a cluster the number of workers is the cluster's own.
        trials: how many there are.
        before: threads of trials that were interrupted: their numbers depend on them.
    """
    if before is not None:
        if threads is not None and threads != before:
            raise ConfigError(
                f"Expected threads = {before}, with which interrupted trials were begun, got {threads}: "
                "their sums depend on it. Leave --threads out."
            )
        threads = before
    if engine == "ray":
        return workers, threads or 1
    cores = available_cores()
    if workers is None:
        workers = min(trials, max(1, cores // (threads or 1)))
    if threads is None:
        threads = max(1, cores // workers)
    if threads > cores:
        raise ConfigError(
            f"Expected threads to be at most {cores}, the cores that this process may use, got {threads}."
        )
    return workers, threads
