"""The copy of a statement that may leave: nothing in it was read off private rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpads.accounting.limits import limitations_of
from dpads.accounting.sealing import sealed

_OPEN = ("public", "asserted_public")


def public_copy(data: Mapping[str, Any]) -> dict[str, Any]:
    """The public copy of a statement.

    Args:
        data: `GuaranteeStatement.data`.

    Returns:
        Data that the schema accepts, with digests of their own. A check whose only evidence was
        private says so. The number of units stays only where it is public, or asserted to be.

    Guarantees:
        - Claim level, headline and figures are the same.
    """
    definition = dict(data["definition"])
    if definition["adjacency"]["dataset_size_status"] not in _OPEN:
        definition["adjacency"] = {**definition["adjacency"], "dataset_size": None}
    copy = {
        **data,
        "visibility": "public",
        "definition": definition,
        "checks": [{**check, "evidence": _open(check)} for check in data["checks"]],
    }
    return sealed({**copy, "limitations": limitations_of(copy)})


def _open(check: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A check's evidence without what touches private data."""
    kept = [dict(item) for item in check["evidence"] if not item["touches_private_data"]]
    if kept or not check["evidence"]:
        return kept
    return [
        {
            "kind": "log",
            "ref": "the internal copy of this statement holds it",
            "touches_private_data": False,
        }
    ]
