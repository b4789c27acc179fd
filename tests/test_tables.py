"""Lazy noise has the law of dense noise, its variance is exact, and no address serves twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpads.errors import ConfigError, RunError
from dpads.kernels import lazy, moves, reference
from dpads.kernels.gaussian import fill_normals
from dpads.noise import RunKeys
from dpads.optimizers import Adam, Sgd, check_table_optimizer
from dpads.row_sums import KnownSums
from dpads.schedules import learning_rates
from dpads.tables import DenseTables, LazyTables, TableMechanism, TableUpdate

MECHANISMS = [LazyTables, DenseTables]
SGD = Sgd(learning_rate=0.7, schedule="cosine", weight_decay=0.05)
STEPS, DIVISOR, STDDEV = 40, 8.0, 3.0
ROWS, DIM = 30_000, 4


def _update(optimizer: Sgd = SGD, steps: int = STEPS, stddev: float = STDDEV) -> TableUpdate:
    return TableUpdate(optimizer, iterations=steps, noise_stddev=stddev, divisor=DIVISOR)


def _mechanism(kind: type[TableMechanism], array: Any, update: TableUpdate, seed: int = 0) -> Any:
    return kind("tables.4", array, update, RunKeys(bytes([seed]) * 32, "digest"))


def _touched(t: int) -> np.ndarray:
    """A third of the rows is never touched, a third once, a third in every second iteration."""
    third = ROWS // 3
    often = np.arange(2 * third, ROWS) if t % 2 else np.arange(0)
    return np.concatenate([np.arange(third, 2 * third)[t::STEPS], often])


def _train(
    kind: type[TableMechanism], reads: Sequence[int], seed: int = 0
) -> dict[int, np.ndarray]:
    """Final values, and the values read before the iterations in `reads`."""
    array = np.full((ROWS, DIM), 0.5, np.float32)
    tables = _mechanism(kind, array, _update(), seed)
    seen = {}
    for t in range(STEPS):
        if t in reads:
            tables.flush()
            seen[t] = array.astype(np.float64)
        rows = _touched(t)
        tables.bring_up_to_date(rows)
        tables.step(KnownSums(rows, np.full((len(rows), DIM), 2.0)))
    tables.flush()
    seen[STEPS] = array.astype(np.float64)
    return seen


def _expected(group: int, start: int, end: int) -> tuple[float, float, float]:
    """Decay, mean shift and variance of a row's value between iterations, by the definition."""
    update = _update()
    decay, mean = 1.0, 0.0
    for t in range(start, end):
        gradient = 2.0 if group == 2 and t % 2 else 0.0
        mean = update.decays[t] * mean - update.rates[t] * gradient / DIVISOR
        decay *= update.decays[t]
    noise = reference.missed_variance(update.rates, update.decays, start, end)
    return decay, mean, (STDDEV / DIVISOR) ** 2 * noise


def _law_holds(sample: np.ndarray, mean: float, variance: float) -> bool:
    """Mean and variance within 5 standard errors, and Kolmogorov-Smirnov not below 1e-6."""
    n = sample.size
    return bool(
        abs(sample.mean() - mean) < 5 * np.sqrt(variance / n)
        and abs(sample.var() / variance - 1) < 5 * np.sqrt(2 / n)
        and stats.kstest((sample.ravel() - mean) / np.sqrt(variance), "norm").pvalue > 1e-6
    )


@pytest.mark.parametrize("kind", MECHANISMS)
@pytest.mark.parametrize("reads", [(), (13, 14, 30)], ids=["unread", "read in between"])
def test_every_row_has_the_law_of_dense_noise(
    kind: type[TableMechanism], reads: tuple[int, ...]
) -> None:
    seen = _train(kind, reads, seed=1)
    third = ROWS // 3
    for group in (0, 2):
        values = seen[STEPS][group * third : (group + 1) * third]
        decay, shift, variance = _expected(group, 0, STEPS)
        mean = 0.5 * decay + shift
        assert _law_holds(values, mean, variance)
        scaled = mean + np.array([0.9, 1.1])[:, None, None] * (values - mean)
        assert not _law_holds(scaled[0], mean, variance)
        assert not _law_holds(scaled[1], mean, variance)
        for t in reads:
            decay, shift, variance = _expected(group, 0, t)
            assert _law_holds(
                seen[t][group * third : (group + 1) * third], 0.5 * decay + shift, variance
            )


@pytest.mark.parametrize("kind", MECHANISMS)
def test_rows_touched_once_have_their_own_mean_and_the_common_variance(
    kind: type[TableMechanism],
) -> None:
    values = _train(kind, (), seed=2)[STEPS][ROWS // 3 : 2 * (ROWS // 3)]
    update = _update()
    decay, _, variance = _expected(0, 0, STEPS)
    for t in (0, 1, 17, STEPS - 1):
        later = np.prod(update.decays[t + 1 :])
        mean = 0.5 * decay - update.rates[t] * 2.0 / DIVISOR * later
        assert _law_holds(values[t::STEPS], mean, variance)


@pytest.mark.parametrize("kind", MECHANISMS)
def test_reads_and_final_values_covary_as_the_recursion_says(kind: type[TableMechanism]) -> None:
    seen = _train(kind, (13, 30), seed=3)
    third = ROWS // 3
    for group in (0, 2):
        rows = slice(group * third, (group + 1) * third)
        for early, late in ((13, 30), (13, STEPS), (30, STEPS)):
            first, second = seen[early][rows].ravel(), seen[late][rows].ravel()
            variance = _expected(group, 0, early)[2]
            expected = variance * _expected(group, early, late)[0]
            error = np.sqrt((variance * _expected(group, 0, late)[2] + expected**2) / first.size)
            found = np.mean((first - first.mean()) * (second - second.mean()))
            assert abs(found - expected) < 5 * error
            assert abs(0.9 * found - expected) > 5 * error


def test_rows_and_coordinates_are_independent_of_each_other() -> None:
    z = _train(LazyTables, (), seed=4)[STEPS][: ROWS // 3]
    z = (z - z.mean()) / z.std()
    assert abs(np.mean(z[1:] * z[:-1])) < 5 / np.sqrt(z.size)
    for shift in range(1, DIM):
        assert abs(np.mean(z[:, shift:] * z[:, :-shift])) < 5 / np.sqrt(z[:, shift:].size)


def test_lazy_equals_dense_to_rounding_where_every_row_is_read_in_every_iteration() -> None:
    # the addresses are the same, (iteration + 1, row), and then so are the draws
    optimizer = Sgd(learning_rate=0.7, schedule="linear", weight_decay=0.1)
    results = []
    for kind in MECHANISMS:
        array = np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 4)
        tables = _mechanism(kind, array, _update(optimizer))
        for t in range(STEPS):
            rows = np.array([t % 10, 9 - t % 3]) if t % 10 != 9 - t % 3 else np.array([t % 10])
            rows = np.sort(rows)
            tables.bring_up_to_date(np.arange(10))
            tables.step(KnownSums(rows, np.full((len(rows), 4), float(t))))
        tables.flush()
        results.append(array)
    np.testing.assert_allclose(results[0], results[1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", MECHANISMS)
def test_without_noise_the_update_is_the_reference_update(kind: type[TableMechanism]) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(12, 4)).astype(np.float32)
    expected = array.astype(np.float64)
    update = _update(stddev=0.0)
    tables = _mechanism(kind, array, update)
    for t in range(STEPS):
        rows = np.sort(rng.choice(12, rng.integers(0, 5), replace=False))
        gradient = np.zeros((12, 4))
        gradient[rows] = rng.normal(size=(len(rows), 4))
        if t % 2:  # a step brings its rows up to date by itself where nobody read them
            tables.bring_up_to_date(rows)
        tables.step(KnownSums(rows, gradient[rows]))
        expected = reference.dense_step(
            expected, gradient, np.zeros(1), update.rates[t], update.decays[t], DIVISOR
        )
    tables.flush()
    np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


def _exact(rates: Any, decays: Any, a: int, ends: range) -> list[Any]:
    """Variances of [a, b) for rising b, at 40 digits."""
    with mpmath.workdps(40):
        value, out = mpmath.mpf(0), []
        t = a
        for b in ends:
            while t < b:
                value = value * mpmath.mpf(float(decays[t])) ** 2 + mpmath.mpf(float(rates[t])) ** 2
                t += 1
            out.append(value)
        return out


def test_the_missed_variance_is_exact_at_both_ends_of_a_million_iterations() -> None:
    steps = 1_000_000
    rates = learning_rates("cosine", 0.5, steps)
    decays = 1.0 - rates * 0.01
    table = lazy.tabulate(rates**2, decays)
    worst = 0.0
    for a in [*range(70), *range(steps - 200, steps)]:
        ends = range(a + 1, min(a + 140, steps) + 1)
        for b, exact in zip(ends, _exact(rates, decays, a, ends), strict=True):
            worst = max(worst, abs(float(lazy.missed_variance(table, a, b) / exact) - 1))
    assert worst < 1e-6


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-6, 0.3])
def test_the_missed_variance_is_exact_for_long_intervals(
    schedule: Any, weight_decay: float
) -> None:
    steps = 9_001
    rates = learning_rates(schedule, 0.5, steps)
    decays = 1.0 - rates * weight_decay
    table = lazy.tabulate(rates**2, decays)
    rng = np.random.default_rng(0)
    edges = [0, 1, 63, 64, 65, 127, 128, 4096, 8191, 8192, steps - 1]
    for a in [*edges, *rng.integers(0, steps, 12).tolist()]:
        ends = sorted(
            {*(b for b in edges if b > a), *rng.integers(a + 1, steps + 1, 12).tolist(), steps}
        )
        for b, exact in zip(ends, _exact(rates, decays, a, ends), strict=True):
            assert float(lazy.missed_variance(table, a, b) / exact) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("step", [0, 1, 5, 4095, 4096, 9_000])
def test_looked_up_intervals_are_the_computed_ones(step: int) -> None:
    rates = learning_rates("cosine", 0.5, 9_000)
    decays = 1.0 - rates * 0.01
    table = lazy.tabulate(rates**2, decays)
    stddevs, products = np.full(lazy.RECENT, np.nan), np.full(lazy.RECENT, np.nan)
    lazy.recent_intervals(table, step, 0.3, stddevs, products)
    for k in range(min(lazy.RECENT, step + 1)):
        variance = lazy.missed_variance(table, step - k, step)
        assert stddevs[k] == pytest.approx(0.3 * np.sqrt(variance), rel=1e-10)
        assert products[k] == pytest.approx(np.prod(decays[step - k : step]), rel=1e-10)


@given(steps=st.integers(1, 700), data=st.data())
def test_the_missed_variance_composes(steps: int, data: Any) -> None:
    rates = learning_rates("cosine", 0.3, steps)
    decays = 1.0 - rates * 0.5
    table = lazy.tabulate(rates**2, decays)
    a, b, c = sorted(data.draw(st.tuples(*[st.integers(0, steps)] * 3)))
    decay = np.prod(decays[b:c] ** 2)
    whole = lazy.missed_variance(table, a, c)
    parts = lazy.missed_variance(table, a, b) * decay + lazy.missed_variance(table, b, c)
    assert parts == pytest.approx(whole, rel=1e-9)
    assert whole == pytest.approx(reference.missed_variance(rates, decays, a, c), rel=1e-9)


def recorder(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int, int, float]]:
    """Records (key, iteration, row, variance) of every lazy draw."""
    record: list[tuple[bytes, int, int, float]] = []
    original: Callable[..., None] = lazy.catch_up

    def recording(
        array: Any, history: Any, rows: Any, step: int, key: Any, scale: float, *rest: Any
    ) -> None:
        for row in rows:
            if history[row] < step:
                variance = scale**2 * lazy.missed_variance(rest[0], int(history[row]), step)
                record.append((key.tobytes(), step, int(row), variance))
        original(array, history, rows, step, key, scale, *rest)

    moving: Callable[..., None] = moves.move_rows

    def moved(array: Any, history: Any, rows: Any, sums: Any, move: moves.Move) -> None:
        for row in rows:
            assert history[row] == move.step - 1  # nothing older is missing when the gradient comes
            record.append((move.key.tobytes(), move.step, int(row), move.stddev**2))
        moving(array, history, rows, sums, move)

    monkeypatch.setattr(lazy, "catch_up", recording)
    monkeypatch.setattr(moves, "move_rows", moved)
    return record


def test_no_address_serves_two_draws_whatever_is_read_when(monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorder(monkeypatch)
    rng = np.random.default_rng(5)
    array = np.zeros((50, 4), np.float32)
    tables = _mechanism(LazyTables, array, _update())
    for _ in range(STEPS):
        for _ in range(rng.integers(0, 3)):
            if rng.random() < 0.2:
                tables.flush()
            else:
                tables.bring_up_to_date(rng.choice(50, 10, replace=False))
        rows = np.sort(rng.choice(50, rng.integers(0, 8), replace=False))
        tables.step(KnownSums(rows, np.ones((len(rows), 4))))
    tables.flush()
    tables.flush()
    addresses = [entry[:3] for entry in record]
    assert len(set(addresses)) == len(addresses)
    # and every row got all of its noise: variances chain up to the whole
    total = dict.fromkeys(range(50), (0, 0.0))
    update = _update()
    for _, step, row, variance in record:
        since, value = total[row]
        total[row] = (step, value * float(np.prod(update.decays[since:step] ** 2)) + variance)
    whole = update.noise_scale**2 * reference.missed_variance(update.rates, update.decays, 0, STEPS)
    assert all(value == (STEPS, pytest.approx(whole, rel=1e-9)) for value in total.values())


@pytest.mark.parametrize("kind", MECHANISMS)
def test_a_gradient_is_rounded_once_together_with_its_noise(kind: type[TableMechanism]) -> None:
    # Rounded before, a gradient below half a unit in the row's last place would be lost or count double: one
    # unit would move the sum by more than the clip norm.
    values = np.array([0.75, -0.3, 0.11, 0.5], np.float32)
    rows = np.array([3])
    for step in range(4):
        array = np.tile(values, (5, 1))
        update = _update(Sgd(learning_rate=1e-6), stddev=0.9)
        tables = _mechanism(kind, array, update)
        for _ in range(step):
            tables.step(KnownSums(np.zeros(0, np.int64), np.zeros((0, 4))))
        tables.bring_up_to_date(rows)
        before = array[3].astype(np.float64)
        sums = np.full((1, 4), 0.4)
        tables.step(KnownSums(rows, sums))
        draws = np.empty((1, 4), np.float32)
        fill_normals(tables._key, rows, step + 1, draws)
        gradient = -update.rates[step] / update.divisor * sums[0]
        noise = update.rates[step] * update.noise_scale * draws[0].astype(np.float64)
        exact = before + gradient - noise
        np.testing.assert_array_equal(array[3], exact.astype(np.float32))


def test_looking_intervals_up_or_computing_them_gives_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for recent in (lazy.RECENT, 3, 1):
        monkeypatch.setattr(lazy, "RECENT", recent)
        results.append(_train(LazyTables, (13,), seed=6)[STEPS])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-5, atol=1e-6)


def test_groups_and_runs_draw_different_noise() -> None:
    values = []
    for name, digest, seed in [("a", "x", 0), ("b", "x", 0), ("a", "y", 0), ("a", "x", 1)]:
        array = np.zeros((1000, 4), np.float32)
        tables = LazyTables(name, array, _update(), RunKeys(bytes([seed]) * 32, digest))
        tables.step(KnownSums(np.zeros(0, np.int64), np.zeros((0, 4))))
        tables.flush()
        values.append(array.ravel())
    correlation = np.corrcoef(values)
    assert np.all(np.abs(correlation[~np.eye(4, dtype=bool)]) < 5 / np.sqrt(4000))


@pytest.mark.parametrize("kind", MECHANISMS)
def test_no_iteration_beyond_the_schedule(kind: type[TableMechanism]) -> None:
    tables = _mechanism(kind, np.zeros((5, 4), np.float32), _update(steps=1))
    nothing = KnownSums(np.zeros(0, np.int64), np.zeros((0, 4)))
    tables.step(nothing)
    with pytest.raises(RunError, match="All 1 iterations"):
        tables.step(nothing)


def test_adam_on_tables_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="linear in the noise"):
        check_table_optimizer(Adam())
