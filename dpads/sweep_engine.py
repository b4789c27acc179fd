"""Trials side by side on this machine: persistent worker processes, one trial at a time each.

Workers are new interpreters, not forks, and talk in lines of JSON: tasks come on standard input, events
leave on a pipe. A worker whose standard input ends stops at once, so that nothing outlives its sweep.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

from dpads.errors import RunError
from dpads.run_files import partial_of
from dpads.sweep_trial import TrialOutcome, TrialTask

# A worker's libraries may use so many threads. OPENBLAS_NUM_THREADS stays as it is: it is part of a run's
# identity, and OMP_NUM_THREADS limits OpenBLAS too.
THREAD_LIMITS: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
GRACE_SECONDS: Final = 5.0  # for workers to stop
_CODE: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dpads.sweep_worker import main; main(int(sys.argv[2]))"
)
_LOG_BYTES: Final = 20_000
_RAISED: Final = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception|Interrupt|Exit))\b", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class TrialEvent:
    """What happened to a trial; nothing in it is computed from private rows.

    Attributes:
        trial: its name.
        kind: "started", "progress" or "finished".
        iteration: iterations done.
        iterations: iterations planned.
        outcome: how it ended, of "finished" alone.
    """

    trial: str
    kind: Literal["started", "progress", "finished"]
    iteration: int = 0
    iterations: int = 0
    outcome: TrialOutcome | None = None


OnEvent = Callable[[TrialEvent], None]


def run_trials(
    tasks: Sequence[TrialTask], *, workers: int, on_event: OnEvent = lambda _: None
) -> list[TrialOutcome]:
    """Runs trials in worker processes, in the order given as workers become free.

    Args:
        tasks: what to do; each says how many threads it takes.
        workers: how many trials run at a time.
        on_event: called when a trial starts, a few times a second while it trains, and when it ends.

    Returns:
        How each ended, in the order of the tasks.

    Raises:
        RunError: no worker can be started.

    Guarantees:
        - A worker that dies fails its trial alone, and another takes its place.
        - No worker is left behind, however this ends.
    """
    waiting = deque(tasks)
    outcomes: dict[str, TrialOutcome] = {}
    running: list[_Worker] = []

    def take_up(worker: _Worker) -> None:
        """Gives a worker the next trial, or its leave."""
        if waiting:
            worker.give(waiting.popleft())
            on_event(TrialEvent(trial=worker.trial, kind="started"))
        else:
            selector.unregister(worker.events)
            running.remove(worker)
            worker.stop()

    def hire() -> None:
        """One more worker."""
        worker = _Worker(waiting[0].threads)
        running.append(worker)
        selector.register(worker.events, selectors.EVENT_READ, worker)
        take_up(worker)

    def finish(outcome: TrialOutcome) -> None:
        """A trial has ended."""
        outcomes[outcome.name] = outcome
        on_event(TrialEvent(trial=outcome.name, kind="finished", outcome=outcome))

    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(min(workers, len(tasks))):
                hire()
            while running:
                for key, _ in selector.select():
                    worker: _Worker = key.data
                    messages, alive = worker.read()
                    for message in messages:
                        if message["event"] == "finished":
                            finish(TrialOutcome.from_dict(message["outcome"]))
                            take_up(worker)
                        else:
                            on_event(
                                TrialEvent(trial=worker.trial, kind="progress", **message["at"])
                            )
                    if not alive and worker in running:
                        selector.unregister(worker.events)
                        running.remove(worker)
                        finish(worker.obituary())
                        if waiting:
                            hire()
        finally:
            for worker in running:
                worker.dismiss()
            for worker in running:
                worker.stop()
    return [outcomes[task.name] for task in tasks]


class _Worker:
    """One worker process, seen from the sweep.

    Args:
        threads: for each trial.
    """

    def __init__(self, threads: int) -> None:
        self.events, theirs = os.pipe()
        os.set_blocking(self.events, False)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._rest = b""
        self._ready = False
        self._since = 0
        self._task: TrialTask | None = None
        environment = {**os.environ, **dict.fromkeys(THREAD_LIMITS, str(threads))}
        command = [sys.executable, "-X", "faulthandler", "-c", _CODE]
        try:
            self._process = subprocess.Popen(
                [*command, json.dumps(sys.path), str(theirs)],
                stdin=subprocess.PIPE,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=(theirs,),
                env=environment,
            )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(theirs)

    @property
    def trial(self) -> str:
        """The name of its trial."""
        assert self._task is not None
        return self._task.name

    def give(self, task: TrialTask) -> None:
        """Hands it a trial; one that has died meanwhile is noticed at the end of its events."""
        self._task = task
        self._since = self._errors.seek(0, os.SEEK_END)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task.to_dict()).encode() + b"\n")
            self._process.stdin.flush()

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Events that have come, and whether more may."""
        data = os.read(self.events, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self._ready |= bool(messages)
        return [message for message in messages if message["event"] != "ready"], bool(data)

    def obituary(self) -> TrialOutcome:
        """Its trial's outcome, after it died."""
        code = self._process.wait()
        said = self._said()
        task = self._task
        assert task is not None
        self.stop()
        if not self._ready:
            raise RunError(
                f"No worker process could be started (exit code {code}):\n{said}".rstrip()
            )
        folder = Path(task.folder)
        log = folder.with_name(f"{folder.name}.log")
        with suppress(OSError):
            log.touch(mode=0o600)
            log.write_text(said, encoding="utf-8")
        raised = _RAISED.findall(said)
        reason = f"its worker process ended with exit code {code}"
        if code < 0:
            reason = f"its worker process was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                reason += ", as systems do where memory is short"
        elif raised:
            reason += f" ({raised[-1]})"
        return TrialOutcome(
            name=task.name,
            status="failed",
            error=f"{reason}. What it printed is in {log.name}.",
            error_kind="worker",
            began=partial_of(folder).exists(),
        )

    def _said(self) -> str:
        """What it printed during its trial, the last of it."""
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._since, end - _LOG_BYTES))
        return self._errors.read().decode(errors="replace")

    def dismiss(self) -> None:
        """Tells it to stop; it does so in the middle of whatever it does."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def stop(self) -> None:
        """Waits for its end, and does not wait for ever."""
        self.dismiss()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        """Closes what is open here."""
        if not self._errors.closed:
            os.close(self.events)
            self._errors.close()
