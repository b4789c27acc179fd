"""Small checks that raise errors in the house form: expected, got, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from dpads.errors import ConfigError


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known names, or nothing."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return " Did you mean " + " or ".join(f'"{c}"' for c in close) + "?"
    if names:
        shown = ", ".join(f'"{n}"' for n in names[:12])
        return f" Known: {shown}{', ...' if len(names) > 12 else ''}."
    return ""


def expect_kind(name: str, value: object, kind: Any, example: str) -> None:
    """Refuses a value of another class, as when a name stands for what it names.

    Args:
        name: of the argument.
        value: what was given.
        kind: the class that is wanted, or several.
        example: how to make one.

    Raises:
        ConfigError: it is of another class.
    """
    if isinstance(value, kind):
        return
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(item.__name__ for item in kinds)
    article = "an" if wanted[0] in "AEIOU" else "a"
    raise ConfigError(
        f"Expected {name} to be {article} {wanted}, got {type(value).__name__}. Pass {name}={example}."
    )
