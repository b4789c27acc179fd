"""Places as a device takes them, written from their description alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpads.kernels.jax_ops import DevicePlaces
from dpads.kernels.lookup import Places


@dataclass(frozen=True)
class Sizes:
    """What a batch is padded to."""

    examples: int
    places: int
    rows: int
    units: int


SMALL, LARGE = Sizes(8, 80, 24, 8), Sizes(16, 128, 32, 12)


def fill(values: Any, size: int, value: float, dtype: Any) -> np.ndarray:
    """The values, then the same value again and again."""
    found = np.full((size, *np.shape(values)[1:]), value, dtype)
    found[: len(values)] = values
    return found


def device_places(
    places: Places,
    dim: int,
    slots: int,
    num_rows: int,
    units: np.ndarray | None,
    sizes: Sizes,
    *,
    regular: bool = False,
    pairs: bool = True,
) -> DevicePlaces:
    """One place after the other; `units` is the unit of each example, None where example i is unit i."""
    count = len(places.rows)
    touched = sorted(set(places.rows.tolist()))
    run_of = {row: run for run, row in enumerate(touched)}
    length = sizes.examples * slots if regular else sizes.places
    columns: dict[str, Any] = {
        "rows": np.zeros(length, np.uint32),
        "slots": np.zeros(length, np.int32),
        "coefs": np.zeros(length, np.float32),
        "examples": np.full(length, sizes.examples, np.int32),
        "runs": np.full(length, sizes.rows, np.int32),
        "pairs": np.full(length, length, np.int32),
    }
    pair_units = np.full(length, sizes.examples if units is None else sizes.units, np.int32)
    known: dict[tuple[int, int], int] = {}
    for k in range(count):
        i, row, slot = int(places.examples[k]), int(places.rows[k]), int(places.columns[k]) // dim
        at = i * slots + slot if regular else k
        unit = i if units is None else int(units[i])
        pair = known.setdefault((unit, row), len(known))
        pair_units[pair] = unit
        values = (row, slot, places.coefs[k], i, run_of[row], pair)
        for name, value in zip(columns, values, strict=True):
            columns[name][at] = value
    if regular:
        columns["slots"] = columns["examples"] = None
    if not pairs:
        assert len(known) == count
        columns["pairs"] = None
    return DevicePlaces(
        **columns,
        pair_units=pair_units if pairs else None,
        touched=fill(touched, sizes.rows, num_rows, np.uint32),
    )
