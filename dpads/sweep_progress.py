"""Where a sweep stands: trials done, running and failed, and the time that is left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dpads.config import Config
from dpads.sweep_engine import TrialEvent

# What is done once all trials have ended.
ADDING_UP: Final = "adding up what all trials cost"
WRITING: Final = "writing the report"

# Rough costs on one core, to tell long trials from short ones.
_ITERATION_SECONDS: Final = 1e-3
_PLACE_SECONDS: Final = 1e-7  # one place where an example reads a row
_OPERATION_SECONDS: Final = 5e-11  # of the tower
_TRIAL_SECONDS: Final = 2.0  # calibration, statement, files
_SETTLED_SECONDS: Final = 2.0  # before which nobody can tell how long it will take,
_SETTLED_SHARE: Final = (
    0.03  # nor before this much of the work is done: workers load and compile first
)


@dataclass(frozen=True)
class TrialProgress:
    """Where one running trial stands.

    Attributes:
        trial: its name.
        iteration: iterations done.
        iterations: iterations planned; 0 until it trains.
    """

    trial: str
    iteration: int = 0
    iterations: int = 0


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep stands; nothing in it is computed from private rows.

    Attributes:
        done: trials that are whole.
        failed: trials that failed.
        total: all trials.
        running: trials under way.
        seconds_left: None until it can be told.
        doing: what is done once all trials have ended; None before.
    """

    done: int
    failed: int
    total: int
    running: tuple[TrialProgress, ...]
    seconds_left: float | None
    doing: str | None = None


def work_of(config: Config, iterations: int) -> float:
    """About how many seconds a trial takes on one core; good for comparisons alone.

    Args:
        config: of the trial.
        iterations: how many it does.
    """
    rows = config.training.expected_batch_size * config.privacy.rows_per_unit
    model: Mapping[str, Any] = config.model.to_dict()
    dim = model.get("embedding_dim", 1)
    dim = dim if isinstance(dim, int) else 16
    fields = len(config.schema.fields)
    widths = [fields * dim, *model.get("hidden", []), 1]
    operations = 6 * sum(a * b for a, b in itertools.pairwise(widths))
    example = fields * _PLACE_SECONDS + float(operations) * _OPERATION_SECONDS
    return _TRIAL_SECONDS + iterations * (_ITERATION_SECONDS + rows * example)


class Tracker:
    """Follows trials by their events.

    Args:
        work: of the trials that are to be done, by name.
        done: trials that are whole already.
        failed: trials that failed already and are left alone.
    """

    def __init__(self, work: Mapping[str, float], done: int, failed: int) -> None:
        self._work = work
        self._done = done
        self._failed = failed
        self._total = len(work) + done + failed
        self._running: dict[str, TrialProgress] = {}
        self._ended = 0.0
        self._began = time.monotonic()

    @property
    def running(self) -> frozenset[str]:
        """Names of trials under way."""
        return frozenset(self._running)

    @property
    def waiting(self) -> int:
        """How many trials have not begun."""
        return self._total - self._done - self._failed - len(self._running)

    def take(self, event: TrialEvent) -> None:
        """Takes note of an event."""
        if event.kind == "finished":
            self._running.pop(event.trial, None)
            self._ended += self._work[event.trial]
            done = event.outcome is not None and event.outcome.status == "done"
            self._done, self._failed = self._done + done, self._failed + (not done)
        else:
            at = TrialProgress(event.trial, event.iteration, event.iterations)
            self._running[event.trial] = at

    @property
    def progress(self) -> SweepProgress:
        """Where the sweep stands."""
        covered = self._ended + sum(
            self._work[at.trial] * at.iteration / at.iterations
            for at in self._running.values()
            if at.iterations
        )
        seconds = time.monotonic() - self._began
        left = None
        total = sum(self._work.values())
        if covered > _SETTLED_SHARE * total and seconds >= _SETTLED_SECONDS:
            left = seconds * (total - covered) / covered
        running = tuple(self._running[name] for name in sorted(self._running))
        return SweepProgress(self._done, self._failed, self._total, running, left)
