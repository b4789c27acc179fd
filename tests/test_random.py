"""The generator: RFC 8439 vectors, the laws of uniforms and normals, addresses, and Poisson coins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from dpads.kernels import chacha, gaussian, poisson, workers
from dpads.kernels.keys import derive_key, fresh_master_key

KEY = np.frombuffer(bytes(range(32)), "<u4").copy()
MASTER = bytes(range(32))


def test_rfc8439_block_function_section_2_3_2() -> None:
    words = chacha.block(KEY, 1, (0x09000000, 0x4A000000, 0x00000000))
    expected = (
        "e4e7f110 15593bd1 1fdd0f50 c47120a3 c7f4d1c7 0368c033 9aaa2204 4e6cd4c3 "
        "466482d2 09aa9f07 05d7c214 a2028bd9 d19c12b5 b94e16de e883d0cb 4e3c50a2"
    )
    assert [f"{w:08x}" for w in words] == expected.split()


@pytest.mark.parametrize(
    ("key", "counter", "nonce", "stream"),
    [  # RFC 8439, appendix A.1, test vectors 1 to 5: the first 16 bytes of each block
        (bytes(32), 0, (0, 0, 0), "76b8e0ada0f13d90405d6ae55386bd28"),
        (bytes(32), 1, (0, 0, 0), "9f07e7be5551387a98ba977c732d080d"),
        (bytes(31) + b"\x01", 1, (0, 0, 0), "3aeb5224ecf849929b9d828db1ced4dd"),
        (b"\x00\xff" + bytes(30), 2, (0, 0, 0), "72d54dfbf12ec44b362692df94137f32"),
        (bytes(32), 0, (0, 0, 0x02000000), "c2c64d378cd536374ae204b9ef933fcd"),
    ],
)
def test_rfc8439_appendix_a1(
    key: bytes, counter: int, nonce: tuple[int, int, int], stream: str
) -> None:
    words = chacha.block(np.frombuffer(key, "<u4").copy(), counter, nonce)
    assert words.astype("<u4").tobytes()[:16].hex() == stream


def test_lanes_are_independent_blocks() -> None:
    initial = np.zeros(16 * chacha.LANES, np.uint32)
    out = np.zeros_like(initial)
    chacha.set_key(initial, KEY)
    for lane in range(chacha.LANES):
        initial[12 * chacha.LANES + lane] = lane * 3
        initial[13 * chacha.LANES + lane] = lane + 7
    chacha.keystream(initial, out, 0)
    for lane in range(chacha.LANES):
        one = chacha.block(KEY, lane * 3, (lane + 7, 0, 0))
        assert np.array_equal(out[lane :: chacha.LANES], one)


def test_keys_differ_by_purpose_and_do_not_join_labels() -> None:
    keys = {
        derive_key(MASTER, *labels).tobytes()
        for labels in [("a",), ("b",), ("a", "b"), ("ab",), ("a", ""), ("", "a"), ("a", "b", "")]
    }
    assert len(keys) == 7
    assert fresh_master_key() != fresh_master_key()


def _draws(count: int) -> np.ndarray:
    return gaussian.normals(derive_key(MASTER, "law"), 3, count).astype(np.float64)


def test_normals_have_the_moments_of_a_standard_gaussian_to_5_sd() -> None:
    n = 8_000_000
    z = _draws(n)
    # variances of the sample moments of order 1 to 4 of a standard normal: 1, 2, 15, 96
    for power, mean, variance in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)]:
        assert abs((z**power).mean() - mean) < 5 * np.sqrt(variance / n)
    for lag in (1, 2, 3, 16, 17):
        assert abs((z[lag:] * z[:-lag]).mean()) < 5 / np.sqrt(n)
    assert abs((z[::2] ** 2 * z[1::2] ** 2).mean() - 1) < 5 * np.sqrt(8 / (n / 2))


def test_normals_pass_kolmogorov_smirnov_and_a_wrong_scale_does_not() -> None:
    z = _draws(1_000_000)
    assert stats.kstest(z, "norm").pvalue > 1e-6
    assert stats.kstest(0.99 * z, "norm").pvalue < 1e-6


def test_normals_have_the_tail_of_a_gaussian() -> None:
    n = 40_000_000
    z = np.abs(_draws(n))
    for bound in (3.0, 4.0, 5.0):
        expected = n * 2 * stats.norm.sf(bound)
        assert abs((z > bound).sum() - expected) < 5 * np.sqrt(expected)


def test_the_radius_reaches_9_standard_deviations() -> None:
    # words of zeros are the smallest 64-bit uniform, 2^-65; words of ones the largest
    words, lows = np.zeros(2 * chacha.LANES, np.uint32), np.zeros(chacha.LANES, np.uint32)
    out = np.zeros(3 * chacha.LANES, np.float32)
    gaussian.lane_normals(words, lows, 1, out)
    assert out[0] == pytest.approx(np.sqrt(-2 * np.log(2.0**-65)), rel=1e-6)
    assert out[0] > 9.4
    words[: chacha.LANES] = lows[:] = 0xFFFFFFFF
    gaussian.lane_normals(words, lows, 1, out)
    assert np.all(np.isfinite(out))
    assert abs(out[0]) < 1e-7


def test_box_muller_agrees_with_library_functions() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 2 * chacha.LANES, dtype=np.uint32)
    lows = rng.integers(0, 2**32, chacha.LANES, dtype=np.uint32)
    for lane, (high, low) in enumerate([(0, 1), (0, 2**31), (1, 0), (2**32 - 1, 5), (2**31, 0)]):
        words[lane], lows[lane] = high, low
    out = np.zeros(3 * chacha.LANES, np.float32)
    gaussian.lane_normals(words, lows, 1, out)
    u, w = words.astype(np.float64).reshape(2, -1)
    radius = np.sqrt(-2 * np.log(u * 2.0**-32 + (lows + 0.5) * 2.0**-64))
    angle = 2 * np.pi * w * 2.0**-32
    cosines, sines, _ = out.reshape(3, -1)
    np.testing.assert_allclose(cosines, radius * np.cos(angle), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sines, radius * np.sin(angle), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 16, 17, 40])
def test_normals_are_those_of_the_words_at_their_address(dim: int) -> None:
    rows = np.arange(5000, dtype=np.int64)
    out = np.empty((len(rows), dim), np.float32)
    gaussian.fill_normals(KEY, rows, 3, out)
    pairs = -(-dim // 2)
    blocks = -(-2 * pairs // 16)
    # rows with a long radius somewhere, which take second words, and a few without
    long = [r for r in rows if np.abs(out[r]).max() > 4.0]
    assert len(long) > 0 or dim == 1
    for row in [*long[:20], *rows[:3]]:
        nonce = (int(row), 3, 0)
        words = np.concatenate([chacha.block(KEY, i, nonce) for i in range(blocks)])
        seconds = [chacha.block(KEY, blocks + i, nonce) for i in range(-(-pairs // 16))]
        lows = np.concatenate(seconds)[:pairs].astype(np.float64)
        highs, turns = words[: 2 * pairs : 2].astype(np.float64), words[1 : 2 * pairs : 2]
        lows[highs >= 2**20] = 2.0**31
        radius = np.sqrt(-2 * np.log(highs * 2.0**-32 + (lows + 0.5) * 2.0**-64))
        angle = 2 * np.pi * turns * 2.0**-32
        pairwise = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        np.testing.assert_allclose(out[row], pairwise.ravel()[:dim], rtol=1e-5, atol=1e-6)


def test_second_words_are_drawn_for_long_radii_whoever_shares_the_vector() -> None:
    # a row's draw must not change because its neighbours in the vector needed second words
    rows = np.arange(1 << 14, dtype=np.int64)
    together, alone = np.empty((len(rows), 2), np.float32), np.empty((1, 2), np.float32)
    gaussian.fill_normals(KEY, rows, 0, together)
    for row in np.flatnonzero(np.hypot(*together.T) > 3.9):
        for beside in (row - 1, row, row + 1):
            gaussian.fill_normals(KEY, rows[beside : beside + 1], 0, alone)
            np.testing.assert_array_equal(alone[0], together[beside])


@pytest.mark.parametrize("dim", [1, 2, 3, 10, 16, 17, 64])
def test_a_normal_depends_on_its_address_alone(dim: int) -> None:
    key = derive_key(MASTER, "address")
    rows = np.random.default_rng(dim).permutation(5000)[:3001]
    whole = np.empty((5000, dim), np.float32)
    gaussian.fill_normals(key, np.arange(5000), 9, whole)
    some = np.empty((len(rows), dim), np.float32)
    for number in (1, 3, None):
        workers.set_threads(number)
        gaussian.fill_normals(key, rows, 9, some)
        assert np.array_equal(some, whole[rows])
    later = np.empty((5000, dim), np.float32)
    gaussian.fill_normals(key, np.arange(5000), 9 + 2**32, later)
    assert abs(np.corrcoef(whole.ravel(), later.ravel())[0, 1]) < 5 / np.sqrt(5000 * dim)
    assert len(np.unique(whole)) > 0.99 * whole.size


def test_every_unit_joins_with_the_sampling_probability_independently() -> None:
    key = derive_key(MASTER, "coins")
    units, iterations, prob = 3 * poisson.BLOCK_UNITS + 11, 400, 0.01
    seen = np.zeros(units)
    sizes = []
    for t in range(iterations):
        chosen = poisson.poisson_units(key, t, prob, units, 0, units)
        assert np.all(np.diff(chosen) > 0)
        assert chosen.min() >= 0
        assert chosen.max() < units
        seen[chosen] += 1
        sizes.append(len(chosen))
    mean, variance = units * prob, units * prob * (1 - prob)
    assert abs(np.mean(sizes) - mean) < 5 * np.sqrt(variance / iterations)
    assert abs(np.var(sizes, ddof=1) / variance - 1) < 5 * np.sqrt(2 / iterations)
    # the ends of blocks are like any other place
    for edge in (0, 1, poisson.BLOCK_UNITS - 1, poisson.BLOCK_UNITS, units - 1):
        assert stats.binomtest(int(seen[edge]), iterations, prob).pvalue > 1e-6
    counts = np.bincount(seen.astype(int), minlength=12)[:12]
    expected = units * stats.binom.pmf(np.arange(12), iterations, prob)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected + 1))


@pytest.mark.parametrize("prob", [0.3, 0.999, 1.0, 1e-9])
def test_gaps_are_right_at_extreme_probabilities(prob: float) -> None:
    key = derive_key(MASTER, "extreme")
    units = 200_000
    draws = [len(poisson.poisson_units(key, t, prob, units, 0, units)) for t in range(20)]
    total = 20 * units
    assert abs(sum(draws) - total * prob) <= 5 * np.sqrt(total * prob * (1 - prob)) + 1e-9
    assert len(poisson.poisson_units(key, 0, prob, 0, 0, 0)) == 0


@pytest.mark.parametrize("cuts", [(0,), (65_536,), (1, 70_000, 70_000, 131_072, 196_607)])
def test_shards_draw_the_coins_of_their_own_units(cuts: tuple[int, ...]) -> None:
    # a log cut anywhere draws the same units: coins have the address of the global block
    key, units = derive_key(MASTER, "shard"), 3 * poisson.BLOCK_UNITS
    whole = poisson.poisson_units(key, 5, 0.02, units, 0, units)
    bounds = [0, *cuts, units]
    parts = [
        poisson.poisson_units(key, 5, 0.02, units, first, last)
        for first, last in itertools.pairwise(bounds)
    ]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, poisson.poisson_units(key, 6, 0.02, units, 0, units))
