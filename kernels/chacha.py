"""ChaCha20 (RFC 8439), sixteen blocks side by side so that every operation is one vector instruction.

Lane layout: word w of lane l of a group stands at `state[w * LANES + l]`.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32
from numpy.typing import NDArray

LANES = 16
WORDS = 16
DOUBLE_ROUNDS = 10  # 20 rounds: the full cipher of RFC 8439


@njit(inline="always")
def _rotate(word: np.uint32, places: np.uint32) -> np.uint32:
    """Rotates a 32-bit word left; the casts keep numba from widening to 64 bits."""
    word = uint32(word)
    return uint32(uint32(word << places) | uint32(word >> uint32(uint32(32) - places)))


@njit(inline="always")
def _quarter_rounds(x: NDArray[np.uint32], a: int, b: int, c: int, d: int) -> None:
    """One quarter round on words a, b, c, d of every lane."""
    for lane in range(LANES):
        xa = uint32(x[a * LANES + lane] + x[b * LANES + lane])
        xd = _rotate(x[d * LANES + lane] ^ xa, uint32(16))
        xc = uint32(x[c * LANES + lane] + xd)
        xb = _rotate(x[b * LANES + lane] ^ xc, uint32(12))
        xa = uint32(xa + xb)
        xd = _rotate(xd ^ xa, uint32(8))
        xc = uint32(xc + xd)
        xb = _rotate(xb ^ xc, uint32(7))
        x[a * LANES + lane] = xa
        x[b * LANES + lane] = xb
        x[c * LANES + lane] = xc
        x[d * LANES + lane] = xd


@njit(cache=True, nogil=True)
def set_key(initial: NDArray[np.uint32], key: NDArray[np.uint32]) -> None:
    """Writes the constants and the key into the initial state of every lane."""
    for lane in range(LANES):
        initial[0 * LANES + lane] = uint32(0x61707865)
        initial[1 * LANES + lane] = uint32(0x3320646E)
        initial[2 * LANES + lane] = uint32(0x79622D32)
        initial[3 * LANES + lane] = uint32(0x6B206574)
        for word in range(8):
            initial[(4 + word) * LANES + lane] = key[word]


@njit(cache=True, nogil=True)
def keystream(initial: NDArray[np.uint32], out: NDArray[np.uint32], start: int) -> None:
    """Runs the block function on every lane.

    Args:
        initial: uint32[16 * LANES], states before the rounds.
        out: uint32[>= start + 16 * LANES]; words are written from `start` in lane layout.
        start: first index written.
    """
    x = out[start : start + WORDS * LANES]
    for i in range(WORDS * LANES):
        x[i] = initial[i]
    for _ in range(DOUBLE_ROUNDS):
        _quarter_rounds(x, 0, 4, 8, 12)
        _quarter_rounds(x, 1, 5, 9, 13)
        _quarter_rounds(x, 2, 6, 10, 14)
        _quarter_rounds(x, 3, 7, 11, 15)
        _quarter_rounds(x, 0, 5, 10, 15)
        _quarter_rounds(x, 1, 6, 11, 12)
        _quarter_rounds(x, 2, 7, 8, 13)
        _quarter_rounds(x, 3, 4, 9, 14)
    for i in range(WORDS * LANES):
        x[i] += initial[i]


def block(key: NDArray[np.uint32], counter: int, nonce: tuple[int, int, int]) -> NDArray[np.uint32]:
    """One ChaCha20 block, uint32[16], as RFC 8439 section 2.3 defines it."""
    initial = np.zeros(WORDS * LANES, np.uint32)
    out = np.zeros(WORDS * LANES, np.uint32)
    set_key(initial, key)
    for position, word in enumerate((counter, *nonce)):
        initial[(12 + position) * LANES] = word
    keystream(initial, out, 0)
    return out[::LANES].copy()
