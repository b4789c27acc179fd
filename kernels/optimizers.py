"""Updates of dense parameters by gradients that carry their noise already."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True, error_model="numpy")
def sgd_step(
    parameters: NDArray[np.float32],
    gradients: NDArray[np.float32],
    rate: float,
    weight_decay: float,
) -> None:
    """parameters = (1 - rate weight_decay) parameters - rate gradients, float32[n]."""
    for i in range(len(parameters)):
        kept = (1.0 - rate * weight_decay) * np.float64(parameters[i])
        parameters[i] = np.float32(kept - rate * np.float64(gradients[i]))


@njit(cache=True, nogil=True, error_model="numpy")
def _next_moments(
    means: NDArray[np.float32],
    squares: NDArray[np.float32],
    i: int,
    gradient: float,
    beta1: float,
    beta2: float,
) -> tuple[float, float]:
    """Moves the averages of coordinate i; returns them before they are rounded."""
    mean = beta1 * np.float64(means[i]) + (1.0 - beta1) * gradient
    square = beta2 * np.float64(squares[i]) + (1.0 - beta2) * gradient * gradient
    means[i] = np.float32(mean)
    squares[i] = np.float32(square)
    return mean, square


@njit(cache=True, nogil=True, error_model="numpy")
def adam_step(
    parameters: NDArray[np.float32],
    gradients: NDArray[np.float32],
    means: NDArray[np.float32],
    squares: NDArray[np.float32],
    step: int,
    rate: float,
    beta1: float,
    beta2: float,
    stability: float,
    weight_decay: float,
) -> None:
    """One step of Adam with decoupled weight decay.

    Args:
        parameters: float32[n], changed in place.
        gradients: float32[n].
        means: float32[n], exponential averages of gradients, changed in place.
        squares: float32[n], of their squares, likewise.
        step: 1 for the first.
        rate: learning rate.
        beta1: of the means.
        beta2: of the squares.
        stability: added to the root.
        weight_decay: decoupled.

    References:
        Kingma and Ba 2014, arXiv 1412.6980, algorithm 1; Loshchilov and Hutter 2017, arXiv 1711.05101.
    """
    size = rate / (1.0 - beta1**step)
    root = 1.0 / np.sqrt(1.0 - beta2**step)
    for i in range(len(parameters)):
        gradient = np.float64(gradients[i])
        mean, square = _next_moments(means, squares, i, gradient, beta1, beta2)
        kept = (1.0 - rate * weight_decay) * np.float64(parameters[i])
        parameters[i] = np.float32(kept - size * mean / (np.sqrt(square) * root + stability))


@njit(cache=True, nogil=True, error_model="numpy")
def adambc_step(
    parameters: NDArray[np.float32],
    gradients: NDArray[np.float32],
    means: NDArray[np.float32],
    squares: NDArray[np.float32],
    step: int,
    rate: float,
    beta1: float,
    beta2: float,
    noise_variance: float,
    floor: float,
    weight_decay: float,
) -> None:
    """One step of DP-AdamBC with decoupled weight decay.

    Args:
        parameters: float32[n], changed in place.
        gradients: float32[n], with their noise.
        means: float32[n], exponential averages of gradients, changed in place.
        squares: float32[n], of their squares, likewise.
        step: 1 for the first.
        rate: learning rate.
        beta1: of the means.
        beta2: of the squares.
        noise_variance: of one coordinate of the gradients.
        floor: of the squares' averages less the noise's variance.
        weight_decay: decoupled.

    References:
        Tang, Shpilevskiy and Lecuyer 2023, arXiv 2312.14334 v1, algorithm 1.
    """
    size = rate / (1.0 - beta1**step)
    whole = 1.0 / (1.0 - beta2**step)
    for i in range(len(parameters)):
        gradient = np.float64(gradients[i])
        mean, square = _next_moments(means, squares, i, gradient, beta1, beta2)
        kept = (1.0 - rate * weight_decay) * np.float64(parameters[i])
        corrected = max(square * whole - noise_variance, floor)
        parameters[i] = np.float32(kept - size * mean / np.sqrt(corrected))
