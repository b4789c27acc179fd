"""Words and numbers as statements write them for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

RELATION_WORDS: Mapping[str, str] = {
    "add_or_remove_one": "adding or removing one",
    "zero_out": "replacing one by an empty one (zero-out)",
    "replace_one": "replacing one by another",
}

TIER_WORDS: Mapping[str, str] = {
    "tier1_eps_le_1": "Tier 1 (strong)",
    "tier2_eps_le_10": "Tier 2 (reasonable)",
    "tier3_eps_gt_10": "Tier 3 (weak)",
}


def number(value: float) -> str:
    """A delta or another small number as people write it: 1e-6, not 1e-06."""
    return f"{value:g}".replace("e-0", "e-")


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence.

    Examples:
        >>> listed(["a"]), listed(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
