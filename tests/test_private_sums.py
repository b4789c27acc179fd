"""Noisy sums over units: sensitivity, noise on every coordinate, the ledger before the rows, resumption."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from dpads.accounting import events
from dpads.accounting.ledger import Ledger
from dpads.accounting.releases import Release
from dpads.errors import ConfigError
from dpads.noise import RunKeys, public_grid
from dpads.private_sums import GRID_BITS, UnitVectors, add_clipped, noisy_sum, with_noise

COORDINATES = 7
BOUND = 1.5
RELEASE = Release(kind="dp_count", share=0.01, l2_clip_norm=BOUND, noise_multiplier=3.0)

Rows = list[tuple[int, float]]


def vectors(units: list[Rows]) -> UnitVectors:
    """Units, each a list of entries."""
    sizes = [len(rows) for rows in units]
    return UnitVectors(
        np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        np.array([place for rows in units for place, _ in rows], np.int64),
        np.array([value for rows in units for _, value in rows], np.float64),
    )


def sums_of(units: list[Rows], bound: float = BOUND) -> NDArray[np.int64]:
    sums = np.zeros(COORDINATES, np.int64)
    add_clipped(sums, vectors(units), bound)
    return sums


def exact_norm(whole: NDArray[np.int64]) -> float:
    """The norm over the bound, in whole numbers: nothing is rounded."""
    return math.sqrt(sum(int(v) ** 2 for v in whole)) / 2.0**GRID_BITS


def keys(master: bytes = b"k" * 32, digest: str = "aa") -> RunKeys:
    return RunKeys(master, digest)


ANY = st.floats(allow_nan=True, allow_infinity=True, width=64)
UNIT = st.lists(st.tuples(st.integers(0, COORDINATES - 1), ANY), max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(UNIT, max_size=6), UNIT, st.integers(0, 6), st.floats(1e-6, 1e6))
def test_one_unit_moves_the_sum_by_at_most_the_norm_bound(
    others: list[Rows], unit: Rows, place: int, bound: float
) -> None:
    with_unit = [*others[:place], unit, *others[place:]]
    moved = sums_of(with_unit, bound) - sums_of(others, bound)
    # In whole numbers of the grid: exactly, with no room for rounding.
    assert sum(int(v) ** 2 for v in moved) <= (1 << GRID_BITS) ** 2


@settings(max_examples=100, deadline=None)
@given(st.lists(UNIT, min_size=1, max_size=8), st.randoms())
def test_the_sum_does_not_depend_on_the_order_of_the_units(
    units: list[Rows], random: object
) -> None:
    shuffled = list(units)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(sums_of(units), sums_of(shuffled))
    apart = np.zeros(COORDINATES, np.int64)
    for unit in units:
        add_clipped(apart, vectors([unit]), BOUND)
    np.testing.assert_array_equal(apart, sums_of(units))


def test_a_unit_is_clipped_over_all_of_its_rows_together() -> None:
    # Five rows of norm 1 on one place are one vector of norm 5: cut to the bound, not five times to 1.
    assert exact_norm(sums_of([[(2, 1.0)] * 5])) == pytest.approx(1.0, abs=1e-8)
    # On five places the norm is sqrt(5), and every place keeps its share of it.
    whole = sums_of([[(place, 1.0) for place in range(5)]])
    assert exact_norm(whole) == pytest.approx(1.0, abs=1e-8)
    assert len(set(whole[:5].tolist())) == 1
    # Rows that cancel are merged before anything is measured.
    small = sums_of([[(0, 100.0), (0, -100.0), (1, 0.3)]])
    np.testing.assert_allclose(small[:2] * BOUND * 2.0**-GRID_BITS, [0.0, 0.3], atol=1e-8)


def test_a_vector_within_the_bound_is_left_as_it_is() -> None:
    whole = sums_of([[(0, 0.25), (3, -0.75)], [(3, 0.5)]])
    got = whole * BOUND * 2.0**-GRID_BITS
    np.testing.assert_allclose(got, [0.25, 0, 0, -0.25, 0, 0, 0], atol=3 * BOUND * 2.0**-GRID_BITS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_unit_that_is_not_finite_counts_as_nothing_and_changes_nobody(bad: float) -> None:
    other = [(0, 0.5), (4, 0.25)]
    np.testing.assert_array_equal(sums_of([other, [(1, bad), (0, 1.0)]]), sums_of([other]))


def test_a_place_outside_is_refused() -> None:
    with pytest.raises(ConfigError, match="7 coordinates"):
        sums_of([[(COORDINATES, 1.0)]])


def noise_of(release: Release, count: int) -> NDArray[np.float64]:
    """Noise on sums of nobody."""
    return with_noise(np.zeros(count, np.int64), release, keys())


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_every_coordinate_has_noise_of_the_accounted_scale(factor: float) -> None:
    """Coordinates that nobody has: the noise alone; a tenth more or less is told apart."""
    noise = noise_of(RELEASE, 200_000) / (factor * RELEASE.noise_multiplier * BOUND)
    assert np.count_nonzero(noise) > len(noise) * 0.99
    law = bool(stats.kstest(noise[:50_000], "norm").pvalue > 1e-4)
    variance = float(np.var(noise))
    right = factor == 1.0
    assert (abs(variance - 1.0) < 5.0 * math.sqrt(2.0 / len(noise))) is right
    assert law is right
    event = RELEASE.event()
    assert event == events.gaussian(RELEASE.noise_multiplier)
    # The accounted multiplier is never above what was drawn.
    assert event["noise_multiplier"] < RELEASE.noise_multiplier


def test_noise_of_coordinates_is_independent() -> None:
    noise = noise_of(RELEASE, 100_000)
    for lag in (1, 15, 16, 17):
        assert abs(np.corrcoef(noise[:-lag], noise[lag:])[0, 1]) < 5.0 / math.sqrt(len(noise))


def test_what_leaves_stands_on_the_public_grid() -> None:
    values = noise_of(RELEASE, 1000)
    grid = public_grid(RELEASE.noise_stddev)
    np.testing.assert_array_equal(values, np.rint(values / grid) * grid)


def release_of(units: list[Rows], ledger: Ledger, run_keys: RunKeys) -> NDArray[np.float64]:
    return noisy_sum(RELEASE, COORDINATES, run_keys, ledger, "A sum", lambda: [vectors(units)])


def test_the_entry_is_there_before_the_first_unit_is_read() -> None:
    ledger, seen = Ledger(), []

    def read() -> Iterator[UnitVectors]:
        seen.append([(e.kind, e.dp_event) for e in ledger.entries])
        yield vectors([[(0, 1.0)]])

    noisy_sum(RELEASE, COORDINATES, keys(), ledger, "A sum", read)
    assert seen == [[("dp_count", RELEASE.event())]]


def test_the_same_units_and_keys_give_the_same_release_and_one_entry() -> None:
    units, ledger = [[(0, 1.0)], [(1, 0.5), (2, 3.0)]], Ledger()
    first = release_of(units, ledger, keys())
    again = release_of(units, ledger, keys())
    np.testing.assert_array_equal(first, again)
    assert len(ledger.entries) == 1


def test_no_noise_serves_two_sums() -> None:
    """Under one key: other units, another release or another run draw noise of their own."""
    count = 4096
    base = np.zeros(count, np.int64)
    other = base.copy()
    other[17] = 1  # a unit that next to nothing can be seen of
    kind = dataclasses.replace(RELEASE, kind="recalibration")
    noises = [
        with_noise(base, RELEASE, keys()),
        with_noise(other, RELEASE, keys()),
        with_noise(base, kind, keys()),
        with_noise(base, RELEASE, keys(digest="bb")),
        with_noise(base, RELEASE, keys(master=b"l" * 32)),
    ]
    for number, one in enumerate(noises):
        for two in noises[:number]:
            assert abs(np.corrcoef(one, two)[0, 1]) < 5.0 / math.sqrt(count)


def test_large_vectors_get_the_noise_of_small_ones_in_front() -> None:
    """In stretches: what is drawn for a coordinate depends on its place alone."""
    sums = np.zeros((1 << 20) + 40, np.int64)
    noise = with_noise(sums, RELEASE, keys())
    assert np.unique(noise[-40:]).size == 40
    assert abs(np.corrcoef(noise[:40], noise[-40:])[0, 1]) < 0.9
