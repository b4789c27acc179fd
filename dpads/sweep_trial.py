"""One trial of a sweep: an ordinary run, announced on the sweep's ledger before it trains.

What a trial leaves beside its run's folder says how the last try ended:

    trials/0001/           the run, once it is whole
    trials/0001.partial/   what an interrupted or failed try left
    trials/0001.json       status, error, seconds, memory
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from dpads.config import parse_config
from dpads.errors import CheckpointError, DpadsError, RunError
from dpads.run_files import CHECKPOINTS, LEDGER, is_run, partial_of, to_json, write_text
from dpads.sweep_ledger import announce_trial

if TYPE_CHECKING:
    from dpads.config import Config
    from dpads.plan import Plan
    from dpads.run import Run
    from dpads.run_job import RunProgress
    from dpads.store import ExampleStore

Status = Literal["done", "failed", "interrupted"]
TRIALS_LOCK: Final = ".lock"
CHECKPOINT_SECONDS: Final = (
    60.0  # most trials take minutes: what an interruption costs should be less
)
PATIENCE: Final = (
    10.0  # seconds for a worker of an earlier start to notice that its sweep has ended
)
_PEAK: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What a worker is told; plain data.

    Attributes:
        name: of the trial.
        config: the text of its configuration, which names stores.
        folder: of its run; it does not exist yet.
        ledger: of the sweep; None keeps none.
        rows: what the training rows are: "private", "public" or "synthetic".
        test_rows: what the ledger calls the rows that metrics are computed on.
        threads: for training.
        retry: whether this is a new try of a trial that failed.
        first: fields of the entries that its run's own ledger begins with: that it is one of many.
    """

    name: str
    config: str
    folder: str
    ledger: str | None = None
    rows: str = "private"
    test_rows: str = "test"
    threads: int = 1
    retry: bool = False
    first: Sequence[Mapping[str, Any]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How a try of a trial ended.

    Attributes:
        name: of the trial.
        status: "done", "failed" or "interrupted".
        error: what went wrong.
        error_kind: the error's class.
        began: whether anything was read to train on: what was announced on the ledger is then spent.
        seconds: of training.
        wall_seconds: of everything.
        memory_bytes: the process's peak during the trial; None where the system does not tell.
        epsilon: accounted; None without noise.
    """

    name: str
    status: Status
    error: str | None = None
    error_kind: str | None = None
    began: bool = True
    seconds: float | None = None
    wall_seconds: float | None = None
    memory_bytes: int | None = None
    epsilon: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialOutcome:
        """Reads what `to_dict` wrote; keys of other versions are passed over."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


def outcome_file(folder: Path) -> Path:
    """Where it is kept how the last try of a trial ended."""
    return folder.with_name(f"{folder.name}.json")


def read_outcome(folder: Path) -> TrialOutcome | None:
    """How the last try of a trial ended; None where nobody wrote it down, as after a crash."""
    try:
        return TrialOutcome.from_dict(json.loads(outcome_file(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def run_trial(
    task: TrialTask, on_progress: Callable[[RunProgress], None] | None = None
) -> TrialOutcome:
    """Trains one trial, or goes on with what an earlier try of it left.

    Args:
        task: what to do.
        on_progress: called a few times a second.

    Returns:
        How it ended: errors that dpads raises on purpose, a full disk and a lack of memory are outcomes.

    Guarantees:
        - The sweep's ledger has the trial before it trains; once, unless it trained anew after its
          training had begun and was lost.
    """
    folder = Path(task.folder)
    began = time.monotonic()
    clock = _Clock(on_progress)
    peak = _reset_peak()
    error: Exception | None = None
    run = None
    try:
        with _alone(folder):
            run = _train(task, folder, clock)
    except (DpadsError, OSError, MemoryError) as caught:
        error = caught
    seconds, memory = clock.seconds, _peak_memory() if peak else None
    earlier = read_outcome(folder)
    if seconds is None and earlier is not None:  # nothing was left to train
        seconds, memory = earlier.seconds, earlier.memory_bytes
    outcome = TrialOutcome(
        name=task.name,
        status="failed" if run is None else "done",
        error=None if error is None else _message(error),
        error_kind=None if error is None else type(error).__name__,
        began=run is not None or partial_of(folder).exists(),
        seconds=seconds,
        wall_seconds=time.monotonic() - began,
        memory_bytes=memory,
        epsilon=run.plan.loss.epsilon if run is not None and run.plan.is_private else None,
    )
    with suppress(OSError):  # a full disk: the caller has it all the same
        write_text(outcome_file(folder), to_json(outcome.to_dict()))
    return outcome


def _train(task: TrialTask, folder: Path, clock: _Clock) -> Run:
    """The run itself."""
    from dpads.run import Run
    from dpads.run_training import train_config
    from dpads.training_settings import Performance

    if is_run(folder):
        return Run.load(folder)
    config = parse_config(tomllib.loads(task.config), base=Path())
    anew = _clear_the_way(task, folder)

    def announce(plan: Plan) -> None:
        _check_room(config, plan)  # training checks too, but what cannot begin need not be charged
        if task.ledger is not None:
            announce_trial(
                Path(task.ledger),
                task.name,
                plan,
                rows=task.rows,
                test_rows=task.test_rows,
                anew=anew,
            )
        clock.start()

    test = config.data.test
    return train_config(
        config,
        store=_opened(config.data.train[0]),
        test=_opened(test[0]) if isinstance(test, tuple) else None,
        performance=Performance(threads=task.threads, checkpoint_seconds=CHECKPOINT_SECONDS),
        out=folder,
        resume=partial_of(folder).exists(),
        first=task.first,
        on_plan=announce,
        on_progress=clock.watch,
    )


def _check_room(config: Config, plan: Plan) -> None:
    """Refuses a model that will not fit into memory."""
    from dpads.resources import check_memory, estimate_memory

    rows = plan.mechanism.expected_batch_size * plan.privacy.rows_per_unit
    check_memory(
        estimate_memory(
            config.model,
            config.schema,
            expected_batch_size=rows,
            table_noise=config.training.table_noise,
            backend=config.training.backend,
            counted=plan.release("selection") is not None,
        )
    )


def _clear_the_way(task: TrialTask, folder: Path) -> bool:
    """Leaves a partial run that can be resumed, or none; tells whether training starts over.

    It does where an earlier try may have trained and nothing of it is left: its privacy is spent, and
    this try is another charge.
    """
    partial = partial_of(folder)
    earlier = read_outcome(folder)
    if partial.exists() and not _has_begun(task, partial):
        # Cut off before anything was read to train on, unless somebody took the ledger away: it is begun
        # before the sweep's ledger has the trial.
        taken = bool(task.first) or (partial / CHECKPOINTS).exists()
        taken &= not (partial / LEDGER).exists()
        shutil.rmtree(partial)
        return taken
    if partial.exists():
        lost = earlier is not None and earlier.error_kind == CheckpointError.__name__
        lost |= not [path for path in partial.glob(f"{CHECKPOINTS}/*-*") if not path.suffix]
        if not (task.retry and lost):
            return False
        number = 1
        while partial.with_name(f"{folder.name}.lost-{number}").exists():
            number += 1
        partial.rename(partial.with_name(f"{folder.name}.lost-{number}"))
        return True
    return earlier is None or earlier.began


def _has_begun(task: TrialTask, partial: Path) -> bool:
    """Whether a partial run may have read rows to train on."""
    from dpads.accounting.ledger import Ledger
    from dpads.run_training import has_begun

    path = partial / LEDGER
    return path.exists() and has_begun(Ledger.load(path), task.first)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a trial: no two processes may train it at a time.

    Raises:
        RunError: another process does, and goes on doing so.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = int.from_bytes(hashlib.sha256(folder.name.encode()).digest()[:7])
    with folder.with_name(TRIALS_LOCK).open("ab") as file:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > until:
                    raise RunError(
                        f"{folder}: another process is training this trial. Wait for it, or end it."
                    ) from None
            time.sleep(0.05)
        yield


class _Clock:
    """Measures training: from the plan to the last iteration."""

    def __init__(self, on_progress: Callable[[RunProgress], None] | None) -> None:
        self._on_progress = on_progress
        self._began: float | None = None
        self.seconds: float | None = None

    def start(self) -> None:
        """Training begins."""
        self._began = time.monotonic()

    def watch(self, at: RunProgress) -> None:
        """Passes progress on."""
        if self._began is not None:
            self.seconds = time.monotonic() - self._began
        if self._on_progress is not None:
            self._on_progress(at)


_stores: dict[str, ExampleStore] = {}


def _opened(path: str) -> ExampleStore:
    """A store, opened and checked once in the life of a process: its trials share the mapping."""
    from dpads.store import ExampleStore

    if path not in _stores:
        _stores[path] = ExampleStore.open(path)
    return _stores[path]


def _message(error: Exception) -> str:
    """What went wrong; Python's own errors get their class in front."""
    if isinstance(error, DpadsError):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _reset_peak() -> bool:
    """Sets the peak of this process's memory to the present; whether that could be done."""
    try:
        _PEAK.write_text("5")
    except OSError:
        return False
    return True


def _peak_memory() -> int | None:
    """Peak of resident memory in bytes."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return None
