"""The guarantee in one paragraph: a function of the statement's other items alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpads.accounting.accountant import default_delta
from dpads.accounting.checks import Basis, Result
from dpads.accounting.earlier import NOT_DECLARED
from dpads.accounting.releases import WORDS
from dpads.accounting.wording import (
    RELATION_WORDS,
    TIER_WORDS,
    listed,
    number,
    rounded_up,
    row_words,
    user_rows_words,
)

__all__ = ["RELATION_WORDS", "TIER_WORDS", "headline_of", "not_covered", "number"]

_PEOPLE = (Basis.ASSERTED, Basis.DECLARED)


def headline_of(data: Mapping[str, Any]) -> str:
    """The headline of a statement.

    Args:
        data: The statement's data; `headline`, `limitations` and the digests are not looked at.

    Returns:
        One paragraph of plain text.

    Guarantees:
        - At claim level "none" no epsilon is in it.
        - Every access that shaped the model and is not covered is named.
    """
    claim = data["claim_level"]
    if claim == "none":
        reasons = "; ".join(dict.fromkeys(_reason(c) for c in data["checks"] if _is_broken(c)))
        return (
            f"Claim level: none. No differential privacy is claimed for {_names(data)}. "
            f"Reason: {reasons or 'nothing on the ledger is covered'}."
        )
    sentences = [f"Claim level: {claim}{_condition(data)}.", _guarantee(data), _tier(data)]
    uncovered = not_covered(data)
    if uncovered:
        sentences.append(f"Not covered: {'; '.join(uncovered)}.")
    if data["definition"]["unit_of_privacy"]["kind"] != "user":
        sentences.append(_for_users(data))
    return " ".join(sentences)


def not_covered(data: Mapping[str, Any]) -> list[str]:
    """The accesses outside the guarantee that shaped a model or its choice, in a few words each."""
    accesses = [
        access
        for access in data["definition"]["data_accesses"]
        if access["treatment"] == "not_covered"
        and access["stage"] != "retraining_or_refresh"
        and access.get("trials") != 1
    ]
    found = list(dict.fromkeys(_briefly(access, data) for access in accesses))
    # Metrics that chose among runs are metrics: who reads of the one need not read of the other.
    return [a for a in found if not any(b != a and b.startswith(a) for b in found)]


def no_guarantee_for_users(data: Mapping[str, Any]) -> str | None:
    """Why no guarantee for users exists; None where there is one."""
    if any(g["unit"] == "user" and not g["hypothetical"] for g in data["guarantees"]):
        return None
    bound = data["definition"]["unit_of_privacy"]["contribution_bound"]
    if bound["identifier"] is None:
        return "no user column"
    if bound["max_examples_per_user"] is None:
        return "no cap on the rows of one user"
    return "no bound for groups of rows is known for this sampler"


def _guarantee(data: Mapping[str, Any]) -> str:
    """Which models, how private, for whom, between which neighbours."""
    value = _stated(data, "G1")["value"]
    relation = RELATION_WORDS[data["definition"]["adjacency"]["relation"]]
    promise = (
        f"({value['epsilon']:.2f}, {number(value['delta'])})-differentially private for "
        f"{_unit(data)} under {relation}"
    )
    steps = [data["mechanism"]["steps"], *(r["mechanism"]["steps"] for r in data["further_runs"])]
    most = max(step["planned"] for step in steps)
    count, beside, with_ = len(data["ledgers"]), _beside(data), _released_beside(data)
    if count > 1:
        more = f" and {listed(beside)}" if beside else ""
        return (
            f"The final models of {count} training runs on the same rows ({_names(data)}), each of at "
            f"most {most:,} iterations of DP-SGD{with_},{more} are jointly {promise}; delta is the "
            "smallest of the runs'."
        )
    model = (
        f"The final model {_names(data)}, from one training run of at most {most:,} iterations of "
        f"DP-SGD{with_}"
    )
    if not beside:
        return f"{model}, is {promise}."
    selection = _selection(data)
    if selection is not None:
        return (
            f"{model} that was privately selected among a random, secret number of runs "
            f"({number(selection['mean'])} on average, of which nothing but the best is ever shown), is "
            f"{promise}, the selection included."
        )
    return f"{model}, {listed(['', *beside]).strip(', ')} are jointly {promise}."


def _selection(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The private selection that the stated run comes from, where nothing else is beside it."""
    accounting = data["accounting"]
    items = [item for item in accounting["entries"] if item["kind"] == "tuning"]
    selected = [item["covered_by"] for item in accounting.get("selected", [])]
    if selected != [item["id"] for item in items] or _earlier(data):
        return None
    event: Mapping[str, Any] = items[0]["dp_event"]
    return event if event["kind"] == "repeat_and_select" else None


def _beside(data: Mapping[str, Any]) -> list[str]:
    """What the figure covers besides the stated models, in words; [] where it is nothing."""
    accounting = data["accounting"]
    items = [item for item in accounting["entries"] if item["kind"] == "tuning"]
    selected = {item["covered_by"] for item in accounting.get("selected", [])}
    words = []
    for item in items:
        event = item["dp_event"]
        if event["kind"] == "repeat_and_select":
            other = "every other run" if item["id"] in selected else "every run"
            words.append(
                f"{other} of the private selection (a random, secret number of runs, {event['mean']:g} on "
                "average, of which nothing but the best is shown)"
            )
        elif event["kind"] == "renyi_filter":
            other = "every other run" if item["id"] in selected else "every run"
            words.append(
                f"{other} inside the Renyi filter (order {number(event['order'])}, total "
                f"{rounded_up(event['rdp'])}) that was fixed before the first of them"
            )
    words = list(dict.fromkeys(words))
    hidden = ("repeat_and_select", "renyi_filter")
    tried = sum(item["count"] for item in items if item["dp_event"]["kind"] not in hidden)
    if tried:
        each = "the other training run" if tried == 1 else f"the {tried:,} other training runs"
        words.insert(0, f"{each} on the same rows that it was compared with")
    return [*_earlier(data), *words]


def _released_beside(data: Mapping[str, Any]) -> str:
    """The noisy sums beside the stated runs' training, in words; nothing where there are none."""
    parts = [data["mechanism"], *(run["mechanism"] for run in data["further_runs"])]
    kinds = {release["kind"] for part in parts for release in part.get("releases", ())}
    words = [text for kind, text in WORDS.items() if kind in kinds]
    return f" with {listed(words)}" if words else ""


def _earlier(data: Mapping[str, Any]) -> list[str]:
    """The runs before that the figure covers, in words; [] where there are none."""
    kinds = {item["kind"] for item in data["accounting"]["entries"]}
    if "earlier_run" not in kinds:
        return []
    whose = "they start" if len(data["ledgers"]) > 1 else "it starts"
    return [f"everything that is covered of the earlier runs whose parameters {whose} from"]


def _unit(data: Mapping[str, Any]) -> str:
    """One unit in words."""
    unit = data["definition"]["unit_of_privacy"]
    most = unit["contribution_bound"]["max_examples_per_user"]
    if unit["kind"] == "user":
        return f"one user ({user_rows_words(most, **_logs(data))})"
    kept = "" if most is None else f", of the at most {most} that are kept of each user"
    return f"one example ({row_words(**_logs(data))}{kept})"


def _logs(data: Mapping[str, Any]) -> dict[str, bool]:
    """Which logs the rows are of, as `wording.row_words` takes it."""
    return {
        "split": any(a.get("rows") == "test" for a in data["definition"]["data_accesses"]),
        "earlier": bool(_earlier(data)),
        "joint": len(data["ledgers"]) > 1,
    }


def _for_users(data: Mapping[str, Any]) -> str:
    """What follows for users where the unit is a row."""
    why = no_guarantee_for_users(data)
    if why is not None:
        return f"No user-level guarantee exists: {why}."
    stated = _stated(data, "G2")
    value = stated["value"]
    subject = "they are jointly" if len(data["ledgers"]) > 1 else "it is"
    size = stated["group_size"]
    return (
        f"For one user ({user_rows_words(size, **_logs(data))}) {subject} "
        f"({value['epsilon']:.2f}, {number(value['delta'])})-differentially private, by group privacy."
    )


def _stated(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A guarantee by its id."""
    found: Mapping[str, Any] = next(g for g in data["guarantees"] if g["id"] == name)
    return found


def _names(data: Mapping[str, Any]) -> str:
    """The models' names, each once."""
    subjects = [data["subject"], *(run["subject"] for run in data["further_runs"])]
    return listed(list(dict.fromkeys(f'"{subject["model_name"]}"' for subject in subjects)))


def _briefly(access: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """One access in a few words."""
    stage, rows = access["stage"], access.get("rows")
    if stage == "reference_training":
        return "the reference model trained without noise on the same rows, and its metrics"
    if stage == "reference_tuning":
        return "runs without noise on the same rows, which chose hyperparameters of this model"
    if stage == "further_trials":
        return _further_trials(int(access["trials"]), joint=len(data["ledgers"]) > 1)
    if stage == "model_selection":
        return {
            "test": "the test rows, split off from the same log, which have no guarantee: they were read "
            "exactly for metrics that chose among runs",
            "declared_test": "the test rows, which were read exactly for metrics that chose among runs",
        }.get(str(rows), "exact metrics that chose among runs, on rows that may be training rows")
    if stage == "evaluation":
        return {
            "test": "the test rows, split off from the same log, which have no guarantee: they were read "
            "exactly for metrics",
            "declared_test": "the test rows, which were read exactly for metrics",
            "train": "exact metrics on training rows",
        }.get(str(rows), "exact metrics on rows that may be training rows")
    if access.get("check_id") == "tuning.declared":
        if data["accounting"]["tuning"]["method"] == "not_accounted":
            if _is_of_earlier(data, "not_accounted"):
                return (
                    "the other runs that chose the configuration, of this run or of an earlier one"
                )
            return "the other runs on these rows that chose the configuration"
        others = " beyond these runs" if len(data["ledgers"]) > 1 or _beside(data) else ""
        if len(data["ledgers"]) == 1 and _is_of_earlier(data, NOT_DECLARED):
            others = ", of this run or of an earlier one"
        return f"how the configuration was chosen{others} (not declared)"
    if stage == "collection":
        return "what was done to the log before it was read (not declared)"
    text = str(access["description"]).rstrip(".")
    if stage == "filtering_or_downsampling":
        if access["filled_by"] == "auto+human":
            return "which negatives were left out of the log before it was read"
        return f"what was done to the log before: {text}"
    return text


def _is_of_earlier(data: Mapping[str, Any], answer: str) -> bool:
    """Whether an earlier run's answer to how its configuration was chosen is this one."""
    entries = data["accounting"]["entries"]
    return any(item.get("earlier", {}).get("tuning") == answer for item in entries)


def _further_trials(trials: int, *, joint: bool) -> str:
    """The trials of a sweep that a statement is not about."""
    if joint:
        return (
            f"other ones of the {trials:,} trials of a sweep that runs of this statement belong to"
        )
    others = "the other trial" if trials == 2 else f"the {trials - 1:,} other trials"
    return f"{others} of the sweep that this run belongs to"


def _is_broken(check: Mapping[str, Any]) -> bool:
    """Whether this check leaves no claim."""
    return bool(check["load_bearing"]) and check["result"] != Result.HOLDS


def _reason(check: Mapping[str, Any]) -> str:
    """Why a check broke."""
    return str(check.get("note") or f"not established: {check['assumption']}").rstrip(".")


def _condition(data: Mapping[str, Any]) -> str:
    """What a conditional claim rests on."""
    resting = [c for c in data["checks"] if c["load_bearing"] and c["basis"] in _PEOPLE]
    if not resting:
        return ""
    names: Sequence[str] = sorted({c["asserted_by"] for c in resting if "asserted_by" in c})
    who = (
        f"asserted by {listed(names)}"
        if names
        else "declared by the configuration and signed by nobody"
    )
    text = " ".join(str(c["assumption"]) for c in resting).rstrip(".")
    plural = "s" if len(resting) > 1 else ""
    return f", on {len(resting)} assumption{plural} {who}: {text}"


def _tier(data: Mapping[str, Any]) -> str:
    """The tier with its delta, or why there is none."""
    tier = data.get("tier")
    if tier is not None:
        return f"{TIER_WORDS[tier['label']]} at delta {number(tier['delta'])}."
    units = data["definition"]["adjacency"]["dataset_size"]
    if units is None:
        return "No tier is named: no public number of units is known to judge delta by."
    return (
        f"No tier is named: delta is above {number(default_delta(units))}, the default for so many "
        "units."
    )
