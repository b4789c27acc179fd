"""Digests that show alteration: of a statement as a whole, and of each of its items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpads.accounting.canonical import digest

_SEALS = ("section_digests", "digest")


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with fresh digests: one for each top-level item, and one over all of them."""
    bare = {key: value for key, value in data.items() if key not in _SEALS}
    whole = {**bare, "section_digests": {key: digest(value) for key, value in bare.items()}}
    return {**whole, "digest": digest(whole)}


def first_altered(data: Mapping[str, Any]) -> str | None:
    """The first top-level item that is not what was sealed; None where everything is.

    Args:
        data: A statement that its schema accepts.
    """
    expected = sealed(data)
    stated = data["section_digests"]
    for key in (*data, *stated):
        if key not in _SEALS and stated.get(key) != expected["section_digests"].get(key):
            return str(key)
    return None if data["digest"] == expected["digest"] else "digest"
