"""The blocks of NIST SP 800-226's pyramid (March 2025), and where a statement answers each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def nist_view_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per block, top layer first; `where` is null for what is not addressed.

    Args:
        data: The statement's data; only what people supplied decides.
    """
    setting = data["dp_setting"]
    trusted = [party["party"] for party in setting["trusted_parties"]]
    control, collection = setting["access_control"], setting["data_collection"]
    return [
        _block(
            "top",
            "Epsilon and delta",
            "guarantees, accounting",
            "The parameters of the mechanism are stated too, and the whole profile over delta.",
        ),
        _block(
            "top",
            "Unit of privacy",
            "definition.unit_of_privacy, definition.adjacency",
            "With the rows that one user may contribute, or that nothing bounds them.",
        ),
        _block(
            "middle",
            "Algorithms and correctness",
            "mechanism, checks",
            "Each assumption with its basis, and the code and the tests behind it.",
        ),
        _block(
            "middle",
            "Utility",
            None,
            "Metrics are exact reads of held-out rows, so they stay out of the statement.",
        ),
        _block(
            "middle",
            "Bias",
            None,
            "Clipping and noise can cost rare groups more; the statement does not say how much.",
        ),
        _block(
            "bottom",
            "Access control and security",
            None if control is None else "dp_setting.access_control",
            "Only people can say it."
            if control is None
            else "As people say it; nothing of it is checked.",
        ),
        _block(
            "bottom",
            "Trust models",
            "dp_setting",
            "Central: whoever holds the raw log is trusted"
            + ("." if None not in trusted else ", and nobody said who that is."),
        ),
        _block(
            "bottom",
            "Side channels",
            "checks (noise.floating_point), limitations",
            "Bits of floats are addressed; timing, memory and error messages are not.",
        ),
        _block(
            "bottom",
            "Data collection exposure",
            None if collection is None else "dp_setting.data_collection",
            "Only people can say it. Differential privacy is no reason to collect more."
            if collection is None
            else "As people say it. Differential privacy is no reason to collect more.",
        ),
    ]


def _block(layer: str, block: str, where: str | None, note: str) -> dict[str, Any]:
    """One row."""
    return {"layer": layer, "block": block, "where": where, "note": note}
