"""Sweeps: many trials on the same rows, each an ordinary run, and what they cost together.

DIR/
  sweep.toml        what was asked
  sweep.json        trials, time and cost so far
  store/            rows prepared once, where the base names logs
  ledger.jsonl      every trial, announced before it trains
  trials/0001/ ...  runs
  results.parquet   one row a trial
  report.html       the report, once all trials have ended
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import dpads
from dpads._validate import nearest
from dpads.accounting.ledger import Ledger
from dpads.config_toml import to_toml
from dpads.errors import ConfigError, RunError
from dpads.evaluation import HEADLINE_LOSS
from dpads.kernels.workers import available_cores
from dpads.record import LEDGER, is_run, now, partial_of, read_json, to_json, write_text
from dpads.sweep_composition import SweepCost, composed_costs
from dpads.sweep_config import SweepConfig, Trial, load_sweep
from dpads.sweep_engine import OnEvent, TrialEvent, run_trials
from dpads.sweep_folder import STORE, SWEEP, SWEEP_TOML, TRIALS, claim_folder, sole_user
from dpads.sweep_progress import SweepProgress, Tracker, work_of
from dpads.sweep_results import RESULTS, Results
from dpads.sweep_stores import open_stores
from dpads.sweep_trial import TrialOutcome, TrialTask, outcome_file, read_outcome

if TYPE_CHECKING:
    import polars as pl

Engine = Literal["local", "ray"]
ENGINES: Final = ("local", "ray")
FORMAT: Final = 1
REPORT: Final = "report.html"


class Sweep:
    """A sweep's folder: trials, their results and what they cost.

    `sweep` and `Sweep.open` make sweeps.

    Attributes:
        path: the folder.
        config: what was asked.
    """

    def __init__(self, path: Path, config: SweepConfig) -> None:
        self.path = path
        self.config = config

    def __repr__(self) -> str:
        """What it is, without a number from private rows."""
        return f"Sweep({str(self.path)!r}, trials={len(self.trials)})"

    @classmethod
    def open(cls, path: str | Path) -> Sweep:
        """Opens a sweep's folder, whole or not.

        Raises:
            ConfigError: the path is no sweep.
        """
        folder = Path(path)
        if not (folder / SWEEP_TOML).is_file():
            raise ConfigError(
                f"{path}: expected the folder of a sweep, with {SWEEP_TOML} in it. "
                "`dpads sweep SWEEP.toml --out DIR` makes one."
            )
        return cls(folder, load_sweep(folder / SWEEP_TOML))

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, whether they have run or not."""
        return self.config.trials

    @property
    def results(self) -> pl.DataFrame:
        """One row for each trial that has begun: settings, metrics with 95 % intervals, cost."""
        import polars as pl

        path = self.path / RESULTS
        if not path.is_file():
            raise RunError(f"{path}: missing, because no trial has ended. Start the sweep again.")
        return pl.read_parquet(path)

    @property
    def ledger(self) -> Ledger:
        """Every trial, announced before it trained."""
        path = self.path / LEDGER
        return Ledger.load(path) if path.exists() else Ledger()

    @property
    def costs(self) -> tuple[SweepCost, ...]:
        """What all private trials cost together, for each unit, relation and cap."""
        facts = read_json(self.path / SWEEP)
        if facts.get("cost_of") == self.ledger.head:
            return tuple(SweepCost(**item) for item in facts["cost"])
        return composed_costs(self.ledger)

    def folder_of(self, trial: str) -> Path:
        """The folder of a trial's run."""
        return self.path / TRIALS / trial

    def report(self) -> Path:
        """Writes report.html and the pictures beside it anew; the page's path.

        Raises:
            RunError: there are no results yet.
        """
        from dpads.sweep_report import write_report

        return write_report(self.path)


def sweep(
    source: str | Path | SweepConfig,
    *,
    out: str | Path | None = None,
    engine: Engine = "local",
    address: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    retry_failed: bool = False,
    on_prepare: Callable[[int], None] | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Sweep:
    """Runs the trials of a sweep that have not run yet.

    Args:
        source: a SWEEP.toml, or what `dpads.sweep_config.parse_sweep` made.
        out: the sweep's folder; default: sweeps/ and the name of the file. A sweep that was begun
            there goes on.
        engine: "local" for processes on this machine, or "ray".
        address: HOST:PORT of a Ray cluster; None for the one that Ray finds, or one on this machine.
        workers: how many trials run at a time; default: one for each core that this process may use.
        threads: of each trial; default: the cores over the workers.
        retry_failed: try trials again that failed. What trained and was lost is charged again.
        on_prepare: called with the number of examples of a log that are prepared so far.
        on_progress: called a few times a second.
        on_note: told what the caller did not decide, such as which cluster is used.

    Returns:
        The sweep. Trials that failed are in its results.

    Raises:
        ConfigError: the sweep or an argument is wrong, or `out` is of another sweep.
        RunError: another process runs the sweep, the engine cannot be reached, or the disk is full.

    Guarantees:
        - A trial is on the sweep's ledger before it trains, and once, however often the sweep is cut off
          and started again; what ended is not touched.
        - No two trials share keys of noise or sampling.
        - A trial that fails ends no other.
    """
    config = source if isinstance(source, SweepConfig) else load_sweep(source)
    if out is None:
        if isinstance(source, SweepConfig):
            raise ConfigError("Expected out, the folder of the sweep, got none.")
        out = Path("sweeps") / Path(source).stem
    if engine not in ENGINES:
        raise ConfigError(f"engine: unknown value {engine!r}." + nearest(str(engine), ENGINES))
    if address is not None and engine != "ray":
        raise ConfigError('Expected address with engine = "ray" alone, got engine = "local".')
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or value < 1):
            raise ConfigError(f"Expected {name} to be a positive integer, got {value!r}.")
    folder = Path(out)
    with sole_user(folder):
        try:
            claim_folder(folder, config)
            job = _Job.begin(folder, config, workers, threads, engine, retry_failed, on_prepare)
            job.carry_out(_engine(engine, address, job, on_note), on_progress)
            result = Sweep(folder, config)
            if job.tasks or not (folder / REPORT).exists():
                result.report()
        except OSError as error:
            raise RunError(
                f"{folder}: the sweep cannot go on: {error}. What its trials have done is kept: mend it, and "
                "start the sweep again."
            ) from error
    return result


def _engine(
    engine: Engine, address: str | None, job: _Job, on_note: Callable[[str], None]
) -> Callable[[OnEvent], object]:
    """Who runs the trials."""
    if engine == "ray":
        from dpads.sweep_ray import run_trials_on_ray

        return lambda on_event: run_trials_on_ray(
            job.tasks,
            folder=job.folder,
            address=address,
            workers=job.workers,
            on_event=on_event,
            on_note=on_note,
        )
    return lambda on_event: run_trials(
        job.tasks, workers=job.workers or available_cores(), on_event=on_event
    )


@dataclass
class _Job:
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
    ) -> _Job:
        """Checks everything that can be checked before a trial runs, and finds what is to be done."""
        facts = read_json(folder / SWEEP) if (folder / SWEEP).exists() else {}
        path = folder / LEDGER
        if path.exists():
            Ledger.load(path)
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
        tasks = [
            TrialTask(
                name=trial.name,
                config=to_toml(stores.config_of(trial)),
                folder=str(runs[trial.name]),
                ledger=str(path.absolute()),
                rows=config.rows,
                test_rows=stores.test_rows,
                threads=threads,
                retry=trial.name in failed,
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
    ) -> None:
        """Runs what is to be done; results are renewed after each trial."""
        todo = {task.name: self.work[task.name] for task in self.tasks}
        failed = sum(kept.status == "failed" for kept in self.outcomes.values())
        done = len(self.config.trials) - len(todo) - failed
        tracker = Tracker(todo, done, failed)
        results = Results(self.folder, self.config.trials)
        began = time.monotonic()
        self._note(0.0)

        def take(event: TrialEvent) -> None:
            tracker.take(event)
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
        finally:
            results.write(self.outcomes, running=frozenset())
            self._note(time.monotonic() - began)
        ledger = Sweep(self.folder, self.config).ledger
        costs = [cost.to_dict() for cost in composed_costs(ledger)]
        self._note(time.monotonic() - began, {"cost": costs, "cost_of": ledger.head})

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
