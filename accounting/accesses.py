"""Every use of private data and how it relates to the guarantee: item 2a of section 5.3.3.

"How to DP-fy ML" (arXiv 2303.00654) asks which uses of the data a guarantee covers and which not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpads.accounting.earlier import answers_of
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.joint import JointRuns
from dpads.accounting.ledger import LedgerEntry
from dpads.accounting.wording import rows_words

_STAGES: Mapping[str, str] = {
    "earlier_run": "earlier_training",
    "training": "training",
    "dp_count": "class_prior_or_bias_init",
    "selection": "vocabulary_or_hashing",
    "recalibration": "calibration_layer",
    "tuning": "hyperparameter_tuning",
    "selected_training": "training",
    "evaluation": "evaluation",
    "reference": "reference_training",
    "trial": "further_trials",
    "unplanned_read": "monitoring_and_logs",
    "upstream": "filtering_or_downsampling",
}

_STARTS: Mapping[str | None, tuple[str, str, str, str]] = {
    "not_covered": (
        "Parameters start from those of an earlier run, which no event covers.",
        "not_covered",
        "auto",
        "initialisation.from_earlier_run",
    ),
    "public_data_only": (
        "Parameters start from given ones, in which people vouch that there is nothing of these rows.",
        "public_data_only",
        "human",
        "initialisation.vouched_for",
    ),
    "covered_by_accounting": (
        "Parameters start from those of an earlier run, whose event is counted.",
        "covered_by_accounting",
        "auto+human",
        "initialisation.from_earlier_run",
    ),
    None: (
        "Parameters start from init_seed, biases at zero.",
        "data_independent",
        "auto",
        "initialisation.data_independent",
    ),
}
"""Where parameters start, by the treatment of the earlier run; None: there is none."""

_CHOOSING: Mapping[str, str] = {
    "evaluation": "model_selection",
    "reference": "reference_tuning",
}
"""The stages of exact looks that chose columns or hyperparameters of the model."""

_CHOSEN = "Columns, clip constants, buckets and hyperparameters were"
_TUNING: Mapping[str | None, tuple[str, str]] = {
    None: (
        "not_covered",
        (
            "How columns, clip constants, buckets and hyperparameters were chosen. Nobody declared "
            "it, so a look at these rows cannot be ruled out."
        ),
    ),
    "none": ("data_independent", f"{_CHOSEN} fixed without a look at these rows."),
    "public_data": ("public_data_only", f"{_CHOSEN} chosen on public or synthetic data."),
    "not_accounted": (
        "not_covered",
        "Other runs on these rows chose columns, clip constants, buckets or hyperparameters.",
    ),
}
_OF_EARLIER: Mapping[str | None, str] = {
    None: "How columns, clip constants, buckets and hyperparameters were chosen, of this run or of an "
    "earlier one that it starts from. Nobody declared it, so a look at these rows, or at the earlier "
    "run's, cannot be ruled out.",
    "not_accounted": "Other runs on these rows, or on those of an earlier run that this one starts from, "
    "chose columns, clip constants, buckets or hyperparameters.",
}
"""What is said where an earlier run's answer is the weakest."""
_TRIAL = (
    "Whether the results of other trials chose this one, and how the sweep's columns, clip constants, "
    "buckets and hyperparameters were chosen."
)
_BUT_THESE = " but those of the runs that this statement counts"
_JOINT_TUNING = (
    "Runs and looks that chose columns, clip constants, buckets or hyperparameters, but for the runs "
    "that this statement counts. Nobody declared that there were none."
)


def accesses_of(runs: JointRuns) -> list[dict[str, Any]]:
    """The table of accesses: what the ledgers hold, then what never was an access, and why."""
    rows = [*_from_ledgers(runs), *_fixed(runs), *_by_people(runs)]
    return [{"id": f"A{number}", **row} for number, row in enumerate(rows, start=1)]


def tuning_of(runs: JointRuns) -> str | None:
    """How people say that the configurations were chosen: the weakest answer, earlier runs' included.

    In a joint statement "not_accounted" may mean the very runs that it composes: no answer. Nor is
    there one of a trial of a sweep, whichever was said: results of the others may have chosen it.
    """
    said = {run.human.tuning for run in runs.runs} | earlier_answers(runs)
    if "not_accounted" in said and not runs.counts_others:
        return "not_accounted"
    if "not_accounted" in said or any(run.is_trial for run in runs.runs):
        return None
    order = (None, "public_data", "none")
    return next(answer for answer in order if answer in said)


def earlier_answers(runs: JointRuns) -> set[str | None]:
    """How people say that configurations of earlier runs were chosen, which these start from."""
    return {answer for run in runs.runs for answer in answers_of(run.ledger)}


def _from_ledgers(runs: JointRuns) -> list[dict[str, Any]]:
    """One row per item of accounting.entries; of the rest one per kind, equal ones counted."""
    rows: dict[tuple[object, ...], tuple[dict[str, Any], int]] = {}
    covered = iter(runs.entries)
    left = 0
    for place, run in enumerate(runs.runs):
        for entry in run.ledger:
            if entry.kind == "training_finished":
                continue
            if entry.dp_event is None:
                row = _of_entry(entry)
                key: tuple[object, ...] = tuple(row.values())
                if entry.kind == "selected_training":
                    key, row = (place,), _of_selected(runs, place, entry)
                row, count = rows.get(key, (row, 0))
                rows[key] = (row, count + 1)
            elif left > 0:
                left -= 1
            else:
                item = next(covered)
                left = item.count - 1
                row = {**_of_entry(entry), "dp_event": item.id}
                if runs.is_joint:
                    row["description"] += f", {runs.name(place)}"
                rows[(item.id,)] = (row, item.count)
    return [
        {**row, "description": row["description"] + ("" if count == 1 else f" ({count} times)")}
        for row, count in rows.values()
    ]


def _of_entry(entry: LedgerEntry) -> dict[str, Any]:
    """The row of a ledger's entry."""
    filled_by = "auto"
    if entry.kind == "upstream":
        filled_by = "auto+human" if entry.is_of_schema else "human"
    stage = _STAGES[entry.kind]
    if entry.chose_configuration:
        stage = _CHOOSING.get(entry.kind, stage)
    row = _row(stage, entry.description, entry.treatment, filled_by)
    trials = {"trials": entry.details["trials"]} if entry.kind == "trial" else {}
    return {**row, "rows": entry.rows, **trials}


def _of_selected(runs: JointRuns, place: int, entry: LedgerEntry) -> dict[str, Any]:
    """The row of a selected run, with the item of accounting.entries that covers it."""
    row = _of_entry(entry)
    if runs.is_joint:
        row["description"] += f", {runs.name(place)}"
    covering = runs.covering_id(place)
    return row if covering is None else {**row, "dp_event": covering}


def _fixed(runs: JointRuns) -> list[dict[str, Any]]:
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
        _start(runs),
        _row(
            "monitoring_and_logs",
            "Progress shows iterations, speed and the privacy loss; never a loss, a norm or a batch "
            "size of private rows.",
            "data_independent",
            "auto",
        ),
    ]
    if runs.cap is not None:
        text = (
            f"Of each user at most {rows_words(runs.cap)}, chosen by a keyed hash, are trained on; which "
            "rows of a user stay depends on no other user."
        )
        if runs.unit == "example":
            text += " The guarantee for rows is about those that stay."
        whole = runs.unit == "user" or runs.group_size is not None
        treatment = "covered_by_accounting" if whole else "not_covered"
        rows.append(_row("contribution_bounding", text, treatment, "auto", "unit.cap_enforced"))
    size = runs.dataset_size
    if size is None:
        return rows
    if runs.dataset_size_status == "asserted_public":
        text = (
            f"The store's own number of units, {size:,}, set the sampling probability or delta, and "
            "is called public."
        )
        filled_by, check = "auto+human", "adjacency.n_public"
    else:
        text = f"The number of units, {size:,}, is configured and called public."
        filled_by, check = "human", "adjacency.public_numbers"
    return [*rows, _row("dataset_size", text, "declared_public", filled_by, check)]


def _start(runs: JointRuns) -> dict[str, Any]:
    """Where parameters start; over several runs what says least against a look is told first."""
    starts = {start for run in runs.runs for start in (_treatments_of_start(run) or {None})}
    known = [row for start, row in _STARTS.items() if start in starts]
    _, treatment, filled_by, check_id = known[0]
    text = " ".join([*(row[0] for row in known), *_output_starts(runs)])
    if any(run.public_rate for run in runs.runs) and treatment == "data_independent":
        treatment, filled_by, check_id = "declared_public", "human", "initialisation.rate_is_public"
    elif _counts(runs) and treatment in ("data_independent", "public_data_only"):
        treatment = "covered_by_accounting"  # the count that the output starts at is in the event
    return _row("class_prior_or_bias_init", text, treatment, filled_by, check_id)


def _output_starts(runs: JointRuns) -> list[str]:
    """Where the output starts, where it is not at zero."""
    words = []
    if any(run.public_rate for run in runs.runs):
        words.append("The output starts at a rate that is called public.")
    if _counts(runs):
        words.append("The output starts at the noisy count that is listed here.")
    return words


def _counts(runs: JointRuns) -> bool:
    """Whether the output of a run starts at a noisy count."""
    return any(release.kind == "dp_count" for run in runs.runs for release in run.releases)


def _treatments_of_start(run: StatementInputs) -> set[str | None]:
    """How what a run starts from is treated."""
    return {entry.treatment for entry in run.entries("earlier_run")}


def _by_people(runs: JointRuns) -> list[dict[str, Any]]:
    """What happened outside of this library."""
    said = tuning_of(runs)
    treatment, text = _TUNING[said]
    if said is None and runs.counts_others:
        text = _JOINT_TUNING
    elif said is None and runs.first.is_trial:
        text = _TRIAL
    elif said in _OF_EARLIER and said in earlier_answers(runs):
        text = _OF_EARLIER[said]
    elif said == "none" and runs.compared:
        text = text.removesuffix(".") + f"{_BUT_THESE}."
    rows = [_row("hyperparameter_tuning", text, treatment, "human", "tuning.declared")]
    upstream = runs.said("upstream")
    on_ledgers = [entry for run in runs.runs for entry in run.entries("upstream")]
    by_people = any(not entry.is_of_schema for entry in on_ledgers)
    if upstream is not None and not by_people:
        rows.append(_row("filtering_or_downsampling", upstream, "not_covered", "human"))
    elif upstream is None and not by_people:
        beside = ", beside what the schema says" if on_ledgers else ""
        text = (
            "What happened to the log before it was read (filters, joins, deduplication, "
            f"down-sampling, definition of the label){beside}. Nobody declared it."
        )
        rows.append(_row("collection", text, "not_covered", "human"))
    refresh = runs.said("refresh")
    if refresh is not None:
        rows.append(_row("retraining_or_refresh", refresh, "not_covered", "human"))
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
