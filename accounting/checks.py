"""The assumptions of a guarantee: each a check with its basis, its result and its evidence.

The basis says why anybody should believe it, in falling strength:

* `enforced_by_code`: the wrong thing cannot be run; the evidence is code and a test.
* `verified`: measured or compared for this run; the evidence is the ledger or a test.
* `asserted_by_user`: a named person stands behind it ([statement] asserted_by).
* `declared_in_configuration`: the configuration says it and nobody signed. Whoever answers for
  the configuration answers for it; the claim is at most conditional, and the headline says that
  no name stands behind it.

`claim_level` is computed from the checks and can be typed nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dpads.accounting.evidence import Evidence, evidence_of


class ClaimLevel(StrEnum):
    """How much is claimed."""

    FORMAL = "formal"
    CONDITIONAL = "conditional"
    NONE = "none"


class Basis(StrEnum):
    """Why a check is believed."""

    ENFORCED = "enforced_by_code"
    VERIFIED = "verified"
    ASSERTED = "asserted_by_user"
    DECLARED = "declared_in_configuration"
    NOT_CHECKED = "not_checked"
    NOT_APPLICABLE = "not_applicable"


class Result(StrEnum):
    """What came of a check."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One assumption.

    Attributes:
        id: Its name, "<topic>.<what>".
        assumption: What is assumed, as a sentence.
        basis: Why it is believed.
        result: Whether it holds.
        effect_if_false: "invalidates", "weakens_quantified", "theoretical" or "negligible".
        load_bearing: Whether the guarantee stands on it.
        asserted_by: The person, where the basis is an assertion.
        note: What this run adds to the sentence.
        epsilon_added: What it costs, where that is a figure.
        evidence: What this run adds to the code and the tests behind the check.
        backends: What ran the mechanism of the runs that the check is of.
    """

    id: str
    assumption: str
    basis: Basis
    result: Result = Result.HOLDS
    effect_if_false: str = "invalidates"
    load_bearing: bool = True
    asserted_by: str | None = None
    note: str | None = None
    epsilon_added: float | None = None
    evidence: Sequence[Evidence] = field(default_factory=tuple)
    backends: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """The check as the schema has it."""
        found = [*evidence_of(self.id, self.backends), *self.evidence]
        values: dict[str, Any] = {
            "id": self.id,
            "assumption": self.assumption,
            "basis": str(self.basis),
            "result": str(self.result),
            "effect_if_false": self.effect_if_false,
            "load_bearing": self.load_bearing,
            "evidence": [evidence.to_dict() for evidence in found],
        }
        if self.epsilon_added is not None:
            values["cost"] = {"epsilon_added": self.epsilon_added}
        if self.asserted_by is not None:
            values["asserted_by"] = self.asserted_by
        if self.note is not None:
            values["note"] = self.note
        return values


def claim_level(checks: Sequence[Check]) -> ClaimLevel:
    """none, conditional or formal: the weakest load-bearing check decides.

    Guarantees:
        - A load-bearing check that is violated or unknown leaves no claim.
        - A load-bearing check that rests on people leaves a conditional claim at most.
    """
    bearing = [check for check in checks if check.load_bearing]
    if not bearing or any(c.result is not Result.HOLDS for c in bearing):
        return ClaimLevel.NONE
    if any(c.basis in (Basis.ASSERTED, Basis.DECLARED) for c in bearing):
        return ClaimLevel.CONDITIONAL
    return ClaimLevel.FORMAL
