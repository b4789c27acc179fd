"""Poisson sampling in time proportional to the draw.

Units are numbered globally and cut into blocks of 2^16. Within a block the gaps between chosen units are
geometric, and gap sampling restarts in every block, so that any shard or thread that owns a block draws the
same coins. A coin has the address (key, iteration, block, number of the gap).
"""

from __future__ import annotations

import numpy as np
from numba import float64, njit, uint32
from numpy.typing import NDArray

from dpads.kernels.chacha import LANES, WORDS, keystream, set_key

BLOCK_UNITS = 1 << 16


@njit(cache=True, nogil=True)
def poisson_units(
    key: NDArray[np.uint32],
    iteration: int,
    sampling_prob: float,
    num_units: int,
    first: int,
    last: int,
) -> NDArray[np.int64]:
    """Chooses each of `num_units` units independently with probability `sampling_prob`.

    Args:
        key: uint32[8].
        iteration: of the address, below 2^32.
        sampling_prob: in (0, 1].
        num_units: number of units; 0 gives an empty draw.
        first: only units from this one on are returned, and only their blocks are drawn.
        last: only units before this one, likewise; at most num_units.

    Returns:
        int64[k], rising, possibly empty.
    """
    initial = np.empty(WORDS * LANES, np.uint32)
    words = np.empty(WORDS * LANES, np.uint32)
    set_key(initial, key)
    chosen = np.empty(64, np.int64)
    count = 0
    log_miss = np.log1p(-sampling_prob) if sampling_prob < 1.0 else -np.inf
    for block in range(first // BLOCK_UNITS, (last + BLOCK_UNITS - 1) // BLOCK_UNITS):
        base = block * BLOCK_UNITS
        size = min(BLOCK_UNITS, num_units - base)
        for lane in range(LANES):
            initial[13 * LANES + lane] = uint32(block)
            initial[14 * LANES + lane] = uint32(iteration)
            initial[15 * LANES + lane] = uint32(iteration >> 32)
        counter = 0
        word = WORDS * LANES
        position = -1
        while True:
            if word == WORDS * LANES:
                for lane in range(LANES):
                    initial[12 * LANES + lane] = uint32(counter + lane)
                keystream(initial, words, 0)
                counter += LANES
                word = 0
            high = float64(words[word] >> uint32(5))
            low = float64(words[word + 1] >> uint32(6))
            word += 2
            uniform = (high * 67108864.0 + low + 1.0) * 2.0**-53  # 53 bits in (0, 1]
            gap = np.floor(np.log(uniform) / log_miss)
            if gap >= size - 1 - position:
                break
            position += 1 + int(gap)
            if not first <= base + position < last:
                continue
            if count == len(chosen):
                larger = np.empty(2 * count, np.int64)
                larger[:count] = chosen
                chosen = larger
            chosen[count] = base + position
            count += 1
    return chosen[:count].copy()


@njit(cache=True, nogil=True)
def draw_words(key: NDArray[np.uint32], iteration: int, count: int) -> NDArray[np.uint32]:
    """Independent, uniform words, uint32[count]: the stream of (key, iteration).

    Args:
        key: uint32[8].
        iteration: of the address.
        count: how many; a shorter stream is the beginning of a longer one.
    """
    initial = np.empty(WORDS * LANES, np.uint32)
    words = np.empty(WORDS * LANES, np.uint32)
    set_key(initial, key)
    out = np.empty(count, np.uint32)
    for lane in range(LANES):
        initial[13 * LANES + lane] = uint32(0)
        initial[14 * LANES + lane] = uint32(iteration)
        initial[15 * LANES + lane] = uint32(iteration >> 32)
    for i in range(count):
        word = i % (WORDS * LANES)
        if word == 0:
            for lane in range(LANES):
                initial[12 * LANES + lane] = uint32(i // WORDS + lane)
            keystream(initial, words, 0)
        out[i] = words[word]
    return out
