"""The normals of `gaussian.py` in JAX: the same ChaCha20 words at the same addresses, in float32 throughout.

The cipher runs on whole rows of its 4 x 4 state: one quarter round on four arrays is four quarter rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from numpy.typing import NDArray

CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
DOUBLE_ROUNDS = 10  # 20 rounds: the full cipher of RFC 8439
WORDS = 16  # of a block
NORMALS_PER_ROW = 16  # of a flat vector
REFINED = 1 << 20  # first words below this take a second one
MIDDLE = 1 << 31  # the second word of the others
BLOCKS_AT_A_TIME = 128  # on a CPU: states that stay in the first-level cache
# XLA makes one kernel of such a call on a CPU, where it would else make one of each line, and start each.
# Words are the same without: it is a matter of speed alone.
ONE_KERNEL = {"xla_cpu_small_call": "true", "inlineable": "false"}
# Normals / this is how many rows take second words at a time; one normal in 8192 needs them.
REFINED_SHARE = 2048
ROOT = 0xB504F333  # sqrt(2) * 2^31
_metadata: Any = set_xla_metadata  # JAX has no types for it
LOG_2 = np.float32(0.6931471805599453)
TURN = np.float32(1.4629180792671596e-09)  # 2 pi / 2^32


def step_words(step: int) -> NDArray[np.uint32]:
    """An iteration as two words of an address, low one first, uint32[2]."""
    return np.array([step & 0xFFFFFFFF, step >> 32], np.uint32)


def _rotate(word: jax.Array, places: int) -> jax.Array:
    """Rotates 32-bit words left."""
    return (word << np.uint32(places)) | (word >> np.uint32(32 - places))


def _quarter_rounds(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Quarter rounds on every column of four rows."""
    a = a + b
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a = a + b
    d = _rotate(d ^ a, 8)
    c = c + d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


def _double_round(
    _: int, state: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A round on the columns and one on the diagonals, which turning the rows makes columns."""
    a, b, c, d = _quarter_rounds(*state)
    b, c, d = (jnp.roll(row, -by, axis=0) for row, by in ((b, 1), (c, 2), (d, 3)))
    a, b, c, d = _quarter_rounds(a, b, c, d)
    b, c, d = (jnp.roll(row, by, axis=0) for row, by in ((b, 1), (c, 2), (d, 3)))
    return a, b, c, d


def keystream(key: jax.Array, counters: jax.Array, nonces: jax.Array) -> jax.Array:
    """ChaCha20 blocks, uint32[16, n], as RFC 8439 section 2.3 defines them.

    Args:
        key: uint32[8], or uint32[n, 8], a key for each block.
        counters: uint32[n].
        nonces: uint32[3, n].
    """
    count = len(counters)
    a = jnp.broadcast_to(jnp.array(CONSTANTS, jnp.uint32)[:, None], (4, count))
    b, c = jnp.broadcast_to(key.T.reshape(2, 4, -1), (2, 4, count))
    d = jnp.concatenate([counters[None], nonces])
    state = lax.fori_loop(0, DOUBLE_ROUNDS, _double_round, (a, b, c, d))
    return jnp.concatenate(
        [after + before for after, before in zip(state, (a, b, c, d), strict=True)]
    )


def _row_blocks(key: jax.Array, rows: jax.Array, step: jax.Array, blocks: int) -> jax.Array:
    """The first blocks of every row, uint32[blocks * 16, n]."""
    count = len(rows)
    if key.ndim == 2:
        key = jnp.tile(key, (blocks, 1))
    counters = jnp.repeat(jnp.arange(blocks, dtype=jnp.uint32), count)
    low, high = (jnp.broadcast_to(word, (blocks * count,)) for word in (step[0], step[1]))
    words = keystream(key, counters, jnp.stack([jnp.tile(rows, blocks), low, high]))
    return words.reshape(WORDS, blocks, count).swapaxes(0, 1).reshape(blocks * WORDS, count)


def _radii(high: jax.Array, low: jax.Array) -> jax.Array:
    """sqrt(-2 log u) for u = (high + (low + 1/2) / 2^32) / 2^32, float32."""
    # the first words that are not zero, and how many zero bits went before
    none = high == 0
    neither = none & (low == 0)
    first = jnp.where(neither, np.uint32(MIDDLE), jnp.where(none, low, high))
    rest = jnp.where(neither, np.uint32(0), jnp.where(none, np.uint32(MIDDLE), low))
    skipped = jnp.where(neither, 64, jnp.where(none, 32, 0)).astype(jnp.int32)
    zeros = lax.clz(first)
    # u = mantissa * 2^-31 * 2^-(1 + skipped), the mantissa's first bit set
    mantissa = (first << zeros) | ((rest >> np.uint32(1)) >> (np.uint32(31) - zeros))
    skipped = skipped + zeros.astype(jnp.int32)
    # beyond sqrt(2) the mantissa counts from above, so that no digits are lost near u = 1
    above = mantissa > np.uint32(ROOT)
    distance = lax.bitcast_convert_type(
        jnp.where(above, np.uint32(0) - mantissa, mantissa - np.uint32(MIDDLE)), jnp.int32
    ).astype(jnp.float32)
    half = jnp.where(skipped == 0, np.float32(0.5), np.float32(0.0))
    d = jnp.where(above, (half - distance) * np.float32(2.0**-32), distance * np.float32(2.0**-31))
    exponent = jnp.where(above, -skipped, -skipped - 1).astype(jnp.float32)
    s = d / (d + np.float32(2.0))
    t = s * s
    poly = t * np.float32(1.0 / 9.0) + np.float32(1.0 / 7.0)
    poly = poly * t + np.float32(1.0 / 5.0)
    poly = poly * t + np.float32(1.0 / 3.0)
    s = s + s
    log = exponent * LOG_2 + (s + s * (t * poly))
    return jnp.sqrt(jnp.abs(np.float32(2.0) * log))


def _box_muller(high: jax.Array, low: jax.Array, turn: jax.Array) -> jax.Array:
    """Pairs of normals, float32[pairs, 2, n].

    Args:
        high: uint32[pairs, n], first words of the radii.
        low: uint32[pairs, n], second words.
        turn: uint32[pairs, n], angles.
    """
    radii = _radii(high, low)
    # quarter turns, and the rest as a signed fraction of half a quarter: exact in integers
    quarter = (turn + np.uint32(0x20000000)) >> np.uint32(30)
    rest = lax.bitcast_convert_type(turn - (quarter << np.uint32(30)), jnp.int32)
    x = rest.astype(jnp.float32) * TURN
    t = x * x
    sine = t * np.float32(-1.9515296e-4) + np.float32(8.3321609e-3)
    sine = sine * t + np.float32(-1.6666655e-1)
    sine = x + x * (t * sine)
    cosine = t * np.float32(2.4433157e-5) + np.float32(-1.3887316e-3)
    cosine = cosine * t + np.float32(4.1666646e-2)
    cosine = np.float32(1.0) + t * (cosine * t - np.float32(0.5))
    swap = (quarter & np.uint32(1)) != 0
    first, second = jnp.where(swap, sine, cosine), jnp.where(swap, cosine, sine)
    # over the quarters the sign of the cosine is + - - +, that of the sine + + - -
    first = jnp.where(((quarter + np.uint32(1)) & np.uint32(2)) != 0, -first, first)
    second = jnp.where((quarter & np.uint32(2)) != 0, -second, second)
    return jnp.stack([radii * first, radii * second], axis=1)


def _in_rows(normals: jax.Array, dim: int) -> jax.Array:
    """float32[..., pairs, 2, n] as float32[..., n, dim]."""
    *outer, pairs, _, count = normals.shape
    return normals.reshape(*outer, 2 * pairs, count)[..., :dim, :].swapaxes(-1, -2)


def _own(key: jax.Array, whose: jax.Array | None) -> jax.Array:
    """The one key, or that of each row."""
    return key if whose is None else key.at[whose].get(mode="clip")


def _in_one_kernel(key: jax.Array, rows: jax.Array, step: jax.Array, blocks: int) -> jax.Array:
    """`_row_blocks` on a CPU."""
    with _metadata(**ONE_KERNEL):
        words: jax.Array = _called(key, rows, step, blocks)
        return words


_called = jax.jit(_row_blocks, static_argnums=3)


def _coarse(
    key: jax.Array,
    whose: jax.Array | None,
    rows: jax.Array,
    step: jax.Array,
    dim: int,
    blocks_of: Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array] = _row_blocks,
) -> tuple[jax.Array, jax.Array]:
    """Normals without second words, float32[pairs, 2, n], and which rows need some, bool[n]."""
    pairs = -(-dim // 2)
    words = blocks_of(_own(key, whose), rows, step, -(-2 * pairs // WORDS))[: 2 * pairs]
    high, turn = words[0::2], words[1::2]
    normals = _box_muller(high, jnp.full_like(high, MIDDLE), turn)
    return normals, jnp.min(high, axis=0) < REFINED


def _fine(key: jax.Array, rows: jax.Array, step: jax.Array, dim: int) -> jax.Array:
    """Normals with second words where the first ones are small, float32[n, dim]."""
    pairs = -(-dim // 2)
    blocks = -(-2 * pairs // WORDS)
    words = _row_blocks(key, rows, step, blocks + -(-pairs // WORDS))
    high, turn = words[0 : 2 * pairs : 2], words[1 : 2 * pairs : 2]
    lows = words[blocks * WORDS :][:pairs]
    lows = jnp.where(high < REFINED, lows, np.uint32(MIDDLE))
    return _in_rows(_box_muller(high, lows, turn), dim)


def _at_once(
    key: jax.Array, whose: jax.Array | None, rows: jax.Array, step: jax.Array, dim: int
) -> tuple[jax.Array, jax.Array]:
    """`_coarse` of all rows, the normals float32[n, dim]."""
    normals, refine = _coarse(key, whose, rows, step, dim)
    return _in_rows(normals, dim), refine


def _in_pieces(
    key: jax.Array, whose: jax.Array | None, rows: jax.Array, step: jax.Array, dim: int
) -> tuple[jax.Array, jax.Array]:
    """The same, so many rows at a time that their states stay in a CPU's cache."""
    count = len(rows)
    # two at least: a loop of one turn would be undone
    pieces = max(-(-count * -(-dim // WORDS) // BLOCKS_AT_A_TIME), 2)
    size = -(-count // pieces)

    def pieces_of(values: jax.Array) -> jax.Array:
        """[n] as [pieces, size], zeros at the end."""
        return jnp.pad(values, (0, pieces * size - count)).reshape(pieces, size)

    # the normals change places outside the loop: fused with that, Box-Muller would not be vectorised
    normals, refine = lax.map(
        lambda some: _coarse(key, some[0], some[1], step, dim, _in_one_kernel),
        (None if whose is None else pieces_of(whose), pieces_of(rows)),
    )
    return _in_rows(normals, dim).reshape(-1, dim)[:count], refine.reshape(-1)[:count]


def row_normals(
    key: jax.Array,
    rows: jax.Array,
    step: jax.Array,
    dim: int,
    whose: jax.Array | None = None,
) -> jax.Array:
    """Standard normals of rows, float32[n, dim]; each depends on (key, step, row) alone.

    Args:
        key: uint32[8]; or uint32[k, 8], of which each row has one.
        rows: uint32[n], row addresses.
        step: uint32[2], from `step_words`.
        dim: normals per row.
        whose: int32[n], the row's key; None where there is one for all.

    Guarantees:
        - They are those of `gaussian.fill_normals` up to a few units in the last place.
    """
    count = len(rows)
    if count == 0:
        return jnp.zeros((0, dim), jnp.float32)
    rows = rows.astype(jnp.uint32)
    normals, refine = lax.platform_dependent(
        key, whose, rows, step, cpu=partial(_in_pieces, dim=dim), default=partial(_at_once, dim=dim)
    )
    size = min(-(-count * dim // REFINED_SHARE), count)

    def refined(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        normals, refine = state
        (at,) = jnp.nonzero(refine, size=size, fill_value=count)
        own = None if whose is None else whose.at[at].get(mode="clip")
        found = _fine(_own(key, own), rows.at[at].get(mode="clip"), step, dim)
        return normals.at[at].set(found, mode="drop"), refine.at[at].set(False, mode="drop")

    # one turn nearly always: the few rows with a long radius fit
    state: tuple[jax.Array, jax.Array] = lax.while_loop(
        lambda state: jnp.any(state[1]), refined, (normals, refine)
    )
    return state[0]
