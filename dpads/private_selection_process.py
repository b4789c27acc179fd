"""The process that trains candidates of a private selection, as the selection sees it.

What it trains is in `private_selection_worker`. It has no standard output or error. What it ends with is
the score, that the machine stopped the work, or nothing: then it failed, unless it was killed, after which
it is started once more and goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from dpads.errors import RunError
from dpads.private_score import WORST
from dpads.private_selection_worker import STOPPED, CandidateTask

WATCH_SECONDS: Final = 0.5
PROGRAM: Final = "from dpads.private_selection_worker import serve; serve()"
STARTS: Final = 2  # of one candidate; the second goes on from what the first left, to the bit
ENDING_SECONDS: Final = 10.0  # for a process whose output has ended


class Watch:
    """Tells at even times how long the work has taken: when candidates begin and end does not show.

    Args:
        on_progress: called with seconds.
    """

    def __init__(self, on_progress: Callable[[float], None] | None) -> None:
        self._on_progress = on_progress
        self._began, self._told = time.monotonic(), 0

    def wait(self) -> float:
        """Tells if it is time; returns the seconds until it is time again."""
        seconds = time.monotonic() - self._began
        due = int(seconds / WATCH_SECONDS)
        if due > self._told:
            self._told = due
            if self._on_progress is not None:
                self._on_progress(due * WATCH_SECONDS)
        return (due + 1) * WATCH_SECONDS - seconds


class CandidateProcess:
    """A process that trains candidates one after another; one that fails by itself has the worst score.

    Args:
        lock: descriptor of the selection's lock, which the process holds too while it lives.
        wait: says how long to wait before it is called again, as `Watch.wait` does.
    """

    def __init__(self, lock: int, wait: Callable[[], float]) -> None:
        self._lock, self._wait = lock, wait
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> CandidateProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def __call__(self, task: CandidateTask) -> float:
        """Trains and scores a candidate.

        Returns:
            Its score; the worst where it failed, or was killed twice.

        Raises:
            RunError: the machine stopped the work.
        """
        for _ in range(STARTS):
            answer = self._answer(task)
            if answer.endswith("\n"):
                return _score_in(json.loads(answer))
            if not self._was_killed():  # it failed, and would again
                break
        return WORST

    def _answer(self, task: CandidateTask) -> str:
        """The line with which the process answers; not whole where it ended before."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._started()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it crashed
            process.stdin.write(json.dumps(dataclasses.asdict(task)) + "\n")
            process.stdin.flush()
            while not select.select([process.stdout], [], [], self._wait())[0]:
                pass
            return process.stdout.readline()
        return ""

    def _was_killed(self) -> bool:
        """Whether a signal ended the process, as when memory runs out or somebody ends it by name."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_SECONDS)
        code = self._process.poll()
        self._end()
        return code is not None and code < 0

    def _started(self) -> subprocess.Popen[str]:
        """A new process, which sees the same library as this one, and no Ctrl-C of this one's terminal."""
        paths = os.pathsep.join(path for path in sys.path if path)
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            pass_fds=(self._lock,),
            start_new_session=True,
        )

    def _end(self) -> None:
        """Ends the process at once; what it was at goes on from its checkpoint."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _score_in(answer: dict[str, Any]) -> float:
    """The score of an answer."""
    if STOPPED in answer:
        raise RunError(
            f"The machine stopped the work: {answer[STOPPED]}. Mend that and start the same command "
            "again: it goes on with what was drawn."
        )
    score = answer["score"]
    return WORST if score is None else float(score)
