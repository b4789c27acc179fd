"""Sums over a table's rows by way of partial sums, so that rounding does not grow with the places of a row.

    up to 2^10 places of a row | a partial sum: up to 2^10 partial sums | and those of the row

`clip.merged_sum` sums so as it goes. A device adds the places to numbered sums, in any order: their numbers
are made here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

SUMMED_AT_A_TIME = 1024
LEVELS = 2  # of partial sums: all places that fit into a memory are fewer than 2^30
# Additions in turn behind a row's sum, at most, a batch read whole: 2^10 sums of 2^10 sums of 2^10 places.
ROW_ADDITIONS = 3 * SUMMED_AT_A_TIME


class PartialSums(NamedTuple):
    """The sums that each place of a batch is added to, and that they are added to in turn.

    Sums are numbered: R of rows, then those of the first level, then of the second. Whose number is beyond
    all of them is left out.

    Attributes:
        places: int32[P], the sum that each place is added to.
        carries: one int32[E] a level, the sum that each of its sums is added to.
    """

    places: Any
    carries: tuple[Any, ...]


def partial_sums(runs: NDArray[np.int32], rows: int) -> PartialSums | None:
    """Numbers for the places of a batch; how many sums there are follows from P alone.

    Args:
        runs: int32[P], the row of each place among those that are read; R or more for padding.
        rows: R.

    Returns:
        The numbers; None where the places are so few that no row has more than one sum.

    Guarantees:
        - No sum of a row has more than `ROW_ADDITIONS` additions in turn behind it.
    """
    if len(runs) <= SUMMED_AT_A_TIME:
        return None
    # a row with several sums of n places each has fewer of them than 2 / n of its places
    sizes = [SUMMED_AT_A_TIME**level for level in range(1, LEVELS + 1)]
    counts = [2 * len(runs) // size if len(runs) > size else 0 for size in sizes]
    total = rows + sum(counts)
    places = np.empty(len(runs), np.int32)
    carries = tuple(np.full(count, total, np.int32) for count in counts)
    _number(runs, rows, places, *carries)
    return PartialSums(places, tuple(carry for carry in carries if len(carry)))


@njit(cache=True, nogil=True)
def _number(
    runs: NDArray[np.int32],
    rows: int,
    places: NDArray[np.int32],
    first: NDArray[np.int32],
    second: NDArray[np.int32],
) -> None:
    """Writes the numbers."""
    size = SUMMED_AT_A_TIME
    left_out = rows + len(first) + len(second)
    counts = np.zeros(rows, np.int64)
    for run in runs:
        if run < rows:
            counts[run] += 1
    starts = np.empty(rows, np.int64)  # of each row's sums of the first level
    used, used_above = 0, 0
    for row in range(rows):
        starts[row] = used
        if counts[row] > size:
            sums = -(-counts[row] // size)
            for i in range(sums):
                above = row
                if sums > size:
                    above = rows + len(first) + used_above + i // size
                    second[used_above + i // size] = row
                first[used + i] = above
            used += sums
            if sums > size:
                used_above += -(-sums // size)
    seen = np.zeros(rows, np.int64)
    for k in range(len(runs)):
        run = runs[k]
        if run >= rows:
            places[k] = left_out
        elif counts[run] <= size:
            places[k] = run
        else:
            places[k] = rows + starts[run] + seen[run] // size
            seen[run] += 1
