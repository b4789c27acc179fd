"""The pool of threads: every range once, errors reach the caller, forks and nested runs are harmless."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from dpads.kernels import workers


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    yield
    workers.set_threads(None)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("count", "size"), [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 7)])
def test_every_range_is_worked_on_once(threads: int, count: int, size: int) -> None:
    workers.set_threads(threads)
    seen = np.zeros(count, np.int64)

    def task(first: int, last: int) -> None:
        assert 0 < last - first <= size
        seen[first:last] += 1

    workers.over(count, size, task)
    assert (seen == 1).all()


def test_the_first_error_reaches_the_caller_after_all_threads_are_done() -> None:
    workers.set_threads(2)
    barrier = threading.Barrier(2, timeout=10)
    done = []

    def fails() -> None:
        barrier.wait()
        raise ValueError("from a task")

    def works() -> None:
        barrier.wait()
        done.append(1)

    with pytest.raises(ValueError, match="from a task"):
        workers.get_workers().run([fails, works])
    assert done == [1]
    workers.get_workers().run([lambda: done.append(2)])
    assert done == [1, 2]


def test_a_task_may_run_tasks_of_its_own() -> None:
    workers.set_threads(2)
    done: list[int] = []
    inner = [lambda: done.append(1)] * 3
    workers.get_workers().run([lambda: workers.get_workers().run(inner)] * 4)
    assert len(done) == 12


FORKING = """
import os
from dpads.kernels import workers
workers.set_threads(2)
workers.over(8, 1, lambda first, last: None)
child = os.fork()
if child == 0:
    seen = []
    workers.over(8, 1, lambda first, last: seen.append(first))
    os._exit(0 if sorted(seen) == list(range(8)) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_child_makes_threads_of_its_own() -> None:
    """In an interpreter of its own: where JAX was imported, a fork may wait for ever."""
    subprocess.run([sys.executable, "-c", FORKING], check=True, timeout=60)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_what_follows_tasks_runs_once_after_all_of_them(threads: int, count: int) -> None:
    workers.set_threads(threads)
    done: list[int] = []
    tasks = workers.followed_by(
        [lambda i=i: done.append(i) for i in range(count)],  # type: ignore[misc]
        lambda: done.append(-1),
    )
    workers.get_workers().run([lambda: None, *tasks, lambda: None])
    assert sorted(done[:-1]) == list(range(count))
    assert done[-1] == -1
