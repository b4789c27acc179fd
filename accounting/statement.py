"""The guarantee statement: what is guaranteed about one model, as data first and text second.

A statement is filled from the plan, the ledger and the artifacts; people supply only what code
cannot know. It follows "How to DP-fy ML" (arXiv 2303.00654), section 5.3.3, and is validated by
the JSON Schema beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from dpads.accounting.checks import ClaimLevel
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.joint import JointRuns
from dpads.accounting.public import public_copy
from dpads.accounting.sealing import first_altered
from dpads.accounting.sections import Sections
from dpads.errors import VerificationError

__all__ = [
    "GuaranteeStatement",
    "StatementInputs",
    "check_schema",
    "joint_statement",
    "load_schema",
    "make_statement",
]


@dataclass(frozen=True)
class GuaranteeStatement:
    """What is guaranteed about one model: `data` follows the shipped JSON Schema.

    Attributes:
        data: Plain data, `digest` included.

    Guarantees:
        - The claim level and every figure are computed from the inputs, never typed.
        - At claim level "none" the headline shows no epsilon.
    """

    data: Mapping[str, Any]

    @property
    def claim_level(self) -> ClaimLevel:
        """formal, conditional or none."""
        return ClaimLevel(self.data["claim_level"])

    @property
    def headline(self) -> str:
        """The guarantee in one paragraph of plain text."""
        return str(self.data["headline"])

    @property
    def epsilon(self) -> float | None:
        """The headline's epsilon, rounded up; None where nothing is claimed."""
        for guarantee in self.data["guarantees"]:
            if guarantee["notion"] == "approx_dp" and not guarantee["hypothetical"]:
                return float(guarantee["value"]["epsilon"])
        return None

    @property
    def heads(self) -> tuple[str, ...]:
        """The digest of each run's ledger as it was when the statement was made."""
        return tuple(str(ledger["head"]) for ledger in self.data["ledgers"])

    def public(self) -> GuaranteeStatement:
        """The copy that may leave: without evidence that was read off private rows."""
        return _checked(public_copy(self.data))

    def to_json(self) -> str:
        """Readable JSON, in the schema's order."""
        return json.dumps(self.data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """The statement for people."""
        from dpads.accounting.rendering import to_markdown

        return to_markdown(self.data)

    def to_html(self) -> str:
        """The statement as one self-contained web page: no network, no script."""
        from dpads.accounting.page import to_html

        return to_html(self.data)

    @classmethod
    def from_json(cls, text: str | bytes) -> GuaranteeStatement:
        """Reads a statement that somebody wrote, checking its form and its digest.

        Raises:
            VerificationError: It is no statement of this schema version, or it was altered; the
                message names the item.
        """
        try:
            data = json.loads(text, parse_constant=_refused)
        except (ValueError, RecursionError):
            raise VerificationError(
                "Expected a statement in JSON, got something else. Use the statement.json of a run."
            ) from None
        check_schema(data)
        altered = first_altered(data)
        if altered is not None:
            raise VerificationError(
                f"{altered}: it is not what the statement's digests were made of. It was altered."
            )
        return cls(data)


def make_statement(
    inputs: StatementInputs, *, on_progress: Callable[[int, int], None] | None = None
) -> GuaranteeStatement:
    """The statement of one run.

    Args:
        inputs: The run as plain data.
        on_progress: Called with how much of a guarantee for users is computed, and of how much: it
            takes tens of seconds where users have several rows each, once per event.

    Returns:
        A statement whose data satisfies the shipped schema.
    """
    return joint_statement([inputs], on_progress=on_progress)


def joint_statement(
    runs: Sequence[StatementInputs], *, on_progress: Callable[[int, int], None] | None = None
) -> GuaranteeStatement:
    """The statement of several runs on the same rows, all of which may be looked at.

    Args:
        runs: The runs as plain data; the first one is in `subject` and `mechanism`.
        on_progress: As for `make_statement`.

    Returns:
        A statement whose figures compose everything that is covered on all ledgers, at the smallest
        delta of the runs.

    Raises:
        ConfigError: No runs, one of them twice, two of one private selection, or runs that differ in
            unit, relation, cap, public number of units or training rows; the message names the item.
    """
    return _checked(Sections(JointRuns(tuple(runs)), on_progress).to_dict())


def _refused(constant: str) -> None:
    """NaN and infinities are no JSON."""
    raise ValueError(constant)


def _checked(data: dict[str, Any]) -> GuaranteeStatement:
    """A statement of data that the schema accepts, as a reader of its JSON will see them."""
    plain = json.loads(json.dumps(data, allow_nan=False))
    check_schema(plain)
    return GuaranteeStatement(plain)


def check_schema(data: object) -> None:
    """A `VerificationError` that names the first item that is not as the schema has it."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(load_schema())
    errors = sorted(validator.iter_errors(data), key=lambda e: [str(p) for p in e.absolute_path])
    for error in errors[:1]:
        where = "/".join(str(part) for part in error.absolute_path) or "the statement"
        raise VerificationError(f"{where}: {error.message[:300]}")


def load_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a statement."""
    package = resources.files("dpads.accounting")
    text = (package / "guarantee-statement.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
