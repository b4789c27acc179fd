"""Noisy sums over privacy units: the one mechanism of every access beside training.

Each unit has one vector, the sum over its rows. The vector is scaled to an L2 norm of at most
`release.l2_clip_norm`, the vectors are summed, and every coordinate of the sum, whether anybody has it or
not, gets Gaussian noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.ledger import Ledger
from dpads.accounting.releases import Release
from dpads.errors import ConfigError
from dpads.hosts import ALONE, Hosts
from dpads.kernels.gaussian import NORMALS_PER_ROW, fill_normals
from dpads.kernels.unit_sums import add_unit_vectors
from dpads.noise import RunKeys, to_public_grid

# Sums are whole multiples of the norm bound times this: exact in int64, in any order, for 2^32 units.
GRID_BITS: Final = 30
NOISED_AT_A_TIME: Final = 1 << 20  # coordinates, a multiple of NORMALS_PER_ROW


@dataclass(frozen=True)
class UnitVectors:
    """Sparse vectors of some units; secret.

    Attributes:
        offsets: int64[units + 1], unit u has the entries offsets[u] to before offsets[u + 1].
        places: int64[entries], coordinates; one that stands several times in a unit is summed.
        values: float64[entries]; a unit with one that is not finite counts as zero.
    """

    offsets: NDArray[np.int64]
    places: NDArray[np.int64]
    values: NDArray[np.float64]


def noisy_sum(
    release: Release,
    coordinates: int,
    keys: RunKeys,
    ledger: Ledger,
    description: str,
    read: Callable[[], Iterable[UnitVectors]],
    hosts: Hosts = ALONE,
) -> NDArray[np.float64]:
    """The sum of all units' clipped vectors, with noise.

    Args:
        release: the mechanism, from the plan.
        coordinates: of a vector; public.
        keys: of the run; noise has keys that serve this release alone.
        ledger: gets an entry, unless a run that was cut off has put it there.
        description: of the entry.
        read: the units' vectors, each unit once.
        hosts: the run's processes, each of which has some of the units; all get the same sum.

    Returns:
        float64[coordinates], on the public grid of its noise.

    Guarantees:
        - The ledger's entry is durable before the first vector is read.
        - One unit more or less moves the sum by at most l2_clip_norm, whatever its rows hold and however
          many there are.
        - Every coordinate has noise, those that no unit has included.
        - The same units under the same keys give the same release to the bit; other sums draw other
          noise.
    """
    announce(release, ledger, description)
    hosts.wait()  # the first process' entry is durable
    sums = np.zeros(coordinates, np.int64)
    for vectors in read():
        add_clipped(sums, vectors, release.l2_clip_norm)
    return with_noise(hosts.sum(sums), release, keys)


def announce(release: Release, ledger: Ledger, description: str) -> None:
    """Puts a release on the ledger, unless a run that was cut off has done so."""
    event = release.event()
    if any((entry.kind, entry.dp_event) == (release.kind, event) for entry in ledger.entries):
        return
    ledger.append(
        kind=release.kind,
        description=description,
        rows="train",
        treatment="covered_by_accounting",
        dp_event=event,
    )


def add_clipped(sums: NDArray[np.int64], vectors: UnitVectors, l2_clip_norm: float) -> None:
    """Adds units' clipped vectors to a sum in multiples of l2_clip_norm * 2^-GRID_BITS; secret.

    Entries are rounded towards zero, so that no vector gets longer; the sum is exact.
    """
    places = vectors.places
    if len(places) == 0:
        return
    if places.min() < 0 or places.max() >= len(sums):
        raise ConfigError(f"Expected places of {len(sums)} coordinates, got others.")
    steps = 2.0**GRID_BITS
    add_unit_vectors(sums, vectors.offsets, places, vectors.values, l2_clip_norm, steps)


def with_noise(sums: NDArray[np.int64], release: Release, keys: RunKeys) -> NDArray[np.float64]:
    """The sum with noise on every coordinate, rounded to the public grid.

    The key is bound to the sums: two sums never share a draw, whatever made them differ.
    """
    digest = hashlib.sha256(np.ascontiguousarray(sums, "<i8").data).hexdigest()
    key = keys.key("private_sum", release.kind, digest)
    noisy = sums * (release.l2_clip_norm * 2.0**-GRID_BITS)
    stddev = release.noise_stddev
    for first in range(0, len(noisy), NOISED_AT_A_TIME):
        part = noisy[first : first + NOISED_AT_A_TIME]
        begin = first // NORMALS_PER_ROW
        rows = np.arange(begin, begin + -(-len(part) // NORMALS_PER_ROW), dtype=np.int64)
        draws = np.empty((len(rows), NORMALS_PER_ROW), np.float32)
        fill_normals(key, rows, 0, draws)
        part += stddev * draws.reshape(-1)[: len(part)].astype(np.float64)
    result: NDArray[np.float64] = to_public_grid(noisy, stddev)
    return result
