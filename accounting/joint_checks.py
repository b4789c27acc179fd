"""The checks of a statement: every run's, one for each assumption, and those of all runs together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dpads.accounting.accesses import earlier_answers, tuning_of
from dpads.accounting.assumptions import mechanism_checks
from dpads.accounting.checks import Basis, Check, Result
from dpads.accounting.declarations import declaration_checks, person
from dpads.accounting.evidence import Evidence
from dpads.accounting.figures import contradicts, truncation_cost
from dpads.accounting.joint import JointRuns
from dpads.accounting.tuning_checks import tuning_checks
from dpads.accounting.wording import listed, number

# From what leaves a claim standing to what takes it away.
_RESULTS = (Result.NOT_APPLICABLE, Result.HOLDS, Result.UNKNOWN, Result.VIOLATED)
_BASES = (
    Basis.NOT_APPLICABLE,
    Basis.ENFORCED,
    Basis.VERIFIED,
    Basis.ASSERTED,
    Basis.DECLARED,
    Basis.NOT_CHECKED,
)


def checks_of(runs: JointRuns) -> list[Check]:
    """Every assumption of the guarantee.

    Args:
        runs: One run, or several.

    Returns:
        One check per assumption; over several runs the worst result counts.
    """
    per_run: dict[str, list[tuple[int, Check]]] = {}
    for place, run in enumerate(runs.runs):
        for check in (*mechanism_checks(run), *declaration_checks(run), *tuning_checks(run)):
            own = replace(check, backends=(run.backend,))
            per_run.setdefault(check.id, []).append((place, own))
    merged = [_merged(runs, found) for found in per_run.values()]
    if any(check.id == "sampling.truncation_in_event" for check in merged):
        cost = truncation_cost(runs)
        merged = [
            replace(check, epsilon_added=cost)
            if check.id == "sampling.truncation_in_event"
            else check
            for check in merged
        ]
    return [*merged, *_same_rows(runs), _tuning(runs), *_accounting(runs), *_audit(runs)]


def _merged(runs: JointRuns, found: Sequence[tuple[int, Check]]) -> Check:
    """One check from that of each run: the worst result, the weakest basis, all evidence."""
    if len(found) == 1 and not runs.is_joint:
        return found[0][1]
    bearing = [item for item in found if item[1].load_bearing] or found
    worst = max(bearing, key=lambda item: _RESULTS.index(item[1].result))[1]
    result = worst.result
    deciding = [check for _, check in bearing if check.result is result]
    evidence = [item for _, check in found for item in check.evidence]
    return replace(
        worst,
        assumption=_each(runs, found, lambda check: check.assumption) or worst.assumption,
        basis=max((check.basis for check in deciding), key=_BASES.index),
        asserted_by=runs.together(check.asserted_by for _, check in found),
        note=_each(runs, found, lambda check: check.note),
        evidence=list(dict.fromkeys(evidence)),
        backends=list(dict.fromkeys(name for _, check in found for name in check.backends)),
    )


def _each(
    runs: JointRuns,
    found: Sequence[tuple[int, Check]],
    text_of: Callable[[Check], str | None],
) -> str | None:
    """A text that all runs share, or each run's own after its name."""
    places: dict[str | None, list[str]] = {}
    for place, check in found:
        places.setdefault(text_of(check), []).append(runs.name(place))
    if len(places) == 1 and len(found) == len(runs.runs):
        return next(iter(places))
    said = [f"In {listed(names)}: {text}" for text, names in places.items() if text is not None]
    return " ".join(said) or None


def _same_rows(runs: JointRuns) -> list[Check]:
    """The runs of a joint statement are about the same rows."""
    if not runs.is_joint:
        return []
    return [
        Check(
            id="joint.same_rows",
            assumption="All runs were trained on the same rows, under one unit, one relation and one "
            "cap, and each counts once.",
            basis=Basis.VERIFIED,
            evidence=[
                Evidence(
                    "runtime_measurement",
                    "the keyed fingerprints of the runs' training rows were compared: equal",
                    touches_private_data=True,
                )
            ],
        )
    ]


def _tuning(runs: JointRuns) -> Check:
    """Nothing outside the figure chose the configuration."""
    said = tuning_of(runs)
    what = "the configuration"
    if said in earlier_answers(runs):
        what += ", this run's or an earlier one's," if not runs.is_joint else ", or an earlier one,"
    results = {None: Result.UNKNOWN, "not_accounted": Result.VIOLATED}
    others = "but those of this statement " if runs.counts_others else ""
    whose = "these runs'" if runs.counts_others else "this run's"
    own = {f"statement.tuning = {run.human.tuning}" for run in runs.runs if run.human.tuning}
    earlier = {f"statement.tuning of an earlier run = {a}" for a in earlier_answers(runs) if a}
    facts = sorted(own) + sorted(earlier)
    bases = [person(run) for run in runs.runs]
    return Check(
        id="tuning.declared",
        assumption=f"No other run or look at these rows {others}chose this configuration: columns, "
        "clip constants, numbers of buckets and hyperparameters.",
        basis=Basis.NOT_CHECKED if said is None else max(bases, key=_BASES.index),
        result=results.get(said, Result.HOLDS),
        load_bearing=False,
        asserted_by=None if said is None else runs.said("asserted_by"),
        note=f"The guarantee is {whose} alone; how {what} was chosen is outside it."
        if said in results
        else None,
        evidence=() if said is None else [Evidence("config_hash", fact) for fact in facts],
    )


def _accounting(runs: JointRuns) -> list[Check]:
    """The number is a bound, at a delta that means something."""
    small = runs.default_delta is None or runs.delta <= runs.default_delta
    bounded = runs.loss is not None
    note = None if small else "No tier is named at this delta: read the profile."
    if runs.is_joint:
        smallest = "delta is the smallest of the runs'."
        note = smallest if note is None else f"{smallest} {note}"
    return [
        Check(
            id="accountant.upper_bound",
            assumption="Every epsilon is an upper bound: a margin for numerical error is added, the "
            "smaller of two bounds is taken, and it is rounded up.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if bounded else Result.VIOLATED,
            note=None if bounded else "Nothing bounds the privacy loss of what is on the ledger.",
        ),
        Check(
            id="delta.small",
            assumption="delta is at most min(1e-8, 0.1 / units), rounded down to a power of ten.",
            basis=Basis.NOT_CHECKED if runs.default_delta is None else Basis.VERIFIED,
            result=Result.UNKNOWN
            if runs.default_delta is None
            else Result.HOLDS
            if small
            else Result.VIOLATED,
            effect_if_false="weakens_quantified",
            load_bearing=False,
            note=note,
            evidence=[Evidence("config_hash", f"delta = {number(runs.delta)}")],
        ),
    ]


def _audit(runs: JointRuns) -> list[Check]:
    """No attack did better than the guarantee allows."""
    audits = [audit for run in runs.runs for audit in run.audits]
    if not audits:
        return []
    broken = any(contradicts(runs, audit) for audit in audits)
    return [
        Check(
            id="audit.no_contradiction",
            assumption="No empirical lower bound is above what the accounting says.",
            basis=Basis.VERIFIED,
            result=Result.VIOLATED if broken else Result.HOLDS,
            note="An audit found more leakage than the accounting allows: something is broken."
            if broken
            else "That nothing was found proves nothing.",
        )
    ]
