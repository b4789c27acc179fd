"""Every use of private data and how it relates to the guarantee: item 2a of section 5.3.3.

"How to DP-fy ML" (arXiv 2303.00654) asks which uses of the data a guarantee covers and which not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpads.accounting.inputs import StatementInputs
from dpads.accounting.ledger import LedgerEntry

_STAGES: Mapping[str, str] = {
    "training": "training",
    "dp_count": "class_prior_or_bias_init",
    "selection": "vocabulary_or_hashing",
    "recalibration": "calibration_layer",
    "tuning": "hyperparameter_tuning",
    "evaluation": "evaluation",
    "reference": "reference_training",
    "unplanned_read": "monitoring_and_logs",
    "upstream": "filtering_or_downsampling",
}

_TUNING: Mapping[str | None, tuple[str, str]] = {
    None: (
        "not_covered",
        (
            "How columns, clip constants, buckets and hyperparameters were chosen. Nobody declared "
            "it, so a look at these rows cannot be ruled out."
        ),
    ),
    "none": (
        "data_independent",
        "Columns, clip constants, buckets and hyperparameters were fixed without a look at these rows.",
    ),
    "public_data": (
        "public_data_only",
        "Columns, clip constants, buckets and hyperparameters were chosen on public or synthetic data.",
    ),
    "not_accounted": (
        "not_covered",
        "Other runs on these rows chose columns, clip constants, buckets or hyperparameters.",
    ),
}


def accesses_of(inputs: StatementInputs) -> list[dict[str, Any]]:
    """The table of accesses: what the ledger holds, then what never was an access, and why."""
    rows = [*_from_ledger(inputs), *_fixed(inputs), *_by_people(inputs)]
    return [{"id": f"A{number}", **row} for number, row in enumerate(rows, start=1)]


def _from_ledger(inputs: StatementInputs) -> list[dict[str, Any]]:
    """One row per kind of entry; equal entries are counted."""
    counted: dict[tuple[str, str, str, str], tuple[LedgerEntry, int]] = {}
    for entry in inputs.ledger:
        if entry.kind == "training_finished":
            continue
        key = (entry.kind, entry.description, entry.rows, entry.treatment)
        counted[key] = (entry, counted.get(key, (entry, 0))[1] + 1)
    rows = []
    for number, (entry, count) in enumerate(counted.values(), start=1):
        times = "" if count == 1 else f" ({count} times)"
        row = _row(_STAGES[entry.kind], entry.description + times, entry.treatment, "auto")
        row["rows"] = entry.rows
        if entry.dp_event is not None:
            row["dp_event"] = f"E{number}"
        rows.append(row)
    return rows


def _fixed(inputs: StatementInputs) -> list[dict[str, Any]]:
    """What other systems fit to the data and this one does not."""
    rows = [
        _row(
            "vocabulary_or_hashing",
            "Ids are hashed into buckets whose number is configured; there is no vocabulary.",
            "data_independent",
            "auto",
            "features.nothing_fitted",
        ),
        _row(
            "normalisation",
            "Numbers are transformed with constants of the configuration; this library fits none.",
            "data_independent",
            "auto",
            "features.nothing_fitted",
        ),
        _row(
            "class_prior_or_bias_init",
            "Parameters start from init_seed, biases at zero.",
            "data_independent",
            "auto",
            "initialisation.data_independent",
        ),
        _row(
            "monitoring_and_logs",
            "Progress shows iterations, speed and the privacy loss; never a loss, a norm or a batch "
            "size of private rows.",
            "data_independent",
            "auto",
        ),
    ]
    size = inputs.dataset_size
    if inputs.dataset_size_status == "public":
        rows.append(
            _row(
                "dataset_size",
                f"The number of units, {size:,}, is configured and called public.",
                "declared_public",
                "human",
                "adjacency.public_numbers",
            )
        )
    elif inputs.dataset_size_status == "asserted_public":
        rows.append(
            _row(
                "dataset_size",
                f"The store's own number of units, {size:,}, set the sampling probability"
                " or delta, and is called public.",
                "declared_public",
                "auto+human",
                "adjacency.n_public",
            )
        )
    return rows


def _by_people(inputs: StatementInputs) -> list[dict[str, Any]]:
    """What happened outside of this library."""
    treatment, text = _TUNING[inputs.human.tuning]
    rows = [_row("hyperparameter_tuning", text, treatment, "human", "tuning.declared")]
    upstream = inputs.human.upstream
    if upstream is not None:
        rows.append(_row("filtering_or_downsampling", upstream, "not_covered", "human"))
    elif not inputs.entries("upstream"):
        rows.append(
            _row(
                "collection",
                "What happened to the log before it was read (filters, joins, deduplication, "
                "down-sampling, definition of the label). Nobody declared it.",
                "not_covered",
                "human",
            )
        )
    return rows


def _row(
    stage: str, description: str, treatment: str, filled_by: str, check_id: str | None = None
) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {
        "stage": stage,
        "description": description,
        "treatment": treatment,
        "filled_by": filled_by,
    }
    if check_id is not None:
        row["check_id"] = check_id
    return row
