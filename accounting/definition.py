"""The abstract definition mapped to the runs, and the mechanism that ran: items 1 and 2."""

from __future__ import annotations

from typing import Any

from dpads.accounting import events
from dpads.accounting.accesses import accesses_of
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.joint import JointRuns
from dpads.accounting.schemes import FixedOrderScheme
from dpads.accounting.wording import row_words, rows_words, user_rows_words

PROTECTED = (
    "every noisy gradient, every checkpoint whose rows were brought up to date, and the final model"
)
"""What a guarantee covers of one run."""


def setting_of(runs: JointRuns) -> dict[str, Any]:
    """Item 1: who is trusted, and what the adversary sees."""
    parties = list(dict.fromkeys(run.human.trusted_party for run in runs.runs))
    return {
        "model": "central",
        "trusted_parties": [
            {
                "party": party,
                "trusted_for": "holding the raw log, running the mechanism as written, and "
                "keeping checkpoints, keys and the internal run folder secret",
            }
            for party in parties
        ],
        "adversary_view": "all_noisy_gradients_and_checkpoints_of_the_runs_that_are_shown"
        if runs.hides_runs
        else "all_noisy_gradients_and_checkpoints_brought_up_to_date",
        "access_control": runs.said("access_control"),
        "data_collection": runs.said("data_collection"),
    }


def definition_of(runs: JointRuns) -> dict[str, Any]:
    """Item 2: uses of the data, output, unit and neighbours."""
    return {
        "data_accesses": accesses_of(runs),
        "mechanism_output": {
            "released": _released(runs),
            "formally_protected": f"{_protected(runs)}; not the "
            "checkpoints that an interrupted run goes on from, which hold keys and tell which rows "
            "were touched",
        },
        "unit_of_privacy": {
            "kind": runs.unit,
            "definition": _unit(runs),
            "contribution_bound": {
                "max_examples_per_user": runs.cap,
                "enforced": runs.cap is not None and runs.user_column is not None,
                "method": "none" if runs.cap is None else "keyed_hash",
                "identifier": runs.user_column,
                "period": runs.said("period"),
            },
        },
        "adjacency": {
            "relation": str(runs.relation),
            "dataset_size_status": runs.dataset_size_status,
            "dataset_size": runs.dataset_size,
        },
        "protected_content": "full_example",
    }


def mechanism_of(run: StatementInputs) -> dict[str, Any]:
    """Exactly what ran."""
    mechanism, noise = run.mechanism, run.noise_multiplier
    return {
        "algorithm": "dp_sgd",
        **({} if run.backend == "torch" else {"backend": run.backend}),
        "sampler": _sampler(run),
        "clipping": {
            "scope": "per_user" if run.unit == "user" else "per_example",
            "norm": mechanism["l2_clip_norm"],
            "adaptive": False,
            "normaliser": "public_constant",
            "expected_batch_size": mechanism["expected_batch_size"],
            "non_finite": "zeroed",
        },
        "noise": {
            "distribution": "gaussian_float32",
            "noise_multiplier": noise,
            "sensitivity_slack": events.SENSITIVITY_SLACK,
            "accounted_noise_multiplier": events.effective_noise_multiplier(noise),
            "tables": run.table_noise,
            "rng": "csprng_keyed_noise_seed" if run.noise_seed_used else "csprng_keyed_os_entropy",
            "seed_policy": "published_fixed" if run.noise_seed_used else "fresh_os_entropy",
        },
        "steps": {
            "planned": run.planned_iterations,
            "executed": run.executed,
            "replayed": run.told_replays,
        },
        "loss_weights": "before_clipping" if run.weighted else "none",
        **({"releases": [item.to_dict() for item in run.releases]} if run.releases else {}),
    }


def _sampler(run: StatementInputs) -> dict[str, Any]:
    """How units came into batches; a number that a sampler does not have is null."""
    scheme = run.scheme
    by_chance = run.sampler != "fixed_order"
    per_pass = scheme.batches_per_pass if isinstance(scheme, FixedOrderScheme) else None
    return {
        "kind": run.sampler,
        "sampling_probability": run.mechanism["sampling_prob"] if by_chance else None,
        "max_over_examples": True,
        "truncated_batch_size": run.mechanism["max_batch_size"],
        "dataset_size": run.mechanism["units"],
        "batches_per_pass": per_pass,
    }


def _protected(runs: JointRuns) -> str:
    """What the guarantee covers."""
    if runs.hides_runs:
        return (
            f"{PROTECTED} of each run that is stated here, with a private selection's best score; of its "
            "other runs nothing, not even their number, may ever be shown"
        )
    text = PROTECTED + (" of each run" if runs.counts_others else "")
    if any(run.releases for run in runs.runs):
        text += ", with every noisy sum beside training that is listed here"
    if any(item.entry.kind == "earlier_run" for item in runs.entries):
        text += "; likewise of the earlier runs, whose parameters training started from"
    return text


def _released(runs: JointRuns) -> str:
    """What leaves."""
    if not runs.is_joint:
        return (
            f"the parameters after iteration {runs.first.executed}, every table row brought up to "
            f"date{_calibrated(runs)}"
        )
    ends = ", ".join(str(run.executed) for run in runs.runs)
    return (
        f"the parameters of {len(runs.runs)} models after their last iterations ({ends}), every "
        f"table row brought up to date{_calibrated(runs)}"
    )


def _calibrated(runs: JointRuns) -> str:
    """What leaves beside parameters, where outputs were calibrated."""
    calibrated = [any(r.kind == "recalibration" for r in run.releases) for run in runs.runs]
    if not any(calibrated):
        return ""
    one = "and the calibration of the output" if len(calibrated) == 1 else "and the calibrations"
    return f", {one}{'' if all(calibrated) else ' of those that have one'}"


def _unit(runs: JointRuns) -> str:
    """What one unit is in the log, and in the world where people say so."""
    logs = {
        "split": any(entry.rows == "test" for run in runs.runs for entry in run.ledger),
        "earlier": any(item.entry.kind == "earlier_run" for item in runs.entries),
        "joint": runs.is_joint,
    }
    if runs.unit == "user":
        meaning = f"one user: {user_rows_words(runs.cap or 1, **logs)}, with one identifier"
    else:
        meaning = f"one example: {row_words(**logs)}, features and label"
        if runs.cap is not None:
            meaning += f", among the at most {rows_words(runs.cap)} that are kept of each user"
    people = runs.said("unit_definition")
    return meaning if people is None else f"{meaning} ({people})"
