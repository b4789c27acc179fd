"""Pseudo-random keys of examples and users, by which rows are split and capped.

A key is a function of the seed, the user and what the row holds. It depends on no position and on
no other row, so that adding a row or a user moves nobody else to another side of a split. The seed
is public, and keys of 64 bits collide where somebody wants them to: what is counted to tell
identical rows apart are rows of one user, or rows that are equal under a secret key too.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from dpads.batch import SparseBatch

Keys = NDArray[np.uint64]

# The increment and the multipliers of SplitMix64 (Steele, Lea, Flood 2014, OOPSLA).
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def seeded(size: int, seed: int) -> Keys:
    """Keys before anything was absorbed, one per row.

    Args:
        size: number of rows.
        seed: any integer.

    Returns:
        uint64[size], all equal.
    """
    digest = hashlib.blake2b(f"dpads row key {seed}".encode(), digest_size=8).digest()
    return np.full(size, int.from_bytes(digest, "little"), np.uint64)


def absorb(keys: Keys, words: NDArray[np.generic]) -> Keys:
    """Keys that also depend on one more word each.

    Args:
        keys: uint64[n].
        words: n numbers of 32 or 64 bits, taken as their bits.
    """
    unsigned = words.view(np.uint32 if words.dtype.itemsize == 4 else np.uint64)
    return _mix(keys + _INCREMENT) ^ _mix(unsigned.astype(np.uint64) + _INCREMENT)


def content_keys(batch: SparseBatch, users: Keys | None, seed: int) -> Keys:
    """Keys of the rows' contents; identical rows have equal keys.

    Args:
        batch: n rows.
        users: uint64[n, 2], the users' keys, or None.
        seed: any integer.

    Returns:
        uint64[n].
    """
    keys = seeded(batch.num_examples, seed)
    columns: list[NDArray[np.generic]] = [] if users is None else list(users.T)
    columns += [*batch.scalar_ids.T, *batch.dense.T, batch.labels]
    columns += [part for part in (batch.weights, batch.exposure) if part is not None]
    for column in columns:
        keys = _mix(absorb(keys, np.ascontiguousarray(column)))
    for bag in batch.bags.values():
        lengths = np.diff(bag.offsets)
        place = np.arange(len(bag.values)) - np.repeat(bag.offsets[:-1], lengths)
        items = absorb(_mix(place.astype(np.uint64)), bag.values)
        if bag.weights is not None:
            items = absorb(items, bag.weights)
        # A sum modulo 2^64 over each bag; the items know their places.
        total = np.zeros(len(items) + 1, np.uint64)
        np.cumsum(_mix(items), out=total[1:])
        keys = _mix(absorb(keys, lengths))
        keys = _mix(absorb(keys, total[bag.offsets[1:]] - total[bag.offsets[:-1]]))
    return keys


def with_ordinals(keys: Keys, places: Keys) -> Keys:
    """Tells identical rows apart by how many came before.

    Args:
        keys: uint64[n].
        places: uint64[n], `ordinals` of the rows.

    Returns:
        uint64[n]; the set of keys of k identical rows is the same wherever they stand.
    """
    return _mix(absorb(keys, places))


def ordinals(*keys: NDArray[np.uint64] | NDArray[np.int64]) -> Keys:
    """How many rows that are equal to a row under all keys came before it.

    Args:
        keys: each n numbers. One of a user, or under a secret seed, keeps rows apart that only collide
            under a public one.

    Returns:
        uint64[n]
    """
    order = np.lexsort(keys)
    place = np.arange(len(order))
    starts = np.ones(len(order), np.bool_)
    if len(order):
        changes = [column[order][1:] != column[order][:-1] for column in keys]
        starts[1:] = np.logical_or.reduce(changes)
    found = np.empty(len(order), np.uint64)
    found[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
    return found


def smallest_of_each(keys: Keys, offsets: NDArray[np.int64], most: int) -> NDArray[np.bool_]:
    """Which rows are among the first of their user, in the order of their keys.

    Args:
        keys: uint64[n], equal where rows are identical.
        offsets: int64[users + 1], each user's rows.
        most: rows to choose of each user at most.

    Returns:
        bool[n]. Identical rows are told apart by their ordinals among the user's identical rows, so that no
        other user and no position matters, whatever collides.
    """
    sizes = np.diff(offsets)
    users = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((with_ordinals(keys, ordinals(keys, users)), users))
    place = np.arange(len(keys))
    chosen = np.empty(len(keys), np.bool_)
    chosen[order] = place - np.repeat(offsets[:-1], sizes) < most
    return chosen


def user_unit_keys(users: Keys, seed: int) -> Keys:
    """Keys of users.

    Args:
        users: uint64[u, 2], the users' 128-bit keys.
        seed: any integer.

    Returns:
        uint64[u].
    """
    keys = seeded(len(users), seed)
    for column in users.T:
        keys = _mix(absorb(keys, np.ascontiguousarray(column)))
    return keys


def in_stored_order(users: Keys) -> Keys:
    """User keys as numbers that rise in the order in which users are stored.

    Args:
        users: uint64[n, 2], the users' keys as they lie in a store.

    Returns:
        uint64[n, 2], the high half first.
    """
    return np.ascontiguousarray(users).view(">u8").astype(np.uint64)


def _mix(keys: Keys) -> Keys:
    """SplitMix64's finalizer: a bijection in which every bit depends on every bit."""
    keys = (keys ^ (keys >> np.uint64(30))) * _FIRST
    keys = (keys ^ (keys >> np.uint64(27))) * _SECOND
    return keys ^ (keys >> np.uint64(31))
