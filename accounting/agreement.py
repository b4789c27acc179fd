"""Numbers that a statement has in several places: which of them does not agree with the others.

What follows from the mechanism is accounted as an event, and the event's digest stands beside it.
Three witnesses tell which of them was changed, so that the message names the right one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dpads.accounting.accountant import PROFILE_DELTAS
from dpads.accounting.agreement_tuning import counted_runs, holds, mechanisms, selected_runs
from dpads.accounting.canonical import digest
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import (
    NO_OP,
    SENSITIVITY_SLACK,
    EventTree,
    composed,
    effective_noise_multiplier,
    leaves,
)
from dpads.accounting.findings import Finding
from dpads.accounting.foreign import first_difference
from dpads.accounting.guarantees import profile_deltas
from dpads.accounting.mechanism import DpSgdConfig
from dpads.accounting.relation import Relation
from dpads.accounting.releases import composed_with
from dpads.accounting.restated import LARGEST_LEDGER, delta_of, mechanism_numbers, releases_of
from dpads.errors import InputError

_SOURCES: Mapping[str, str] = {
    "noise_multiplier": "noise/noise_multiplier",
    "sampling_prob": "sampler/sampling_probability",
    "count": "steps/planned",
    "dataset_size": "sampler/dataset_size",
    "max_batch_size": "sampler/truncated_batch_size",
}
"""Where a mechanism states what a number of its event follows from."""

# Entries, and counts of one of them, that are tried where they do not compose.
_FEW = 30
_RAN = re.compile(
    r"ledger of (\d+) entries: (\d+) planned, (\d+) executed, (?:(\d+) replayed\b|whether any)"
)


def agreements(data: Mapping[str, Any]) -> Iterator[Finding]:
    """What agrees, in the order in which one thing follows from another.

    Args:
        data: A statement that its schema accepts.
    """
    yield _composition(data)
    yield from selected_runs(data)
    yield from counted_runs(data)
    for place, (prefix, mechanism) in enumerate(mechanisms(data)):
        yield _noise(f"{prefix}/noise", mechanism["noise"], _accounted_noise(data, place))
        yield from _releases(data, place, prefix, mechanism)
        yield _event(data, place, prefix, mechanism)
        yield _ran(data, place, prefix, mechanism["steps"])
    yield _deltas(data)
    yield _units(data)


def _composition(data: Mapping[str, Any]) -> Finding:
    """The event composes the entries, and has the digest that stands beside it."""
    accounting = data["accounting"]
    event, entries = accounting["dp_event"], accounting["entries"]
    if sum(item["count"] for item in entries) > LARGEST_LEDGER:
        return Finding("accounting/entries", False, "there are too many to be recomputed.")
    places = [(f"accounting/entries/{n}/dp_event", e["dp_event"]) for n, e in enumerate(entries)]
    for number, item in enumerate(entries):
        if item["run"] >= len(data["ledgers"]):
            return Finding(f"accounting/entries/{number}/run", False, "there is no ledger of it.")
    for path, tree in (*places, ("accounting/dp_event", event)):
        try:
            to_dp_event(tree)
        except InputError as error:
            return Finding(path, False, str(error))
    whole = _composed(entries)
    intact = digest(event) == accounting["dp_event_sha256"]
    different = first_difference(event, whole, ("accounting", "dp_event"))
    if different is None and not intact:
        return Finding(
            "accounting/dp_event_sha256", False, "it is not the digest of accounting/dp_event."
        )
    if different is not None and not intact:
        return Finding(different.item, False, str(different))
    if different is not None:
        inside = _entry_at_fault(event, entries)
        note = f"they do not compose to accounting/dp_event, whose digest holds: {inside[1]}"
        return Finding(inside[0], False, note)
    return Finding(
        "accounting/dp_event", True, f"composed of {len(entries)} items of accounting/entries"
    )


def _entry_at_fault(event: EventTree, entries: list[dict[str, Any]]) -> tuple[str, str]:
    """The one place among the entries whose change makes them compose to an event again."""
    parts = event["events"] if event["kind"] == "composed" else [event]
    trees = [*parts, *(part["event"] for part in parts if part["kind"] == "self_composed")]
    tried = entries if sum(item["count"] for item in entries) <= _FEW else []
    for number, item in enumerate(tried):
        path = ("accounting", "entries", number)
        counts = [{**item, "count": count} for count in range(1, _FEW + 1)]
        for other in (*counts, *({**item, "dp_event": tree} for tree in trees)):
            if _composed([*entries[:number], other, *entries[number + 1 :]]) == event:
                found = first_difference(item, other, path)
                if found is not None:
                    return found.item, str(found)
    return "accounting/entries", "an event or a count of theirs is another."


def _composed(entries: list[dict[str, Any]]) -> EventTree:
    """Everything that is covered, as one event."""
    return composed([item["dp_event"] for item in entries for _ in range(item["count"])])


def _accounted_noise(data: Mapping[str, Any], place: int) -> list[float]:
    """The noise multipliers of a run's training entry; of a selected run, of everything that it did."""
    for item in data["accounting"]["entries"]:
        if item["run"] == place and item["kind"] == "training":
            return _numbers(item["dp_event"], "noise_multiplier")[:1]
    selected = _selected_events(data, place)
    return _numbers(selected[0], "noise_multiplier") if selected else []


def _selected_events(data: Mapping[str, Any], place: int) -> list[EventTree]:
    """The event of a run that was selected inside of an entry; [] of another run."""
    selected = data["accounting"].get("selected", [])
    return [item["dp_event"] for item in selected if item["run"] == place]


def _numbers(tree: Any, key: str) -> list[float]:
    """Every number under a key of a tree."""
    if isinstance(tree, list):
        return [number for part in tree for number in _numbers(part, key)]
    if not isinstance(tree, dict):
        return []
    inside = [
        number for name, part in tree.items() if name != key for number in _numbers(part, key)
    ]
    return [tree[key], *inside] if key in tree else inside


def _noise(path: str, noise: Mapping[str, Any], accounted: list[float]) -> Finding:
    """The accounted noise is the mechanism's, less the room for rounding."""
    slack = first_difference(
        noise["sensitivity_slack"], SENSITIVITY_SLACK, (path, "sensitivity_slack")
    )
    if slack is not None:
        return Finding(slack.item, False, str(slack))
    stated = noise["accounted_noise_multiplier"]
    expected = effective_noise_multiplier(noise["noise_multiplier"])
    if stated == expected:
        return Finding(path, True, f"{expected:.6g} is accounted, room for rounding included")
    if stated in accounted:
        return Finding(
            f"{path}/noise_multiplier",
            False,
            f"{noise['noise_multiplier']} is stated, and the accounted {stated} follows from another.",
        )
    return Finding(
        f"{path}/accounted_noise_multiplier", False, f"{stated} is stated, {expected} recomputed"
    )


def _event(
    data: Mapping[str, Any], place: int, prefix: str, mechanism: Mapping[str, Any]
) -> Finding:
    """The training entry's event is the mechanism's, and may be accounted under the relation."""
    numbers = mechanism_numbers(mechanism)
    if numbers["l2_clip_norm"] is None:
        numbers["l2_clip_norm"] = math.inf
    try:
        config = DpSgdConfig(**numbers)
    except InputError as error:
        return Finding(prefix, False, str(error))
    relation = Relation(data["definition"]["adjacency"]["relation"])
    if relation not in config.scheme.relations and holds(data, "sampling.suits_relation"):
        return Finding(
            f"{prefix}/sampler/kind",
            False,
            f'"{config.sampler}" batches were not proved under the relation "{relation}".',
        )
    per_pass = getattr(config.scheme, "batches_per_pass", None)
    stated = mechanism["sampler"]["batches_per_pass"]
    if stated != per_pass:
        return Finding(
            f"{prefix}/sampler/batches_per_pass",
            False,
            f"{_text(stated)} is stated, {_text(per_pass)} recomputed",
        )
    entries = [
        item["dp_event"]
        for item in data["accounting"]["entries"]
        if item["run"] == place and item["kind"] == "training"
        for _ in range(item["count"])
    ] + _selected_events(data, place)
    expected = dict(NO_OP) if config.noise_multiplier == 0.0 else config.event()
    if _selected_events(data, place):  # what is released beside its training is inside of its event
        expected = composed_with(releases_of(mechanism), expected)
    covered = composed(entries)
    different = first_difference(expected, covered, ("accounting", "entries"))
    if different is None:
        return Finding("accounting/entries", True, f"the event of {prefix}, made again")
    if not holds(data, "sampling.matches_accounting"):
        return Finding(
            "accounting/entries", True, f"not as {prefix} has it, and the statement says so"
        )
    if not entries:
        return Finding("accounting/entries", False, f"none of them is of the run of {prefix}.")
    source = _SOURCES.get(different.item.rpartition("/")[2], "sampler/kind")
    if {leaf["kind"] for leaf in leaves(expected)} != {leaf["kind"] for leaf in leaves(covered)}:
        source = "sampler/kind" if config.noise_multiplier > 0.0 else "noise/noise_multiplier"
    return Finding(
        f"{prefix}/{source}",
        False,
        f"the event that follows has {different.stated}, and accounting/entries has "
        f"{different.expected}.",
    )


def _releases(
    data: Mapping[str, Any], place: int, prefix: str, mechanism: Mapping[str, Any]
) -> Iterator[Finding]:
    """Each release beside training is accounted with the noise that is stated of it."""
    if _selected_events(data, place) or not holds(data, "releases.accounted"):
        return
    items = [item for item in data["accounting"]["entries"] if item["run"] == place]
    for number, release in enumerate(releases_of(mechanism)):
        found = [item["dp_event"] for item in items if item["kind"] == release.kind]
        path = f"{prefix}/releases/{number}"
        if release.event() not in found:
            note = (
                f"{release.noise_multiplier} is stated, and no item of accounting/entries has it."
            )
            yield Finding(f"{path}/noise_multiplier", False, note)
            return
        yield Finding(path, True, "its event is among accounting/entries")


def _ran(data: Mapping[str, Any], place: int, prefix: str, steps: Mapping[str, Any]) -> Finding:
    """Iterations and entries are those of the log that is evidence for them."""
    head, size = data["ledgers"][place]["head"], data["ledgers"][place]["entries"]
    paths = {
        f"ledgers/{place}/entries": size,
        **{f"{prefix}/steps/{key}": steps[key] for key in ("planned", "executed", "replayed")},
    }
    for number, check in enumerate(data["checks"]):
        for evidence in check["evidence"]:
            said = _RAN.match(evidence["ref"])
            if said is None or evidence.get("sha256") != head:
                continue
            for (path, stated), other in zip(paths.items(), said.groups(), strict=True):
                if (None if stated is None else str(stated)) != other:
                    note = f"{_text(stated)} is stated, and {other or 'none'} in checks/{number}/evidence."
                    return Finding(path, False, note)
            return Finding(f"{prefix}/steps", True, "those of the ledger that is evidence for them")
    return Finding(
        f"ledgers/{place}/head", False, "no evidence for the iterations that ran has this digest."
    )


def _deltas(data: Mapping[str, Any]) -> Finding:
    """Every place has the delta of the headline, and profiles the usual ones beside it."""
    paths: dict[str, float] = {}
    profiles: dict[str, list[float]] = {}
    for number, guarantee in enumerate(data["guarantees"]):
        value, place = guarantee["value"], f"guarantees/{number}/value"
        if guarantee["notion"] == "approx_dp":
            paths[f"{place}/delta"] = value["delta"]
        elif guarantee["notion"] == "privacy_profile":
            profiles[f"{place}/profile"] = [point["delta"] for point in value["profile"]]
    if "tier" in data:
        paths["tier/delta"] = data["tier"]["delta"]
    for number, check in enumerate(data["checks"]):
        for position, evidence in enumerate(check["evidence"]):
            if check["id"] == "delta.small" and evidence["ref"].startswith("delta = "):
                said = delta_of({"guarantees": [], "checks": [check]})
                paths[f"checks/{number}/evidence/{position}/ref"] = said
    if not paths:
        return Finding("guarantees", False, "no delta is stated anywhere.")
    everywhere = [*paths.values(), *(delta for deltas in profiles.values() for delta in deltas)]
    usual = max(paths.values(), key=lambda delta: sum(_same(delta, d) for d in everywhere))
    for path, delta in paths.items():
        if not _same(delta, usual):
            return Finding(path, False, f"delta {delta:g} is stated, and {usual:g} elsewhere.")
    for path, deltas in profiles.items():
        for point, delta in enumerate(deltas):
            if not any(_same(delta, d) for d in (usual, *PROFILE_DELTAS)):
                known = ", ".join(f"{d:g}" for d in profile_deltas(usual))
                note = f"{delta:g} is stated, and a profile has the deltas {known}."
                return Finding(f"{path}/{point}/delta", False, note)
    return Finding(
        "guarantees/*/value/delta", True, f"{usual:g} everywhere; profiles have others too"
    )


def _same(one: float, other: float) -> bool:
    """Whether two deltas are the same where one of them was printed with six digits."""
    return math.isclose(one, other, rel_tol=1e-5)


def _units(data: Mapping[str, Any]) -> Finding:
    """The number of units is the one that is called public."""
    path = "definition/adjacency/dataset_size"
    size = data["definition"]["adjacency"]["dataset_size"]
    bound = "definition/unit_of_privacy/contribution_bound/max_examples_per_user"
    cap = data["definition"]["unit_of_privacy"]["contribution_bound"]["max_examples_per_user"]
    for number, access in enumerate(data["definition"]["data_accesses"]):
        for stage, stated, said, where in (
            ("dataset_size", size, f" {size or 0:,}, ", path),
            ("contribution_bounding", cap, f"at most {cap or 0} row", bound),
        ):
            if access["stage"] == stage and said not in access["description"]:
                other = f"definition/data_accesses/{number}"
                note = f"{_text(stated)} is stated, and {other} says another."
                return Finding(where, False, note)
    for prefix, mechanism in mechanisms(data):
        stated = mechanism["sampler"]["dataset_size"]
        if stated is not None and stated != size:
            return Finding(
                f"{prefix}/sampler/dataset_size",
                False,
                f"{stated} is stated, {_text(size)} in {path}.",
            )
    return Finding(path, True, "the number of units is the same wherever it is stated")


def _text(value: float | None) -> str:
    """A number, or that there is none."""
    return "none" if value is None else f"{value}"
