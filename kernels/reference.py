"""The definition of right: every kernel once more, in obvious float64 NumPy, one unit at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpads.kernels.lookup import Places

Array = NDArray[np.float64]


def pool(array: NDArray[np.float32], places: Places, first: int, features: Array) -> None:
    """Adds each place's weighted row to the features of examples from `first` on, float64[n, width]."""
    dim = array.shape[1]
    for i in range(len(features)):
        for k in range(places.offsets[first + i], places.offsets[first + i + 1]):
            columns = slice(places.columns[k], places.columns[k] + dim)
            features[i, columns] += float(places.coefs[k]) * array[places.rows[k]].astype(
                np.float64
            )


def unit_table_gradient(
    grads: NDArray[np.float32], places: Places, dim: int, first: int, last: int
) -> dict[int, Array]:
    """Gradient of examples first:last with respect to the table rows, {row: float64[dim]}, merged."""
    rows: dict[int, Array] = {}
    for i in range(first, last):
        for k in range(places.offsets[i], places.offsets[i + 1]):
            column = int(places.columns[k])
            part = float(places.coefs[k]) * grads[i, column : column + dim].astype(np.float64)
            row = int(places.rows[k])
            rows[row] = rows[row] + part if row in rows else part
    return rows


def unit_linear_gradient(
    inputs: NDArray[np.float32], outputs: NDArray[np.float32], first: int, last: int
) -> tuple[Array, Array]:
    """Gradient of examples first:last for one linear layer: weight float64[out, in], bias float64[out]."""
    left = outputs[first:last].astype(np.float64)
    return left.T @ inputs[first:last].astype(np.float64), left.sum(axis=0)


def clip_factor(parts: Sequence[Array], l2_clip_norm: float) -> float:
    """min(1, C / norm) over all parts of one unit's gradient jointly; 0 where it is not finite."""
    norm = np.sqrt(sum(float(np.sum(part**2)) for part in parts))
    if not np.isfinite(norm):
        return 0.0
    return 1.0 if norm <= l2_clip_norm else float(l2_clip_norm / norm)


def missed_variance(learning_rates: Array, decays: Array, a: int, b: int) -> float:
    """sum_{t=a}^{b-1} eta_t^2 prod_{u=t+1}^{b-1} d_u^2, term by term."""
    return float(sum(learning_rates[t] ** 2 * np.prod(decays[t + 1 : b] ** 2) for t in range(a, b)))


def dense_step(
    array: Array, gradient: Array, noise: Array, learning_rate: float, decay: float, divisor: float
) -> Array:
    """One iteration of DP-SGD on a whole table: d * theta - eta * (g + z) / B."""
    return decay * array - learning_rate * (gradient + noise) / divisor
