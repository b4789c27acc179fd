"""Noise in JAX: the words of RFC 8439, the normals of the numba kernels, and the moves that draw them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpads.kernels import chacha, gaussian, jax_moves, jax_random, lazy, reference
from dpads.kernels.gaussian import fill_normals
from dpads.kernels.jax_random import step_words
from dpads.kernels.moves import Move, move_others
from dpads.kernels.moves import move_rows as numba_move_rows

KEY = np.frombuffer(bytes(range(32)), "<u4").copy()
OTHER_KEY = KEY[::-1].copy()
row_normals = jax.jit(jax_random.row_normals, static_argnums=3)


def numba_normals(rows: np.ndarray, step: int, dim: int, key: np.ndarray = KEY) -> np.ndarray:
    out = np.empty((len(rows), dim), np.float32)
    fill_normals(key, rows.astype(np.int64), step, out)
    return out


def assert_equal_normals(found: Any, expected: np.ndarray) -> None:
    """To a few units in the last place: of the number, and of its pair's radius near 0."""
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("counter", [0, 1, 2**32 - 1])
def test_words_are_those_of_chacha20(counter: int) -> None:
    rng = np.random.default_rng(counter)
    nonces = rng.integers(0, 2**32, (3, 5), dtype=np.uint32)
    counters = np.full(5, counter, np.uint32)
    found = jax.jit(jax_random.keystream)(KEY, counters, nonces)
    for lane in range(5):
        expected = chacha.block(KEY, counter, tuple(int(word) for word in nonces[:, lane]))
        np.testing.assert_array_equal(found[:, lane], expected)


def test_rfc8439_block_function_section_2_3_2() -> None:
    nonce = np.array([[0x09000000], [0x4A000000], [0x00000000]], np.uint32)
    found = jax.jit(jax_random.keystream)(KEY, np.array([1], np.uint32), nonce)
    expected = (
        "e4e7f110 15593bd1 1fdd0f50 c47120a3 c7f4d1c7 0368c033 9aaa2204 4e6cd4c3 "
        "466482d2 09aa9f07 05d7c214 a2028bd9 d19c12b5 b94e16de e883d0cb 4e3c50a2"
    )
    assert [f"{int(word):08x}" for word in found[:, 0]] == expected.split()


@pytest.mark.parametrize(
    ("dim", "x64"), [(1, True), (3, True), (16, False), (16, True), (17, True), (40, True)]
)
def test_normals_are_numbas(dim: int, x64: bool) -> None:
    # enough rows for second words; addresses up to the last one; steps beyond 32 bits
    rows = np.random.default_rng(dim).integers(0, 2**32, 3000, dtype=np.uint32)
    rows[:3] = [0, 2**32 - 1, 2**31]
    for step in (0, 3, 2**32 + 3, 2**63 - 1):
        with jax.enable_x64(x64):
            found = row_normals(KEY, rows, step_words(step), dim)
        assert found.dtype == np.float32
        assert_equal_normals(found, numba_normals(rows, step, dim))


@pytest.mark.parametrize("dim", [1, 17])
def test_devices_that_draw_all_rows_at_once_draw_the_same(dim: int) -> None:
    rows = np.arange(1000, dtype=np.uint32)
    both = [
        jax.jit(partial(draw, dim=dim))(KEY, None, rows, step_words(6))
        for draw in (jax_random._at_once, jax_random._in_pieces)
    ]
    assert_equal_normals(both[0][0], np.asarray(both[1][0]))
    np.testing.assert_array_equal(both[0][1], both[1][1])


def test_long_radii_take_second_words() -> None:
    # among a million pairs some 250 are refined, the longest of them beyond what 32 bits can tell
    rows = np.arange(1 << 16, dtype=np.uint32)
    found, expected = row_normals(KEY, rows, step_words(1), 32), numba_normals(rows, 1, 32)
    radii = np.hypot(expected[:, 0::2], expected[:, 1::2])
    assert (radii > 4.08).sum() > 100
    assert_equal_normals(found, expected)
    refined = radii > 4.2
    of_jax = np.hypot(np.asarray(found)[:, 0::2], np.asarray(found)[:, 1::2])
    np.testing.assert_allclose(of_jax[refined], radii[refined], rtol=1e-6)


def test_more_long_radii_than_fit_at_once_are_taken_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = np.arange(1 << 14, dtype=np.uint32)
    expected = numba_normals(rows, 2, 16)
    monkeypatch.setattr(jax_random, "REFINED_SHARE", 1 << 16)  # four rows a turn, of some 32
    found = jax.jit(partial(jax_random.row_normals, dim=16))(KEY, rows, step_words(2))
    assert_equal_normals(found, expected)


@pytest.mark.parametrize(
    ("high", "low"),
    [(0, 0), (0, 1), (0, 2**31), (0, 2**32 - 1), (1, 0), (2**20 - 1, 7), (2**20, 2**31)]
    + [(high, 2**31) for high in (2**31, 0xB504F333, 0xB504F334, 2**32 - 2, 2**32 - 1)],
)
def test_radii_agree_with_library_functions(high: int, low: int) -> None:
    words = (np.array([high], np.uint32), np.array([low], np.uint32))
    from_above = float((2**64 - (high << 32) - low) - 0.5) * 2.0**-64  # 1 - u, without cancellation
    u = ((high << 32) + low + 0.5) * 2.0**-64
    log = np.log1p(-from_above) if high >= 2**31 else np.log(u)
    assert jax.jit(jax_random._radii)(*words)[0] == pytest.approx(np.sqrt(-2 * log), rel=5e-7)


def test_a_normal_depends_on_its_address_alone() -> None:
    rows = np.random.default_rng(0).permutation(5000).astype(np.uint32)
    whole = np.asarray(row_normals(KEY, rows, step_words(9), 16))
    some = np.asarray(row_normals(KEY, rows[:301], step_words(9), 16))
    np.testing.assert_array_equal(some, whole[:301])
    for key, step in ((OTHER_KEY, 9), (KEY, 10), (KEY, 9 + 2**32)):
        other = np.asarray(row_normals(key, rows, step_words(step), 16))
        assert abs(np.corrcoef(whole.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(whole.size)


def _table(rows: int, dim: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, dim)).astype(np.float32)


def catch_up(table: Any, touched: Any, stddevs: Any, decays: Any, key: Any, step: Any) -> Any:
    values = jax_moves.take_rows(table, touched)
    caught_up = jax_moves.caught_up(values, touched, stddevs, decays, key, step)
    return jax_moves.put_rows(table, touched, caught_up)


def move_rows(table: Any, touched: Any, *how: Any) -> Any:
    values = jax_moves.take_rows(table, touched)
    return jax_moves.put_rows(table, touched, jax_moves.moved_rows(values, touched, *how))


def move_all(table: Any, touched: Any, sums: Any, factor: Any, *how: Any) -> Any:
    """Every row, in two halves as two devices would; the touched ones by their sums."""
    moved = jax_moves.moved_rows(
        jax_moves.take_rows(table, touched), touched, sums, factor, *how[:4]
    )
    middle = len(table) // 3
    selected = how[4] if len(how) > 4 else None
    parts = []
    for first, end in ((0, middle), (middle, len(table))):
        own = None if selected is None else selected[first:end]
        parts.append(jax_moves.move_others(table[first:end], first, *how[:4], own))
    return jax_moves.put_rows(jax.numpy.concatenate(parts), touched, moved)


def _padded(touched: list[int], rows: int, size: int) -> np.ndarray:
    return np.array([*touched, *[rows] * (size - len(touched))], np.uint32)


@given(
    since=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    decay=st.sampled_from([1.0, 0.99]),
)
@settings(max_examples=30)
def test_rows_catch_up_as_in_numba(since: list[int], decay: float) -> None:
    rows, dim, step, scale = 40, 3, 30, 0.7
    rates = np.linspace(0.5, 0.1, 50)
    table = lazy.tabulate(rates**2, np.full(50, decay))
    touched = sorted(np.random.default_rng(len(since)).choice(rows, len(since), replace=False))
    history = np.full(rows, step, np.int32)
    history[touched] = since
    variances = [lazy.missed_variance(table, a, step) for a in since]
    stddevs, decays = scale * np.sqrt(variances), decay ** (step - np.array(since, np.float64))
    expected = _table(rows, dim)
    recent = np.empty(lazy.RECENT), np.empty(lazy.RECENT)
    lazy.recent_intervals(table, step, scale, *recent)
    lazy.catch_up(expected, history, np.array(touched), step, KEY, scale, table, *recent)
    for size in (12, 16):
        with jax.enable_x64(True):
            found = jax.jit(catch_up)(
                _table(rows, dim),
                _padded(touched, rows, size),
                np.pad(stddevs, (0, size - len(since))),
                np.pad(decays, (0, size - len(since)), constant_values=1.0),
                KEY,
                step_words(step),
            )
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
        current = np.ones(rows, bool)
        current[[row for row, a in zip(touched, since, strict=True) if a < step]] = False
        np.testing.assert_array_equal(np.asarray(found)[current], _table(rows, dim)[current])


@pytest.mark.parametrize("stddev", [None, 0.3])
@pytest.mark.parametrize("dim", [1, 16])
def test_rows_move_as_in_numba(dim: int, stddev: float | None) -> None:
    rows, touched = 50, [0, 3, 7, 49]
    sums = np.random.default_rng(5).normal(size=(6, dim))
    move = Move(factor=-0.01, decay=0.9, stddev=stddev or 0.0, step=4, key=KEY)
    expected, history = _table(rows, dim), np.zeros(rows, np.int32)
    numba_move_rows(expected, history, np.array(touched), sums[:4], move)
    arguments = (_padded(touched, rows, 6), sums, -0.01, 0.9, stddev, KEY, step_words(4))
    with jax.enable_x64(True):
        moved = jax.jit(move_rows)(_table(rows, dim), *arguments)
        everything = jax.jit(move_all)(_table(rows, dim), *arguments)
    np.testing.assert_allclose(moved, expected, rtol=2e-6, atol=1e-6)
    others = np.setdiff1d(np.arange(rows), touched)
    np.testing.assert_array_equal(np.asarray(moved)[others], _table(rows, dim)[others])
    move_others(expected, np.array(touched), move)
    np.testing.assert_allclose(everything, expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(everything)[touched], np.asarray(moved)[touched])


def test_every_row_moves_once_wherever_the_table_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, dim, selected = 50, 3, np.arange(50) % 3 > 0
    sums, touched = np.ones((2, dim)), _padded([1, 40], rows, 2)
    found = []
    for size, chosen in ((1 << 16, None), (16, None), (16, selected)):
        monkeypatch.setattr(jax_moves, "ROWS_AT_A_TIME", size)
        with jax.enable_x64(True):
            moved = jax.jit(partial(move_all))(
                _table(rows, dim), touched, sums, -0.1, 0.9, 0.2, KEY, step_words(1), chosen
            )
        found.append(np.asarray(moved))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2][~selected], _table(rows, dim)[~selected])
    np.testing.assert_array_equal(found[2][selected], found[0][selected])


def test_lazy_noise_and_gradients_reach_a_row_as_in_the_dense_reference() -> None:
    # the row misses iterations 0 to 2, is read and moved in 3, then misses nothing
    rates, decays, divisor, scale = np.array([0.5, 0.4, 0.3, 0.2]), np.full(4, 0.95), 8.0, 0.25
    start, gradient = _table(1, 2), np.array([[3.0, -1.0]])
    missed = lazy.missed_variance(lazy.tabulate(rates**2, decays), 0, 3)
    with jax.enable_x64(True):
        touched = np.zeros(1, np.uint32)
        read = jax.jit(jax_moves.caught_up)(
            start,
            touched,
            np.array([scale * missed**0.5]),
            np.array([np.prod(decays[:3])]),
            KEY,
            step_words(3),
        )
        found = jax.jit(jax_moves.moved_rows)(
            read, touched, gradient, -0.2 / divisor, 0.95, 0.2 * scale, KEY, step_words(4)
        )
    noise = [numba_normals(np.zeros(1, np.int64), t, 2).astype(np.float64) for t in (3, 4)]
    expected = np.prod(decays[:3]) * start.astype(np.float64) - scale * missed**0.5 * noise[0]
    np.testing.assert_allclose(read, expected, rtol=1e-6)
    last = reference.dense_step(expected, gradient, scale * divisor * noise[1], 0.2, 0.95, divisor)
    np.testing.assert_allclose(found, last, rtol=1e-6)


def test_a_gradient_and_its_noise_are_rounded_once() -> None:
    # beside a large row a small gradient is lost; with noise of the row's size it counts again
    row, touched = np.full((1, 1), 2.0**24, np.float32), np.zeros(1, np.uint32)
    with jax.enable_x64(True):
        move = jax.jit(jax_moves.moved_rows)
        normal = float(row_normals(KEY, touched, step_words(1), 1)[0, 0])
        stddev = (2.0**24 - 0.4375) / normal
        found = move(row, touched, np.full((1, 1), 0.4375), 1.0, 1.0, stddev, KEY, step_words(1))
    assert float(found[0, 0]) == pytest.approx(0.875, rel=1e-6)


def test_tables_are_moved_in_place() -> None:
    rows, dim = 1000, 4
    table = jax.numpy.asarray(_table(rows, dim))
    before = table.unsafe_buffer_pointer()
    with jax.enable_x64(True):
        arguments = (
            _padded([5, 9], rows, 4),
            np.ones((4, dim)),
            -0.1,
            1.0,
            0.5,
            KEY,
            step_words(1),
        )
        moved = jax.jit(move_rows, donate_argnums=0)(table, *arguments)
    assert moved.unsafe_buffer_pointer() == before
    assert table.is_deleted()


def test_noisy_means_are_numbas() -> None:
    rng = np.random.default_rng(0)
    sums = {
        "a": rng.normal(0, 3, (7, 9)),
        "b": rng.normal(0, 3, 5),
        "c": rng.normal(0, 3, (64, 30)),
    }
    keys = {"a": KEY, "b": OTHER_KEY, "c": KEY + np.uint32(1)}
    stddev, grid, divisor = 2.0, 2.0**-9, 37.0
    with jax.enable_x64(True):
        found = jax.jit(jax_moves.noisy_means)(sums, keys, step_words(5), stddev, grid, divisor)
        assert jax_moves.noisy_means({}, {}, step_words(5), stddev, grid, divisor) == {}
    for name, total in sums.items():
        expected = np.empty(total.size, np.float32)
        flat = total.reshape(-1)
        gaussian.noisy_mean(flat, 0, keys[name], 5, stddev, grid, divisor, expected)
        assert (found[name].shape, found[name].dtype) == (total.shape, np.float32)
        steps = np.asarray(found[name], np.float64).reshape(-1) * divisor / grid
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        # a number on the edge between two steps may go either way
        off = np.abs(steps - expected.astype(np.float64) * divisor / grid)
        assert off.max() < 1.001
        assert (off > 0.5).mean() < 0.01
