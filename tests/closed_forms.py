"""What has a closed form: the plain Gaussian, as anybody would write it down."""

from __future__ import annotations

import math

from scipy.stats import norm


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta of a Gaussian whose sensitivity is mu stddevs (Balle and Wang 2018, Theorem 8)."""
    tail = norm.logcdf(-epsilon / mu - mu / 2)
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + tail))


def exact_gaussian(noise_multiplier: float, delta: float, sensitivity: float = 1.0) -> float:
    """Epsilon of one Gaussian, by bisection."""
    mu = sensitivity / noise_multiplier
    low, high = 0.0, 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return high
