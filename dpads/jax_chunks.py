"""Examples in chunks of whole units or groups, all of one size: what passes through a tower at a time.

Products of matrices of one shape give an example the same bits whatever stands beside it, so that the size is
a public number. How many chunks have examples depends on the batch; a device does no work for the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dpads.kernels.clip import LARGEST_GROUP

MOST_AT_A_TIME = 1024  # examples, on a CPU: most of their numbers stay in its caches
MOST_AT_ONCE = 16_384  # elsewhere, where small products leave a device idle
T = TypeVar("T", bound=np.generic)


def examples_at_a_time(expected: int, most: int, longest: int = 1) -> int:
    """Examples that pass through a tower at a time.

    Args:
        expected: in a batch.
        most: how many they should be, about.
        longest: examples of a unit, at most.

    Returns:
        A multiple of eight with room for a unit, and for more than the largest group that is summed in
        float32. What is expected fits into few chunks, with little more than what chance adds, and what the
        ends of groups leave free.
    """
    chunks = max(round(expected / most), 1)
    free = LARGEST_GROUP // 2 + 2 * math.isqrt(expected) // chunks
    return -(-max(expected // chunks + free, LARGEST_GROUP + 1, longest) // 8) * 8


@dataclass(frozen=True)
class Chunks:
    """Where chunks begin and end; secret.

    Attributes:
        cuts: int64[k + 1], chunk i has the examples `cuts[i]:cuts[i + 1]`.
        size: of a chunk, padding included.
        bounds: int64[g + 1], as in `of_groups`.
    """

    cuts: NDArray[np.int64]
    size: int
    bounds: NDArray[np.int64]

    @classmethod
    def of_groups(cls, bounds: NDArray[np.int64], size: int) -> Chunks:
        """As many whole groups in each as fit; one that is larger than a chunk is cut, and begins one.

        So a unit more or less cuts no other group than its own, and of what is cut only the last piece may be
        small enough for float32.

        Args:
            bounds: int64[g + 1], rising from 0: group i has the examples `bounds[i]:bounds[i + 1]`.
            size: positive.
        """
        cuts = [0]
        while cuts[-1] < bounds[-1]:
            end = int(bounds[np.searchsorted(bounds, cuts[-1] + size, side="right") - 1])
            cuts.append(end if end > cuts[-1] else cuts[-1] + size)
        return cls(np.array(cuts, np.int64), size, bounds)

    @property
    def number(self) -> int:
        """How many chunks have examples."""
        return len(self.cuts) - 1

    def positions(self) -> NDArray[np.int32]:
        """Where each example stands, chunk after chunk, int32[B]."""
        return standing(self.cuts, self.size)

    @cached_property
    def marks(self) -> NDArray[np.int64]:
        """Where groups begin and end, rising; what is cut is a group each."""
        return np.unique(np.concatenate([self.bounds, self.cuts]))

    @property
    def most_groups(self) -> int:
        """The most groups that any chunk has."""
        return longest(np.searchsorted(self.marks, self.cuts))

    def groups(self, most: int, count: int) -> NDArray[np.int32]:
        """Bounds of the groups of each chunk, counted from its first example, int32[count, most + 1].

        Args:
            most: groups that a chunk has room for; padding has no examples.
            count: chunks, padding included.
        """
        found = np.zeros((count, most + 1), np.int32)
        for number, (begin, end) in enumerate(pairwise(np.searchsorted(self.marks, self.cuts))):
            own = self.marks[begin : end + 1] - self.marks[begin]
            found[number, : len(own)] = own
            found[number, len(own) :] = own[-1]
        return found


def longest(cuts: NDArray[np.int64]) -> int:
    """The most that any of the stretches between cuts has."""
    return int(np.diff(cuts).max(initial=0))


def standing(cuts: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """Where values stand that `cut_up` cut, one chunk after another, int32[n]."""
    shifts = np.arange(len(cuts) - 1) * size - cuts[:-1]
    return (np.arange(cuts[-1]) + np.repeat(shifts, np.diff(cuts))).astype(np.int32)


def cut_up(
    values: NDArray[T], cuts: NDArray[np.int64], count: int, size: int, nothing: float
) -> NDArray[T]:
    """Values cut into chunks that are padded to one size, [count, size, ...].

    Args:
        values: [n, ...].
        cuts: int64[k + 1], where the chunks begin and end.
        count: of chunks, at least k.
        size: at least what any chunk has.
        nothing: the value of padding.
    """
    found = np.full((count, size, *values.shape[1:]), nothing, values.dtype)
    for number, (begin, end) in enumerate(pairwise(cuts)):
        found[number, : end - begin] = values[begin:end]
    return found
