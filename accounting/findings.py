"""What came of recomputing a claim: one finding per item, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpads.accounting.foreign import printable


@dataclass(frozen=True)
class Finding:
    """What came of recomputing one item.

    Attributes:
        item: Where it is: keys and positions from the outside in, joined by slashes.
        held: Whether it is what was recomputed.
        note: What was recomputed, or what differs.
    """

    item: str
    held: bool
    note: str

    def __post_init__(self) -> None:
        # Whoever wrote the file chose these texts: they are shown, and must not move a cursor.
        object.__setattr__(self, "item", printable(self.item))
        object.__setattr__(self, "note", printable(self.note))

    def __str__(self) -> str:
        return f"{self.item}: {self.note}"


@dataclass(frozen=True)
class Verification:
    """Everything that was recomputed, in order.

    Attributes:
        findings: One per item.

    Guarantees:
        - It is ok only where something was recomputed and all of it held.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return bool(self.findings) and self.first_failure is None

    @property
    def first_failure(self) -> Finding | None:
        """The first item that does not hold."""
        return next((finding for finding in self.findings if not finding.held), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for programs."""
        first = self.first_failure
        return {
            "ok": self.ok,
            "first_failure": None if first is None else str(first),
            "items": [
                {"item": found.item, "held": found.held, "note": found.note}
                for found in self.findings
            ],
        }
