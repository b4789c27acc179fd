"""A statement made again from the runs that were read back out of it, and compared item by item."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from dpads import __version__
from dpads.accounting.checks import Basis, Check, Result
from dpads.accounting.findings import Finding
from dpads.accounting.foreign import Difference, first_difference, path_text
from dpads.accounting.guarantees import guarantees_of
from dpads.accounting.headline import headline_of
from dpads.accounting.joint import JointRuns
from dpads.accounting.joint_checks import checks_of
from dpads.accounting.limits import limitations_of
from dpads.accounting.nist import nist_view_of
from dpads.accounting.public import public_copy
from dpads.accounting.restated import runs_of
from dpads.accounting.sections import Sections

DECIDING = ("dpads", "dp-accounting", "numpy", "scipy")
"""The packages whose versions decide the figures."""

# Upper bounds: what another version says may be larger.
_BOUNDS = frozenset(
    {
        "epsilon", "rho", "mu", "mu_fpr_floor", "rdp_values", "advantage", "accuracy", "tpr", "pld",
        "rdp", "epsilon_added",
    }
)  # fmt: skip
SECTIONS: Mapping[str, str] = {
    "mechanism": "sampler, clipping, noise and iterations",
    "further_runs": "the runs of a joint statement but the first",
    "subject": "model and files",
    "dp_setting": "who is trusted, and what the adversary sees",
    "definition": "uses of the data, output, unit and neighbours",
    "ledgers": "one for each run",
    "claim_level": "what follows from the checks",
    "accounting": "event, group events, grid, both bounds and tuning",
    "guarantees": "what each covers and stands on; hypothetical where nothing is claimed",
    "meaning": "bounds on an attacker, in figures and in words",
    "tier": "at this delta, for this number of units",
    "audit": "whether a lower bound contradicts the claim",
    "releases": "who gets what",
    "transparency": "code and versions",
    "signoffs": "who stands behind which checks",
    "missing": "what nobody supplied",
    "nist_view": "the blocks of NIST SP 800-226, from the other items",
    "limitations": "from the other items",
    "headline": "from the other items; no epsilon where nothing is claimed",
    "statement_id": "from ledgers, files and date",
    "created_at": "the date",
    "visibility": "whose copy it is",
}
"""What is made again, in the order in which it is compared."""

_OF_SOME_RUNS = frozenset(
    {
        "adjacency.n_public", "features.nothing_fitted", "initialisation.data_independent",
        "calibration.accounted", "reference.kept_inside", "reference.chose_configuration",
        "evaluation.kept_inside", "evaluation.chose_configuration", "evaluation.test_rows_apart",
        "public_rows.are_public", "tuning.declared", "tuning.fixed_in_advance",
        "tuning.runs_counted", "initialisation.from_earlier_run", "initialisation.vouched_for",
        "initialisation.earlier_assumptions", "initialisation.rate_is_public",
        "initialisation.earlier_accounted", "model.examples_apart",
    }
)  # fmt: skip
"""Checks that may be of some runs alone; of which, and who spoke for which, is said nowhere else."""
_PEOPLE = frozenset({str(Basis.ASSERTED), str(Basis.DECLARED)})
_BASES_OF_SOME_RUNS: Mapping[str, frozenset[str]] = {
    "adjacency.n_public": _PEOPLE,
    "features.nothing_fitted": frozenset({str(Basis.ENFORCED)}),
    "initialisation.data_independent": frozenset({str(Basis.ENFORCED)}),
    "initialisation.from_earlier_run": _PEOPLE,
    "initialisation.earlier_accounted": frozenset({str(Basis.ENFORCED)}),
    "initialisation.vouched_for": _PEOPLE,
    "initialisation.rate_is_public": _PEOPLE,
    "model.examples_apart": _PEOPLE,
    "initialisation.earlier_assumptions": _PEOPLE,
    "calibration.accounted": frozenset({str(Basis.VERIFIED)}),
    "reference.kept_inside": _PEOPLE,
    "reference.chose_configuration": _PEOPLE,
    "evaluation.chose_configuration": _PEOPLE,
    "public_rows.are_public": _PEOPLE,
    "evaluation.kept_inside": _PEOPLE,
    "evaluation.test_rows_apart": _PEOPLE,
    "tuning.runs_counted": frozenset({*_PEOPLE, str(Basis.ENFORCED)}),
    "tuning.declared": frozenset(map(str, Basis)),  # it never bears the claim
}
"""Why each of them can be believed at all."""
_IN_RUN = re.compile(r'In run [0-9]+(?: \("[^"]*"\))?: ')


def remade(data: Mapping[str, Any], on_progress: Callable[[str], None]) -> Iterator[Finding]:
    """What comes of making every item again.

    Args:
        data: A statement that its schema accepts and whose numbers agree.
        on_progress: Called with what is recomputed next.

    Raises:
        VerificationError: It cannot have been made of any runs; the message names the item.
    """
    runs = runs_of(data)
    others = other_versions(data)
    yield _versions(data, others)
    yield from _figures(data, runs, others, on_progress)
    on_progress("making every sentence again")
    yield _checks(data, runs, others)
    yield from compared(data, _made_again(data, runs), others)


def compared(
    data: Mapping[str, Any],
    expected: Mapping[str, Any],
    others: Mapping[str, str],
    *,
    first: str = "mechanism",
) -> Iterator[Finding]:
    """The items that follow from others, beside the same made again; up to the first difference.

    Args:
        data: A statement that its schema accepts.
        expected: The same statement, made again.
        others: What `other_versions` says.
        first: The item to begin with, the one that explains most where it differs.
    """
    for key, note in {first: SECTIONS[first], **SECTIONS}.items():
        stated = {k: v for k, v in data.items() if k == key}
        again = {k: v for k, v in expected.items() if k == key}
        if others:
            again = _adopted(again, data)
        different = first_difference(stated, again, at_least=_BOUNDS if others else frozenset())
        if different is not None:
            follows = f" ({note})" if note.startswith("from ") else ""
            yield Finding(different.item, False, f"{different}{follows}{made_by(others)}")
            return
        if stated.get(key):
            yield Finding(key, True, note)


def _figures(
    data: Mapping[str, Any],
    runs: JointRuns,
    others: Mapping[str, str],
    on_progress: Callable[[str], None],
) -> Iterator[Finding]:
    """Every guarantee's figures, those for groups without the cache."""

    def groups(done: int, of: int) -> None:
        on_progress(f"recomputing the guarantee for users: {done} of {of} deltas")

    on_progress("recomputing epsilon and the profile")
    expected: list[dict[str, Any]] = []
    if runs.loss is not None:
        expected = guarantees_of(
            runs.event,
            delta=runs.delta,
            relation=runs.relation,
            unit=runs.unit,
            covers="",
            depends_on=(),
            hypothetical=False,
            group_size=runs.group_size,
            on_progress=groups,
            cached=False,
        )
    names = [g["id"] for g in data["guarantees"]], [g["id"] for g in expected]
    if names[0] != names[1]:
        note = f"{', '.join(names[0]) or 'none'} are stated, {', '.join(names[1]) or 'none'} recomputed"
        yield Finding("guarantees", False, note + made_by(others))
        return
    compared = ("notion", "unit", "group_size", "value", *(() if others else ("accountant",)))
    bounds = _BOUNDS if others else frozenset[str]()
    for number, (stated, again) in enumerate(zip(data["guarantees"], expected, strict=True)):
        one, other = ({key: side[key] for key in compared} for side in (stated, again))
        different = first_difference(one, other, ("guarantees", number), at_least=bounds)
        if different is not None:
            yield Finding(different.item, False, str(different) + made_by(others))
            return
        yield Finding(f"guarantees/{number}", True, _in_words(stated))


def _checks(data: Mapping[str, Any], runs: JointRuns, others: Mapping[str, str]) -> Finding:
    """Every check is one of this library, and is what the statement's own items make it.

    A check may be worse than it is made again: a run's folder may show what a statement does not.
    """
    again = {**data, "checks": [check.to_dict() for check in checks_of(runs)]}
    if data["visibility"] == "public":
        again = public_copy(again)
    expected = {str(check["id"]): check for check in again["checks"]}
    seen: set[str] = set()
    for number, stated in enumerate(data["checks"]):
        path, name = ("checks", number), stated["id"]
        known = expected.get(name)
        if name in seen or (known is None and stated["result"] != Result.VIOLATED):
            return Finding(f"checks/{number}/id", False, f'"{name}" is twice, or not known here.')
        seen.add(name)
        if known is None:
            continue
        different = _check_difference(stated, known, path, runs.is_joint)
        if different is not None:
            return Finding(different.item, False, str(different) + made_by(others))
    lacking = [name for name in expected if name not in seen]
    if lacking:
        return Finding("checks", False, f'"{lacking[0]}" is not among them.')
    return Finding("checks", True, f"{len(seen)}, each made again")


def _check_difference(
    stated: Mapping[str, Any], expected: Mapping[str, Any], path: tuple[str | int, ...], joint: bool
) -> Difference | None:
    """Where a check is not what it should be."""
    keys = ["assumption", "load_bearing", "effect_if_false", "cost", "result"]
    name, result = stated["id"], stated["result"]
    worse = result in (Result.VIOLATED, Result.UNKNOWN) and expected["result"] == Result.HOLDS
    of_some_runs = joint and name in _OF_SOME_RUNS
    known_by_people = expected["basis"] in _PEOPLE
    if worse:
        keys.remove("result")
    else:
        keys += ["note", "evidence"]
    if not worse and not of_some_runs:
        keys += ["basis", "asserted_by"]
    elif not worse and stated["basis"] not in (
        # Who of several people spoke is said nowhere; that people have to is.
        allowed := _BASES_OF_SOME_RUNS.get(
            name, _PEOPLE if known_by_people else {expected["basis"]}
        )
    ):
        return Difference(
            path_text((*path, "basis")), str(stated["basis"]), " or ".join(sorted(allowed))
        )
    if of_some_runs and name == "calibration.accounted":
        keys.remove("evidence")
    one, other = (
        {
            key: _comparable(side[key], of_some_runs and key in ("assumption", "note"))
            for key in keys
            if key in side
        }
        for side in (stated, expected)
    )
    return first_difference(one, other, path)


def _comparable(value: Any, of_some_runs: bool) -> Any:
    """Part of a check, but for what a statement says nowhere else: the plan's digest, of which runs."""
    if isinstance(value, str) and of_some_runs:
        return " ".join(sorted({text.strip() for text in _IN_RUN.split(value)} - {""}))
    if not isinstance(value, list):
        return value
    plan = "the resolved plan"
    bare = [{**item, "sha256": ""} if item["ref"] == plan else item for item in value]
    return [item for number, item in enumerate(bare) if item not in bare[:number]]


@dataclass(frozen=True)
class _AsStated(Sections):
    """The sections that follow from the runs and from the checks as they are stated."""

    stated: Sequence[Check] = ()

    @cached_property
    def checks(self) -> list[Check]:
        """The checks as stated."""
        return list(self.stated)


def _made_again(data: Mapping[str, Any], runs: JointRuns) -> dict[str, Any]:
    """Every item but the checks, as it follows from runs and checks."""
    sections = _AsStated(runs, stated=[_check(check) for check in data["checks"]])
    expected: dict[str, Any] = json.loads(json.dumps(sections.to_dict()))
    if data["visibility"] == "public":
        expected = public_copy({**expected, "checks": data["checks"]})
    return {
        **expected,
        "headline": headline_of(data),
        "limitations": limitations_of(data),
        "nist_view": nist_view_of(data),
    }


def _check(stated: Mapping[str, Any]) -> Check:
    """A check as it is stated; its evidence is compared elsewhere."""
    return Check(
        id=stated["id"],
        assumption=stated["assumption"],
        basis=Basis(stated["basis"]),
        result=Result(stated["result"]),
        effect_if_false=stated["effect_if_false"],
        load_bearing=stated["load_bearing"],
        asserted_by=stated.get("asserted_by"),
        note=stated.get("note"),
    )


def other_versions(data: Mapping[str, Any]) -> dict[str, str]:
    """The deciding packages whose version here is not the statement's, as text for a message."""
    stated = data["transparency"]["versions"]
    here = {name: __version__ if name == "dpads" else version(name) for name in DECIDING}
    return {
        name: f"{name} {stated[name]} made it, {here[name]} is here"
        for name in DECIDING
        if name in stated and stated[name] != here[name]
    }


def _versions(data: Mapping[str, Any], others: Mapping[str, str]) -> Finding:
    """The accountant's version, and whether figures have to be equal."""
    stated = data["accounting"]["version"]
    listed = data["transparency"]["versions"].get("dp-accounting", "unknown")
    if stated != listed:
        return Finding(
            "accounting/version", False, f"{stated} is stated, {listed} in transparency/versions"
        )
    if others:
        note = "; ".join(others.values())
        return Finding(
            "transparency/versions", True, f"{note}: a figure may be larger, never smaller"
        )
    return Finding(
        "transparency/versions", True, "those that are here: every figure has to be equal"
    )


def made_by(others: Mapping[str, str]) -> str:
    """What else a difference may come from."""
    return f" ({'; '.join(others.values())})" if others else ""


def _adopted(expected: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """An item with what another version may choose otherwise as it is stated.

    That is which accountant gave the smaller bound, its grid, and the figures inside of sentences:
    these are the ones that are stated beside them.
    """
    if "accounting" in expected:
        free = {key: data["accounting"][key] for key in ("type", "value_discretization_interval")}
        return {"accounting": {**expected["accounting"], **free}}
    if "guarantees" in expected:
        pairs = zip(expected["guarantees"], data["guarantees"], strict=True)
        return {"guarantees": [{**g, "accountant": s["accountant"]} for g, s in pairs]}
    if "meaning" in expected and "meaning" in data:
        again, stated = expected["meaning"], data["meaning"]
        text = str(again["text"])
        for key in ("accuracy", "tpr"):
            text = text.replace(
                f"at most {_percent(again[key])}", f"at most {_percent(stated[key])}"
            )
        return {"meaning": {**again, "text": text}}
    return expected


def _percent(share: float) -> str:
    """A share as `guarantees.meaning_of` writes it."""
    return f"{100.0 * share:.2f}".rstrip("0").rstrip(".") + " %"


def _in_words(guarantee: Mapping[str, Any]) -> str:
    """A guarantee in a few words."""
    value, notion = guarantee["value"], guarantee["notion"]
    whom = "" if guarantee["group_size"] == 1 else f" for {guarantee['group_size']} rows of a user"
    if notion == "approx_dp":
        return f"epsilon {value['epsilon']:.2f} at delta {value['delta']:g}{whom}"
    if notion == "privacy_profile":
        return f"epsilon at {len(value['profile'])} deltas{whom}"
    if notion == "rdp_curve":
        return f"Renyi divergences at {len(value['rdp_orders'])} orders"
    if notion == "zcdp":
        return f"rho {value['rho']:g} of zCDP"
    if notion == "gdp":
        return f"mu {value['mu']:g} of Gaussian DP"
    return str(notion)
