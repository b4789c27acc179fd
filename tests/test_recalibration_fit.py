"""What recalibration fits to noisy sums: known truths, noise, counts, logits that lie close together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dpads import recalibration as stage
from dpads.private_sums_config import COUNTING
from dpads.recalibration_fit import (
    NODES,
    Means,
    Seen,
    cut_mean,
    fit_buckets,
    fit_scale_and_bias,
)


def seen_of(
    logits: NDArray[np.float64],
    labels: NDArray[np.float64],
    means: Means,
    noise_multiplier: float,
    rng: np.random.Generator,
) -> Seen:
    """The noisy sums of rows, as the stage makes them."""
    vectors = stage.row_vectors(logits, labels, np.ones(len(logits)), means, None)
    sums = np.bincount(vectors.places, weights=vectors.values, minlength=stage.COORDINATES)
    stddev = noise_multiplier * means.largest_label * math.sqrt(2.0 + COUNTING**2)
    sums = sums + stddev * rng.normal(size=len(sums))
    per_row = COUNTING * means.largest_label
    return Seen(
        float(sums[0]),
        sums[1 : 1 + len(NODES)],
        sums[1 + len(NODES) :] / per_row,
        stddev,
        stddev / per_row,
        means,
    )


def excess(
    fit: Any,
    examples: int,
    noise: float,
    scale: float,
    bias: float,
    at: float = -3.0,
    seed: int = 0,
) -> tuple[float, float]:
    """Log loss above that of the truth, before and after, where the truth is scale * logit + bias."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(at, 1.2, examples)
    truth = scale * logits + bias
    labels = (rng.random(examples) < 1.0 / (1.0 + np.exp(-truth))).astype(np.float64)
    calibration = fit(seen_of(logits, labels, Means("ctr", 1.0), noise, rng))
    fresh = rng.normal(at, 1.2, 20_000)
    right = scale * fresh + bias

    def loss(z: NDArray[np.float64]) -> float:
        return float(np.mean(np.logaddexp(0.0, z) - z / (1.0 + np.exp(-right))))

    return loss(fresh) - loss(right), loss(calibration.apply(fresh)) - loss(right)


FITS = [fit_scale_and_bias, fit_buckets]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("scale", "bias"), [(1.5, 2.2), (1.0, 0.7), (0.6, -1.0), (1.0, -1.0)])
def test_a_known_miscalibration_is_taken_back(fit: Any, scale: float, bias: float) -> None:
    before, after = excess(fit, 100_000, 20.0, scale, bias)
    assert after < 0.05 * before


@pytest.mark.parametrize("fit", FITS)
def test_a_calibrated_model_is_left_as_it_is(fit: Any) -> None:
    for seed in range(8):
        assert excess(fit, 100_000, 20.0, 1.0, 0.0, seed=seed)[1] < 1e-4


@pytest.mark.parametrize("fit", FITS)
def test_a_thousand_rows_are_never_made_much_worse(fit: Any) -> None:
    """At every noise: the log loss is about 0.23, and nothing is lost but a hundredth of it."""
    for noise in (10.0, 20.0, 60.0):
        for scale, bias in ((1.0, 0.0), (1.0, 0.5), (0.7, 0.0)):
            pairs = [excess(fit, 1000, noise, scale, bias, seed=seed) for seed in range(8)]
            mean = np.mean([after - before for before, after in pairs])
            assert mean < 0.0025
            assert max(after - before for before, after in pairs) < 0.02


def test_rare_positives_are_seen_in_the_total() -> None:
    """About 130 of 66,000, of which the model expects a third: what noise of single nodes would hide."""
    pairs = [excess(fit_scale_and_bias, 66_000, 20.0, 1.0, 1.1, -7.9, s) for s in range(10)]
    assert np.mean([after for _, after in pairs]) < 0.4 * np.mean([before for before, _ in pairs])


def test_noise_of_nodes_that_nobody_is_at_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(-3.0, 0.3, 50_000)
    labels = (rng.random(50_000) < 1.0 / (1.0 + np.exp(-logits - 0.8))).astype(np.float64)
    seen = seen_of(logits, labels, Means("ctr", 1.0), 20.0, rng)
    far = dataclasses.replace(seen, residuals=seen.residuals.copy())
    far.residuals[-3:] += 60.0  # 2 stddevs, where there are no rows
    one, other = fit_scale_and_bias(seen), fit_scale_and_bias(far)
    assert one.apply(np.array([-3.0])) == pytest.approx(other.apply(np.array([-3.0])), abs=0.02)


def test_counts_beyond_the_bound_do_not_pull_rates_down() -> None:
    """Means of about 3 with counts cut at 2: what is expected of a label is cut as the label is."""
    rng = np.random.default_rng(2)
    logits = rng.normal(1.0, 0.3, 100_000)
    for bias in (0.0, 0.5):
        labels = np.minimum(rng.poisson(np.exp(logits + bias)), 2.0)
        seen = seen_of(logits, labels, Means("count", 2.0), 20.0, rng)
        moved = fit_scale_and_bias(seen).apply(np.array([1.0]))[0] - 1.0
        assert moved == pytest.approx(bias, abs=0.08)


@pytest.mark.parametrize("largest", [1.0, 2.0, 2.5, 7.0])
def test_the_mean_of_a_cut_count(largest: float) -> None:
    from scipy.stats import poisson

    values = np.arange(400)
    for mean in (1e-6, 0.3, 2.0, 40.0):
        expected = float(np.minimum(values, largest) @ poisson.pmf(values, mean))
        assert cut_mean(np.array([mean]), largest)[0] == pytest.approx(expected, rel=1e-9)


def test_buckets_never_fall() -> None:
    rng = np.random.default_rng(4)
    for _ in range(5):
        logits = rng.normal(-1.0, 2.0, 20_000)
        labels = (rng.random(20_000) < 0.5 + 0.4 * np.sin(2 * logits)).astype(np.float64)
        found = fit_buckets(seen_of(logits, labels, Means("ctr", 1.0), 5.0, rng))
        assert (np.diff(found.apply(np.linspace(-20, 20, 400))) >= -1e-12).all()


def test_sums_that_are_noise_alone_give_a_model_that_works() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen = seen_of(np.empty(0), np.empty(0), Means("ctr", 1.0), 1000.0, rng)
        assert fit_scale_and_bias(seen).apply(np.array([0.5])) == pytest.approx(0.5, abs=1e-9)
        np.testing.assert_allclose(fit_buckets(seen).apply(NODES), NODES, atol=1e-9)


@pytest.mark.parametrize("largest_exposure", [1.0, 10.0])
def test_exposures_that_differ_do_not_bias_a_model_that_predicts_far_too_much(
    largest_exposure: float,
) -> None:
    """Predicted rates near 1, true ones near 0.06, exposures from 0.1 to 10, a true count over 5 is rare."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(6):
        logits = rng.normal(0.0, 0.4, 40_000)
        exposure = rng.uniform(0.1, 10.0, len(logits))
        labels = rng.poisson(exposure * np.exp(logits - 2.8)).astype(float)
        used = np.minimum(exposure, largest_exposure)
        cut = np.minimum(labels * used / exposure, 5.0)
        means = Means("count", 5.0, largest_exposure)
        per_row = means.per_row
        vectors = stage.row_vectors(logits, cut, used, means, None)
        assert np.abs(vectors.values).max() <= 5.0
        sums = np.bincount(vectors.places, weights=vectors.values, minlength=stage.COORDINATES)
        stddev = 12.0 * 5.0 * math.sqrt(2.0 + COUNTING**2)
        sums = sums + stddev * rng.normal(size=len(sums))
        rows = sums[1 + len(NODES) :] / per_row
        seen = Seen(float(sums[0]), sums[1 : 1 + len(NODES)], rows, stddev, stddev / per_row, means)
        calibrated = fit_scale_and_bias(seen).apply(logits)
        found.append(float((exposure * np.exp(calibrated)).sum() / labels.sum()))
    assert np.mean(found) == pytest.approx(1.0, abs=0.08)
    assert np.std(found) < 0.12
