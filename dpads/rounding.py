"""How far rounding moves sums of clipped gradients, and the floor of clip factors that bounds it.

A float64 sum of n terms in turn errs by n * 2^-53 of the terms' absolute values at most. They add up to a
clip norm a unit; for a unit whose parts cancel, to 1 / floor clip norms.
"""

from __future__ import annotations

from collections.abc import Callable

from dpads.errors import ConfigError
from dpads.kernels.clip import MEAN_GROUP
from dpads.kernels.partial_sums import ROW_ADDITIONS
from dpads.models.base import Tower

# Examples that a thread takes at a time, at most: few calls from Python, and most of their numbers in cache.
CHUNK = 1024
# Part of the clip norm by which rounding in float64 may move a sum: a quarter of the sensitivity's slack, of
# which groups in float32 take six tenths.
LARGEST_ROUNDING = 2.0**-12
# Units whose parts cancel are clipped by their norm where the parts add up to at most 4,096 times as much, as
# far as the rounding of a batch allows; 16 times as much at least.
LOWEST_FLOOR, HIGHEST_FLOOR = 2.0**-12, 2.0**-4
# Pieces of a batch, whose sums are added: a batch that does not fit at once has so many at most.
MOST_PIECES = 1024
# (units of a batch) -> additions in turn behind any number of the sums over the tower's gradients, at most
Additions = Callable[[int], float]


def chunk_additions(tower: Tower, rows_per_unit: int) -> Additions:
    """Additions behind sums over chunks of whole units: within a chunk, and of the chunks.

    Args:
        tower: whose layers may read several vectors an example.
        rows_per_unit: at most.
    """
    chunk = min(CHUNK, tower.examples_at_a_time)
    within = (chunk + rows_per_unit - 1) * tower.positions
    return lambda units: within + units * rows_per_unit / chunk


def rounding_of(additions: float, units: int, floor: float) -> float:
    """How far rounding moves a sum over a batch when a unit joins or leaves, at most, in clip norms.

    The sums with the unit and without it err so much each. Sums over a table's rows have additions of their
    own, as many whatever the number of places that read a row. To both come those of pieces of a batch.

    Args:
        additions: behind any number of the tower's sums.
        units: in a batch.
        floor: of `kernels.clip.clip_factors`; 1 where no parts cancel.
    """
    return 2.0 * (max(additions, ROW_ADDITIONS) + MOST_PIECES) * 2.0**-53 * units / floor


def cancellation_floor(
    tower: Tower, units: int, rows_per_unit: int, additions: Additions | None = None
) -> float:
    """The least part of its parts' sum that a unit is clipped by: of a run, never of its data.

    A power of two.

    Args:
        tower: the model's.
        units: in a batch.
        rows_per_unit: at most.
        additions: of the backend; None for those of `chunk_additions`.

    Raises:
        ConfigError: the message says how many units a batch may have.
    """
    additions = additions or chunk_additions(tower, rows_per_unit)
    most = units
    highest = HIGHEST_FLOOR if tower.positions > 1 or rows_per_unit > 1 else 1.0
    while most > 1:
        by_rows, by_tower = (
            rounding_of(0, most, HIGHEST_FLOOR),
            rounding_of(additions(most), most, highest),
        )
        if max(by_rows, by_tower) <= LARGEST_ROUNDING:
            break
        most //= 2
    if most < units:
        raise ConfigError(
            f"Expected batches of at most {most:,} units, got expected_batch_size = {units:,}: layers of "
            f"this model read up to {tower.positions:,} vectors an example, {tower.examples_at_a_time:,} "
            "examples at a time, and rounding in sums over more units is not covered by the slack of the "
            "sensitivity. Lower training.expected_batch_size, or let layers read fewer vectors."
        )
    floor = LOWEST_FLOOR
    while floor < HIGHEST_FLOOR:
        if rounding_of(additions(units), units, floor) <= LARGEST_ROUNDING:
            break
        floor *= 2.0
    return floor


def check_pieces(units: int, rows_per_unit: int, physical_batch_size: int) -> None:
    """Refuses batches in more pieces than the bound on rounding counts.

    Args:
        units: in a batch, expected.
        rows_per_unit: at most.
        physical_batch_size: examples in a piece, at most; a piece has one group of units at least.

    Raises:
        ConfigError: pieces would be too many.
    """
    examples = units * rows_per_unit
    groups = units if rows_per_unit > 1 else -(-units // MEAN_GROUP)
    # two pieces that follow each other do not fit into one; a third is left for what chance adds to a batch
    least = 3 * examples // MOST_PIECES
    if physical_batch_size < least and groups > MOST_PIECES // 2:
        raise ConfigError(
            f"Expected physical_batch_size to be at least {least:,} for batches of {examples:,} examples, "
            f"got {physical_batch_size:,}: rounding in sums over more pieces is not covered by the slack of "
            "the sensitivity. Raise it, or lower training.expected_batch_size."
        )
