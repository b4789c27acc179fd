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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dpads._validate import nearest
from dpads.backend_packages import load_backend
from dpads.errors import ConfigError, RunError
from dpads.kernels.workers import available_cores
from dpads.run_files import read_json
from dpads.sweep_composition import SweepCost, composed_costs
from dpads.sweep_config import SweepConfig, Trial, load_sweep
from dpads.sweep_engine import OnEvent, run_trials
from dpads.sweep_folder import SWEEP, SWEEP_TOML, TRIALS, claim_folder, sole_user
from dpads.sweep_job import Engine, Job
from dpads.sweep_ledger import read_ledger
from dpads.sweep_progress import WRITING, SweepProgress
from dpads.sweep_results import RESULTS

if TYPE_CHECKING:
    import polars as pl

    from dpads.accounting.ledger import Ledger

ENGINES: Final = ("local", "ray")
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
        return read_ledger(self.path)

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
    first: Sequence[Mapping[str, Any]] | None = None,
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
        first: fields of the entries that the ledger of each trial's own run begins with; default: one that
            says that it is one of many.
        on_prepare: called with the number of examples of a log that are prepared so far.
        on_progress: called a few times a second.
        on_note: told what the caller did not decide, such as which cluster is used.

    Returns:
        The sweep. Trials that failed are in its results.

    Raises:
        ConfigError: the sweep or an argument is wrong, or `out` is of another sweep.
        MissingDependencyError: a trial's backend is not installed.
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
    for trial in config.trials:
        load_backend(trial.config)
    folder = Path(out)
    with sole_user(folder):
        try:
            claim_folder(folder, config)
            job = Job.begin(
                folder, config, workers, threads, engine, retry_failed, on_prepare, first
            )
            at = job.carry_out(_engine(engine, address, job, on_note), on_progress)
            result = Sweep(folder, config)
            if job.tasks or not (folder / REPORT).exists():
                if on_progress is not None:
                    on_progress(replace(at, doing=WRITING))
                result.report()
        except OSError as error:
            raise RunError(
                f"{folder}: the sweep cannot go on: {error}. What its trials have done is kept: mend it, and "
                "start the sweep again."
            ) from error
    return result


def _engine(
    engine: Engine, address: str | None, job: Job, on_note: Callable[[str], None]
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
