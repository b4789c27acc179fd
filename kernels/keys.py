"""Keys of the random streams: one master key, one derived key per purpose and table.

An address is (purpose, table, iteration, row or block, word). Purpose and table select the key, the rest
is the counter and nonce of ChaCha20, so that any order of work draws the same numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import os

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32


def fresh_master_key() -> bytes:
    """32 bytes from the operating system's generator."""
    return os.urandom(KEY_BYTES)


def derive_key(master: bytes, *labels: str) -> NDArray[np.uint32]:
    """A ChaCha key for one purpose, by HMAC-SHA-256 of the labels under the master key.

    Args:
        master: 32 secret bytes (public for initialisation and splits).
        labels: the purpose and what narrows it, such as ("table_noise", "C1").

    Returns:
        uint32[8], little-endian words. Different label tuples give independent keys.

    References:
        Krawczyk 2010, HKDF (IACR 2010/264): HMAC as a pseudorandom function for key derivation.
    """
    message = b"".join(len(text := label.encode()).to_bytes(4, "little") + text for label in labels)
    digest = hmac.new(master, b"dpads.key.v1" + message, hashlib.sha256).digest()
    return np.frombuffer(digest, dtype="<u4").astype(np.uint32)
