"""What must hold of the runs that a configuration, or the model itself, was chosen among, as checks."""

from __future__ import annotations

from dpads.accounting.checks import Basis, Check, Result
from dpads.accounting.compared import is_filter, is_selection, score_is_inside
from dpads.accounting.declarations import person
from dpads.accounting.evidence import Evidence
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.ledger import LedgerEntry


def tuning_checks(inputs: StatementInputs) -> list[Check]:
    """The assumptions of the tuning entries that are counted."""
    counted = [entry for entry in inputs.entries("tuning") if entry.dp_event is not None]
    selections = [entry for entry in counted if is_selection(entry)]
    filters = [entry for entry in counted if is_filter(entry)]
    plain = [entry for entry in counted if entry not in selections and entry not in filters]
    return [
        *(_same_mechanism(inputs) if counted else []),
        *(_fixed_in_advance(inputs, plain) if plain else []),
        *_runs_counted(inputs, counted, plain),
        *(_selected(selections) if selections else []),
        *(_filtered(inputs) if filters else []),
    ]


def _same_mechanism(inputs: StatementInputs) -> list[Check]:
    """What is checked of this run is true of the others too, and no two share noise."""
    seeded = inputs.noise_seed_used
    return [
        Check(
            id="tuning.same_mechanism",
            assumption="Every other run that is counted sampled, clipped and added noise as it is said "
            "here of this one: the same code ran it, with keys of its own.",
            basis=Basis.ENFORCED,
            result=Result.VIOLATED if seeded else Result.HOLDS,
            note="Under one noise_seed every run draws the same noise." if seeded else None,
        )
    ]


def _fixed_in_advance(inputs: StatementInputs, plain: list[LedgerEntry]) -> list[Check]:
    """Events add up only where they do not depend on one another's results."""
    sweeps = [entry.details.get("sweep") for entry in plain]
    known = list(dict.fromkeys(sweep for sweep in sweeps if isinstance(sweep, str)))
    planned = _planned(plain)
    retrained = max((entry.details.get("retrained", 0) for entry in plain), default=0)
    by_code = planned is not None and not retrained
    note = "The ledger does not say that one sweep's file fixed all."
    if planned is not None:
        note = (
            f"{retrained} of them were made anew, which no file fixed: whether and how often depended on "
            "how training had ended."
        )
    return [
        Check(
            id="tuning.fixed_in_advance",
            assumption="How many runs were compared, and the noise, the sampling and the iterations of "
            "each, was fixed before the first of them ran, so that their costs add up.",
            basis=Basis.ENFORCED if by_code else person(inputs),
            asserted_by=None if by_code else inputs.human.asserted_by,
            note=None if by_code else note,
            evidence=[Evidence("config_hash", "the sweep's file", sweep) for sweep in known],
        )
    ]


def _planned(plain: list[LedgerEntry]) -> int | None:
    """How many trainings one sweep's file planned or had to make anew; None where nothing says so."""
    said = {tuple(e.details.get(key) for key in ("sweep", "trials", "retrained")) for e in plain}
    if len(said) != 1:
        return None
    sweep, trials, retrained = said.pop()
    if not isinstance(sweep, str) or type(trials) is not int:
        return None
    return trials + (retrained or 0)


def _runs_counted(
    inputs: StatementInputs, counted: list[LedgerEntry], plain: list[LedgerEntry]
) -> list[Check]:
    """No run that this one was compared with is left out."""
    planned = _planned(plain)
    if planned is not None:
        lacking = planned - 1 - len(plain)
        return [
            Check(
                id="tuning.runs_counted",
                assumption="Every other private trial of the sweep's file is counted, whether it ran or "
                "not, and every training that was made anew.",
                basis=Basis.ENFORCED,
                result=Result.VIOLATED if lacking else Result.HOLDS,
                note=f"The ledger counts {len(plain)} other runs, and the sweep had {planned - 1}."
                if lacking
                else None,
            )
        ]
    chose = [e for e in inputs.entries("evaluation") if e.chose_configuration]
    if counted or all(entry.treatment == "public_data_only" for entry in chose):
        return []
    named = inputs.is_trial or bool(inputs.entries("tuning"))
    return [
        Check(
            id="tuning.runs_counted",
            assumption="That results of other runs, which are not counted here, chose among runs tells "
            "nothing about any single row.",
            basis=person(inputs) if named else Basis.ENFORCED,
            result=Result.HOLDS if named else Result.VIOLATED,
            asserted_by=inputs.human.asserted_by if named else None,
            note="What the other runs cost is on another ledger."
            if named
            else "Exact metrics chose this model among runs, and the ledger counts none of these.",
        )
    ]


def _selected(selections: list[LedgerEntry]) -> list[Check]:
    """Only the best of a secret number of runs is ever shown, and its score was paid for."""
    named = all(isinstance(entry.details.get("selection"), str) for entry in selections)
    inside = all(score_is_inside(entry) for entry in selections)
    return [
        Check(
            id="tuning.drawn_once",
            assumption="The number of runs and each run's candidate were drawn once, from the stated "
            "law and independently from the stated list, before any of them ran. Neither was ever "
            "shown: not by progress, folders, resumption or failures. A run that failed counts as one "
            "with the worst score, and of every run but the best nothing is kept or shown.",
            basis=Basis.ENFORCED if named else Basis.NOT_CHECKED,
            result=Result.HOLDS if named else Result.UNKNOWN,
            note="Code cannot rule out a row that makes a run fail where its neighbour would not: rows "
            "are checked when they are read, before anything is drawn."
            if named
            else "The ledger does not name the draw, so nothing says that there was only one.",
        ),
        Check(
            id="tuning.score_inside",
            assumption="The score that chose was computed inside the budget: with noise whose event is "
            "among those that bound each run, from training units that a keyed hash sets aside, unit by "
            "unit, and that no run trains on; or from a run's noisy outputs alone.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if inside else Result.VIOLATED,
            note=None if inside else "The score that chose is not among what was accounted.",
        ),
    ]


def _filtered(inputs: StatementInputs) -> list[Check]:
    """Adaptive runs stay inside a total that was fixed before any of them."""
    outside = inputs.selected is not None and inputs.covering is None
    return [
        Check(
            id="tuning.filter_kept",
            assumption="The order and the total of the Renyi filter were on the ledger before anything "
            "ran inside of it. Every run inside was spent from the total before it began, whatever "
            "earlier ones had shown, and one that did not fit never ran.",
            basis=Basis.ENFORCED,
            result=Result.VIOLATED if outside else Result.HOLDS,
            note="The run that was selected does not fit into a filter before it."
            if outside
            else None,
        )
    ]
