"""One byte string per JSON value, so that equal data has equal digests on every machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_bytes(value: Any) -> bytes:
    """The canonical JSON of a value: sorted keys, no spaces, ASCII, shortest floats.

    Args:
        value: Anything made of dict (string keys), list, tuple, str, int, float, bool and None.

    Returns:
        ASCII bytes without a trailing newline.

    Raises:
        ValueError: The value holds an infinity or a NaN, which JSON does not have.

    Guarantees:
        - Equal values give equal bytes, whatever order their keys were inserted in.

    Examples:
        >>> canonical_bytes({"b": 1, "a": [0.1, None]})
        b'{"a":[0.1,null],"b":1}'
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )
    return text.encode("ascii")


def digest(value: Any) -> str:
    """The sha256 of a value's canonical JSON, as 64 hex digits.

    A digest detects alteration. It is not a signature: whoever alters the value can renew it.
    """
    return hashlib.sha256(canonical_bytes(value)).hexdigest()
