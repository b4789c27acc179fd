"""Small checks that raise errors in the house form: expected, got, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
