"""Threads in the place of processes: what each makes of the same work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from dpads.hosts import Hosts


class Thread(Hosts):
    """One of several threads that wait for each other."""

    def __init__(
        self, number: int, count: int, board: list[Any], barrier: threading.Barrier
    ) -> None:
        self.number, self.count = number, count
        self._board, self._barrier = board, barrier

    def _exchanged(self, value: Any) -> list[Any]:
        self._board[self.number] = value
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found

    def gather(self, values: np.ndarray) -> np.ndarray:
        return np.stack(self._exchanged(np.array(values)))

    def of_first(self, data: bytes) -> bytes:
        return bytes(self._exchanged(data)[0])


def together(count: int, work: Callable[[Thread], Any]) -> list[Any]:
    """What each of so many processes makes of the work, results or errors."""
    board: list[Any] = [None] * count
    barrier = threading.Barrier(count, timeout=20)
    found: list[Any] = [None] * count

    def one(number: int) -> None:
        try:
            found[number] = work(Thread(number, count, board, barrier))
        except Exception as error:  # noqa: BLE001 (whatever it is, the test sees it)
            found[number] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
