"""One pool of threads for all kernels.

Kernels are serial and release the GIL; work is cut into ranges that threads take in turn. No OpenMP runtime
is involved: nothing spins between kernels, nothing fights torch's own threads, and a fork is harmless.
Kernels give the same bits however they are cut.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

Task = Callable[[], None]

RANGES_PER_THREAD = 4
ROWS_PER_TASK = 4096  # table rows of width 16 that take a few tenths of a millisecond


class Workers:
    """Runs tasks on a fixed number of threads, the caller among them.

    Args:
        threads: at least 1.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "dpads") if threads > 1 else None
        self._inside = threading.local()

    def run(self, tasks: Sequence[Task]) -> None:
        """Runs every task once and returns when all are done; raises the first error.

        A task may call `run`: its own tasks then run one after another on its thread.
        """
        helpers = min(self.threads, len(tasks)) - 1
        if helpers < 1 or self._pool is None or getattr(self._inside, "busy", False):
            for task in tasks:
                task()
            return
        numbers = itertools.count()

        def work() -> None:
            self._inside.busy = True
            try:
                while (number := next(numbers)) < len(tasks):
                    tasks[number]()
            finally:
                self._inside.busy = False

        others: list[Future[None]] = [self._pool.submit(work) for _ in range(helpers)]
        try:
            work()
        finally:
            errors = [_outcome(other) for other in others]
        for error in errors:
            if error is not None:
                raise error


_workers: Workers | None = None


def _outcome(other: Future[None]) -> BaseException | None:
    """A thread's error, once it is done: also where the caller is interrupted meanwhile."""
    try:
        return other.exception()
    except KeyboardInterrupt:
        other.exception()  # nothing may go on while others still write
        raise


def followed_by(tasks: Sequence[Task], last: Task) -> list[Task]:
    """Tasks of which the one that ends last runs `last` after it; for a part of a list that `run` gets."""
    if not tasks:
        return [last]
    lock = threading.Lock()
    left = len(tasks)

    def wrap(task: Task) -> Task:
        def wrapped() -> None:
            nonlocal left
            task()
            with lock:
                left -= 1
                done = left == 0
            if done:
                last()

        return wrapped

    return [wrap(task) for task in tasks]


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(threads: int | None) -> None:
    """Sets how many threads the kernels of this process use; None for all cores it may use."""
    global _workers
    number = threads or available_cores()
    if _workers is None or _workers.threads != number:
        _workers = Workers(number)


def get_workers() -> Workers:
    """The pool of this process."""
    if _workers is None:
        set_threads(None)
    assert _workers is not None
    return _workers


def over(count: int, size: int, task: Callable[[int, int], None]) -> None:
    """Calls task(start, end) for consecutive ranges of at most `size` that cover `count`.

    Ranges are shorter where there would be too few of them for the threads to share evenly.
    """
    workers = get_workers()
    size = max(min(size, -(-count // (RANGES_PER_THREAD * workers.threads))), size // 8, 1)
    if count <= size:
        if count > 0:
            task(0, count)
        return

    def bound(start: int) -> Task:
        return lambda: task(start, min(start + size, count))

    workers.run([bound(start) for start in range(0, count, size)])


def _forget() -> None:
    """A forked child has no threads of its parent's pool."""
    global _workers
    _workers = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
