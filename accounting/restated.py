"""The runs that a statement was made of, read back out of it.

A statement says all that it was made of, but for what no item of it follows from. So it can be made
again from what it says, and every sentence and every figure compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpads.accounting.earlier import NOT_DECLARED
from dpads.accounting.events import SENSITIVITY_SLACK, composed
from dpads.accounting.facts import TUNING, HumanFacts
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.joint import JointRuns
from dpads.accounting.ledger import LedgerEntry
from dpads.accounting.refilled import TIMES, Filling, run_name
from dpads.accounting.releases import Release
from dpads.accounting.sections import TASKS
from dpads.errors import InputError, VerificationError

LARGEST_LEDGER = 100_000
"""Entries of all ledgers together beyond which nothing is read back."""
LARGEST_CAP = 100_000
"""Rows of one user beyond which no group is recomputed."""

_WEAK = (NOT_DECLARED, "not_accounted")
_SUBJECT = ("model_version", "intended_use", "publisher", "contact", "region")


def runs_of(data: Mapping[str, Any]) -> JointRuns:
    """The runs of a statement.

    What a statement does not say of a single run (in which of several runs a metric was computed,
    who of several people spoke for which) is filled in so that it comes out as stated.

    Args:
        data: A statement that its schema accepts.

    Raises:
        VerificationError: It cannot have been made of any runs; the message names the item.
    """
    ledgers = _ledgers(data)
    parts = [("", data), *((f"further_runs/{i}/", r) for i, r in enumerate(data["further_runs"]))]
    if len(parts) != len(ledgers):
        raise VerificationError(f"ledgers: {len(ledgers)} are stated, of {len(parts)} runs.")
    try:
        return JointRuns(
            tuple(
                _inputs(data, place, part["subject"], part["mechanism"], ledgers[place])
                for place, (_, part) in enumerate(parts)
            )
        )
    except InputError as error:
        raise VerificationError(f"further_runs: {error}") from None


def mechanism_numbers(mechanism: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a mechanism as `DpSgdConfig.to_dict` has them."""
    sampler, clipping = mechanism["sampler"], mechanism["clipping"]
    prob, units = sampler["sampling_probability"], sampler["dataset_size"]
    if sampler["kind"] == "fixed_order" and prob is None and units is not None:
        prob = min(1.0, clipping["expected_batch_size"] / units)
    return {
        "l2_clip_norm": clipping["norm"],
        "noise_multiplier": mechanism["noise"]["noise_multiplier"],
        "sampling_prob": prob,
        "iterations": mechanism["steps"]["planned"],
        "expected_batch_size": clipping["expected_batch_size"],
        "sampler": sampler["kind"],
        "units": units,
        "max_batch_size": sampler["truncated_batch_size"],
    }


def releases_of(mechanism: Mapping[str, Any]) -> tuple[Release, ...]:
    """What a stated mechanism releases beside training."""
    return tuple(Release.from_dict(item) for item in mechanism.get("releases", ()))


def delta_of(data: Mapping[str, Any]) -> float:
    """The delta of the headline; of a statement without guarantees, that of its checks."""
    for guarantee in data["guarantees"]:
        if guarantee["notion"] == "approx_dp":
            return float(guarantee["value"]["delta"])
    for check in data["checks"]:
        for evidence in check["evidence"]:
            name, _, value = evidence["ref"].partition("delta = ")
            if check["id"] == "delta.small" and not name and re.fullmatch(r"[0-9.e-]+", value):
                try:
                    return float(value)
                except ValueError:
                    break
    raise VerificationError('checks: none of them says "delta = ...".')


def _inputs(
    data: Mapping[str, Any],
    place: int,
    subject: Mapping[str, Any],
    mechanism: Mapping[str, Any],
    ledger: Sequence[LedgerEntry],
) -> StatementInputs:
    """One run."""
    bound = data["definition"]["unit_of_privacy"]["contribution_bound"]
    tasks = {stated: task for task, stated in TASKS.items()}
    audits = data["audit"] if place == 0 else ()
    return StatementInputs(
        plan=_plan(data, mechanism, ledger),
        ledger=tuple(ledger),
        ledger_head=data["ledgers"][place]["head"],
        artifacts={item["path"]: item["sha256"] for item in subject["artifacts"]},
        task=tasks.get(subject["task"], subject["task"]),
        model=subject["model_kind"],
        schema={
            "user": bound["identifier"],
            "weight": None if mechanism["loss_weights"] == "none" else "weight",
        },
        public_rate=any(c["id"] == "initialisation.rate_is_public" for c in data["checks"]),
        table_noise=mechanism["noise"].get("tables", "dense"),
        executed=mechanism["steps"]["executed"],
        replayed=mechanism["steps"]["replayed"],
        versions=data["transparency"]["versions"],
        created_at=data["created_at"],
        train_fingerprint="",
        backend=mechanism.get("backend", "torch"),
        run=data["ledgers"][place]["run"],
        noise_seed_used=mechanism["noise"]["seed_policy"] == "published_fixed",
        reference_trained=any(entry.kind == "reference" for entry in ledger),
        audits=tuple({k: v for k, v in a.items() if k != "contradicts_claim"} for a in audits),
        human=_people(data, place, subject),
    )


def _plan(
    data: Mapping[str, Any], mechanism: Mapping[str, Any], ledger: Sequence[LedgerEntry]
) -> dict[str, Any]:
    """The plan, as far as statements follow from it."""
    definition = data["definition"]
    adjacency, unit = definition["adjacency"], definition["unit_of_privacy"]
    cap, size = unit["contribution_bound"]["max_examples_per_user"], adjacency["dataset_size"]
    if cap is not None and cap > LARGEST_CAP:
        raise VerificationError(
            "definition/unit_of_privacy/contribution_bound/max_examples_per_user: groups of more than "
            f"{LARGEST_CAP:,} cannot be recomputed."
        )
    privacy = {
        "unit": unit["kind"],
        "max_examples_per_unit": cap,
        "dataset_size": size if adjacency["dataset_size_status"] == "public" else None,
    }
    earlier = [e.dp_event for e in ledger if e.kind == "earlier_run" and e.dp_event is not None]
    return {
        "privacy": {key: value for key, value in privacy.items() if value is not None},
        "mechanism": mechanism_numbers(mechanism),
        "delta": delta_of(data),
        "relation": adjacency["relation"],
        "dataset_size": size,
        "dataset_size_status": adjacency["dataset_size_status"],
        "sensitivity_slack": SENSITIVITY_SLACK,
        **({"releases": mechanism["releases"]} if "releases" in mechanism else {}),
        **({"carried": composed(earlier)} if earlier else {}),
    }


def _people(data: Mapping[str, Any], place: int, subject: Mapping[str, Any]) -> HumanFacts:
    """What people said of one run."""
    setting, definition = data["dp_setting"], data["definition"]
    transparency, accesses = data["transparency"], definition["data_accesses"]
    missing = {item["key"] for item in data["missing"]}
    last = place > 0 and place == len(data["ledgers"]) - 1
    parties = [party["party"] for party in setting["trusted_parties"]]
    name = subject["model_name"]
    _, _, rest = definition["unit_of_privacy"]["definition"].partition(" (")
    upstream, refresh = (
        [_once(a) for a in accesses if a["stage"] == stage and a["filled_by"] == "human"]
        for stage in ("filtering_or_downsampling", "retraining_or_refresh")
    )
    # Of several runs' answers the statement says all together, and whether one is missing.
    together = {
        "asserted_by": _person(data, missing),
        "unit_definition": rest.removesuffix(")") or None,
        "period": definition["unit_of_privacy"]["contribution_bound"]["period"],
        "upstream": upstream[0] if upstream else None,
        "refresh": refresh[0] if refresh else None,
        "justification": data["accounting"]["justification"],
        "access_control": setting["access_control"],
        "data_collection": setting["data_collection"],
        "repository": transparency["repository"],
        "commit": transparency["commit"],
        "third_party_review": transparency.get("third_party_review"),
    }
    said = {key: None if last and key in missing else text for key, text in together.items()}
    own = {
        **{key: subject.get(key) for key in _SUBJECT},
        "model_name": None if name == subject["model_kind"] and "model_name" in missing else name,
        "trusted_party": parties[min(place, len(parties) - 1)],
        "tuning": _tuning(data, place, missing),
        "released_to": _released_to(data, place),
    }
    return HumanFacts(**{**said, **own})


def _once(row: Mapping[str, Any]) -> str:
    """What a use says, without how often it stands on ledgers."""
    text = str(row["description"])
    times = TIMES.fullmatch(text) if "rows" in row else None
    return times[1] if times else text


def _person(data: Mapping[str, Any], missing: set[str]) -> str | None:
    """Who stands behind what code cannot check."""
    people = [check["asserted_by"] for check in data["checks"] if "asserted_by" in check]
    if people:
        return str(people[0])
    # A person who asserts nothing that this statement stands on is named nowhere in it.
    return None if "asserted_by" in missing else "somebody"


def _tuning(data: Mapping[str, Any], place: int, missing: set[str]) -> str | None:
    """How people say that a run's configuration was chosen."""
    said = [
        evidence["ref"].partition(" = ")[2]
        for check in data["checks"]
        if check["id"] == "tuning.declared"
        for evidence in check["evidence"]
        if evidence["ref"].startswith("statement.tuning = ")
    ]
    if not said and "tuning" not in missing:
        # One answer that counts as none of several runs, and another of a trial of a sweep, or beside
        # an earlier run's weaker answer.
        accesses = data["definition"]["data_accesses"]
        others = any(
            access.get("trials", 1) > 1 and access["treatment"] != "public_data_only"
            for access in accesses
        )
        earlier = (item.get("earlier", {}) for item in data["accounting"]["entries"])
        weaker = any(known.get("tuning") in _WEAK for known in earlier)
        return "none" if others or weaker else "not_accounted"
    if not said:
        return None
    answer = said[min(place, len(said) - 1)]
    if answer not in TUNING:
        raise VerificationError('checks: "tuning.declared" has evidence of an unknown answer.')
    return str(answer)


def _released_to(data: Mapping[str, Any], place: int) -> str | None:
    """Who gets a run's model."""
    joint = len(data["ledgers"]) > 1
    what = f"the final parameters of {run_name(data, place)}" if joint else "the final parameters"
    found = [release["to_whom"] for release in data["releases"] if release["what"] == what]
    return found[0] if found else None


def _ledgers(data: Mapping[str, Any]) -> list[list[LedgerEntry]]:
    """Each run's ledger, as far as a statement lists it, and as long as it says."""
    sizes = [ledger["entries"] for ledger in data["ledgers"]]
    if sum(sizes) > LARGEST_LEDGER:
        raise VerificationError(
            f"ledgers: more than {LARGEST_LEDGER:,} entries cannot be recomputed."
        )
    entries = data["accounting"]["entries"]
    for number, item in enumerate(entries):
        if item["run"] >= len(sizes) or item["count"] > sizes[item["run"]]:
            raise VerificationError(
                f"accounting/entries/{number}: its run has no ledger with so many entries."
            )
    return Filling(data, sizes).filled()
