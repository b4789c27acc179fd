"""The processes of a run, and what they tell each other beside the sums of its steps."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.errors import ConfigError

DIGEST_BYTES = 32


class Hosts(ABC):
    """All processes of a run, as one of them sees them; each calls the same methods in the same order.

    Attributes:
        number: of this process, from 0.
        count: of processes.
    """

    number: int
    count: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is left of the run."""
        return self.number == 0

    @abstractmethod
    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """Every process' array, [count, *shape]; shapes and types are the same everywhere.

        Raises:
            ProcessLostError: another process has gone.
        """

    @abstractmethod
    def of_first(self, data: bytes) -> bytes:
        """What process 0 passes; the others' argument is left aside.

        Raises:
            ProcessLostError: another process has gone.
        """

    def gather_each(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Every process' array, in order; their lengths may differ."""
        lengths = self.gather(np.array([len(values)], np.int64))[:, 0]
        padded = np.zeros((int(lengths.max()), *values.shape[1:]), values.dtype)
        padded[: len(values)] = values
        found = self.gather(padded)
        return [own[:length] for own, length in zip(found, lengths, strict=True)]

    def sum(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sum over all processes: exact, in any order."""
        total: NDArray[np.int64] = self.gather(values).sum(axis=0)
        return total

    def wait(self) -> None:
        """Until every process is here."""
        self.gather(np.zeros(1, np.int8))

    def all(self, holds: bool) -> bool:
        """Whether something holds in every process."""
        return bool(self.gather(np.array([holds])).all())

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Refuses processes that do not agree.

        Args:
            facts: {what it is: what this process has}; the same names in every process.

        Raises:
            ConfigError: another process has something else.
        """
        digests = [hashlib.sha256(text.encode()).digest() for text in facts.values()]
        found = self.gather(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES))
        for name, of_each in zip(facts, found.swapaxes(0, 1), strict=True):
            others = [i for i in range(self.count) if (of_each[i] != of_each[0]).any()]
            if others:
                raise ConfigError(
                    f"Expected the same {name} in all {self.count} processes; process "
                    f"{', '.join(map(str, others))} and process 0 differ. Start every process with the "
                    "same configuration, --set options and versions, on shards of one store."
                )


class Alone(Hosts):
    """A run of one process."""

    number = 0
    count = 1

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """The array itself."""
        return values[None]

    def of_first(self, data: bytes) -> bytes:
        """The data itself."""
        return data


ALONE = Alone()


def hosts_of(backend: str) -> Hosts:
    """The processes that a run on a backend has: those that `jax.distributed` knows, or this one alone."""
    if backend != "jax":
        return ALONE
    from dpads.jax_hosts import found_hosts

    return found_hosts()
