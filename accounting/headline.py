"""The guarantee in one paragraph, and what it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpads.accounting.checks import Basis, Check, ClaimLevel, Result
from dpads.accounting.inputs import StatementInputs

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


_ALWAYS = (
    (
        "The noise is a float32 Gaussian; the guarantee is that of real numbers. Attacks on the bits "
        "of floats are known in theory (Mironov 2012; Jin et al. 2022, arXiv 2112.05307). What leaves "
        "is rounded to a public grid of about 2^-10 of the noise's stddev, which hides the lowest "
        "bits and is no proof."
    ),
    (
        "The margin that the accountant adds for numerical error is measured (twice the largest error "
        "that was seen), not proved."
    ),
    "Noise and coins are pseudorandom: against whoever breaks ChaCha20 nothing is claimed.",
    (
        "The guarantee is about what the model reveals. Timing, memory, logs of other systems and the "
        "security of the raw log are not addressed."
    ),
    "No empirical audit was made of this run.",
)


def number(value: float) -> str:
    """A delta or another small number as people write it: 1e-6, not 1e-06."""
    return f"{value:g}".replace("e-0", "e-")


def headline_of(
    inputs: StatementInputs,
    checks: Sequence[Check],
    level: ClaimLevel,
    epsilon: float | None,
    tier: Mapping[str, Any] | None,
) -> str:
    """The headline: plain text, no epsilon in it where nothing is claimed."""
    name = f'"{inputs.human.model_name or inputs.model}"'
    if level is ClaimLevel.NONE or epsilon is None:
        reasons = "; ".join(_reason(c) for c in checks if _is_broken(c)).rstrip(".")
        return (
            f"Claim level: none. No differential privacy is claimed for {name}. "
            f"Reason: {reasons or 'nothing on the ledger is covered'}."
        )
    unit = "one example (one row of the training log)"
    if inputs.unit == "user":
        unit = f"one user (at most {inputs.cap} rows of the training log)"
    guarantee = (
        f"The final model {name}, from one training run of at most {inputs.planned_iterations:,} "
        f"iterations of DP-SGD, is ({epsilon:.2f}, {number(inputs.delta)})-differentially private "
        f"for {unit} under {RELATION_WORDS[str(inputs.relation)]}."
    )
    condition = f"Claim level: {level}{_condition(checks)}."
    sentences = [condition, guarantee, _tier_sentence(inputs, tier)]
    uncovered = not_covered(inputs)
    if uncovered:
        sentences.append(f"Not covered: {'; '.join(uncovered)}.")
    if inputs.unit != "user":
        sentences.append("No user-level guarantee is made.")
    return " ".join(sentences)


def not_covered(inputs: StatementInputs) -> list[str]:
    """The accesses outside the guarantee, each in a few words."""
    items = []
    if inputs.entries("reference"):
        items.append("the reference model trained without noise on the same rows, and its metrics")
    rows = {entry.rows for entry in inputs.entries("evaluation")}
    if "test" in rows:
        items.append("the test rows, which were read exactly for metrics")
    if "train" in rows:
        items.append("exact metrics on training rows")
    if "train_and_test" in rows:
        items.append("exact metrics on rows that may be training rows")
    items.extend(
        entry.description.rstrip(".")
        for entry in inputs.ledger
        if entry.kind not in ("reference", "evaluation") and entry.treatment == "not_covered"
    )
    if inputs.human.tuning is None:
        items.append("how the configuration was chosen (not declared)")
    elif inputs.human.tuning == "not_accounted":
        items.append("the other runs on these rows that chose the configuration")
    if inputs.human.upstream is not None:
        items.append(f"what was done to the log before: {inputs.human.upstream.rstrip('.')}")
    elif not inputs.entries("upstream"):
        items.append("what was done to the log before it was read (not declared)")
    return items


def limitations_of(inputs: StatementInputs) -> list[str]:
    """What a reader might take from the figure and should not."""
    items = []
    if inputs.unit == "example":
        why = (
            "the schema names a user column, but rows per user were not capped in training"
            if inputs.schema.get("user")
            else "the schema names no user column"
        )
        items.append(
            "The guarantee is for one row. A person with several rows has a weaker one, and no "
            f"user-level guarantee is made: {why}."
        )
    items.append(
        "A fact that stands in several rows (a conversion that labels several clicks, an advertiser, "
        "a page) is not protected as a whole."
    )
    if str(inputs.relation) == "zero_out":
        items.append(
            "Zero-out applies to the training rows, after test rows were split off where a run does "
            "so. The split goes by a row's content (by its user's identifier where there is one): "
            "a row emptied before the split could have come to the other side."
        )
    if inputs.entries("evaluation"):
        items.append(
            "Exact metrics are functions of the rows they were computed on, which have no guarantee "
            "against whoever sees these metrics."
        )
    if inputs.entries("reference"):
        items.append(
            "The reference model and its metrics carry no guarantee: whoever sees them learns about "
            "the training rows."
        )
    if inputs.human.tuning in (None, "not_accounted"):
        items.append(
            "Other runs and looks at these rows are outside the figure: it is one run's, with its "
            "configuration taken as given."
        )
    if inputs.dataset_size_status != "private":
        items.append("The number of units counts as public; it is not protected.")
    return items + list(_ALWAYS)


def _is_broken(check: Check) -> bool:
    """Whether this check leaves no claim."""
    return check.load_bearing and check.result is not Result.HOLDS


def _reason(check: Check) -> str:
    """Why a check broke."""
    return (check.note or f"not established: {check.assumption}").rstrip(".")


def _condition(checks: Sequence[Check]) -> str:
    """What a conditional claim rests on."""
    resting = [c for c in checks if c.load_bearing and c.basis in (Basis.ASSERTED, Basis.DECLARED)]
    if not resting:
        return ""
    people = sorted({c.asserted_by for c in resting if c.asserted_by is not None})
    who = (
        f"asserted by {' and '.join(people)}"
        if people
        else "declared by the configuration and signed by nobody"
    )
    text = " ".join(c.assumption for c in resting)
    return (
        f", on {len(resting)} assumption{'s' if len(resting) > 1 else ''} {who}: {text.rstrip('.')}"
    )


def _tier_sentence(inputs: StatementInputs, tier: Mapping[str, Any] | None) -> str:
    """The tier with its delta, or why there is none."""
    if tier is not None:
        return f"{TIER_WORDS[tier['label']]} at delta {number(tier['delta'])}."
    if inputs.default_delta is None:
        return "No tier is named: no public number of units is known to judge delta by."
    return (
        f"No tier is named: delta is above {number(inputs.default_delta)}, the default for so many "
        "units."
    )
