"""What a statement says of runs that were compared: whether its entries and counts agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpads.accounting.canonical import digest
from dpads.accounting.compared import covers, parts_of
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import NO_OP, EventTree
from dpads.accounting.findings import Finding
from dpads.accounting.foreign import path_text
from dpads.accounting.mechanism import DpSgdConfig
from dpads.accounting.relation import Relation
from dpads.accounting.releases import composed_with
from dpads.accounting.restated import mechanism_numbers, releases_of
from dpads.errors import InputError


def selected_runs(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Each selected run is inside the entry that covers it, and each score too."""
    relation = Relation(data["definition"]["adjacency"]["relation"])
    entries = {item["id"]: item["dp_event"] for item in data["accounting"]["entries"]}
    for number, item in enumerate(data["accounting"]["entries"]):
        score = item.get("score")
        if score is None:
            continue
        path = f"accounting/entries/{number}/score/dp_event"
        inside = score["dp_event"] == NO_OP or score["dp_event"] in parts_of(item["dp_event"])
        if not inside and holds(data, "tuning.score_inside"):
            nearest = _nearest(score["dp_event"], parts_of(item["dp_event"]), path)
            yield Finding(nearest, False, f"it is not among the mechanisms of {item['id']}.")
            return
        yield Finding(path, True, f"among the mechanisms of {item['id']}" if inside else "stated")
    for number, item in enumerate(data["accounting"].get("selected", [])):
        path, event = f"accounting/selected/{number}", item["dp_event"]
        try:
            to_dp_event(event)
        except InputError as error:
            yield Finding(f"{path}/dp_event", False, str(error))
            return
        if item["run"] >= len(data["ledgers"]):
            yield Finding(f"{path}/run", False, "there is no ledger of it.")
            return
        covering = entries.get(item["covered_by"])
        if digest(event) != item["dp_event_sha256"]:
            others = [_planned(data, item["run"]), *parts_of(covering or NO_OP)]
            known = [other for other in others if digest(other) == item["dp_event_sha256"]]
            where = (
                _nearest(event, known, f"{path}/dp_event") if known else f"{path}/dp_event_sha256"
            )
            yield Finding(where, False, "the digest beside it is another's.")
            return
        if item["covered_by"] is not None and (
            covering is None or not covers(covering, event, relation)
        ):
            yield Finding(f"{path}/covered_by", False, f"{item['covered_by']} does not cover it.")
            return
        yield Finding(f"{path}/dp_event", True, f"covered by {item['covered_by']}")


def counted_runs(data: Mapping[str, Any]) -> Iterator[Finding]:
    """As many runs are counted as the file planned that fixed them."""
    if not holds(data, "tuning.runs_counted"):
        return
    items = [(n, item) for n, item in enumerate(data["accounting"]["entries"]) if "trials" in item]
    for number, item in items:
        counted = 1 + sum(other["count"] for _, other in items if other["run"] == item["run"])
        if item["trials"] + item.get("retrained", 0) != counted:
            path = f"accounting/entries/{number}/trials"
            yield Finding(
                path, False, f"{item['trials']} is stated, and {counted} runs are counted."
            )
            return


def _planned(data: Mapping[str, Any], place: int) -> EventTree:
    """The event of a run, releases included; none where its numbers make none."""
    found = mechanisms(data)
    if place >= len(found):
        return dict(NO_OP)
    try:
        mechanism = found[place][1]
        training = DpSgdConfig(**mechanism_numbers(mechanism)).event()
        return composed_with(releases_of(mechanism), training)
    except InputError:
        return dict(NO_OP)


def _nearest(event: EventTree, others: Sequence[EventTree], path: str) -> str:
    """Where an event differs from one of some others in a single number; else the whole event."""
    keys = tuple(int(key) if key.isdigit() else key for key in path.split("/"))
    for other in others:
        ours, theirs = list(_leaves(event, ())), list(_leaves(other, ()))
        if [where for where, _ in ours] == [where for where, _ in theirs]:
            wrong = [where for (where, a), (_, b) in zip(ours, theirs, strict=True) if a != b]
            if len(wrong) == 1:
                return path_text((*keys, *wrong[0]))
    return path


def _leaves(tree: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value of a tree that is no container, with its path."""
    if isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, part in pairs:
            yield from _leaves(part, (*path, key))
    else:
        yield path, tree


def mechanisms(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Each run's mechanism, with its path."""
    further = enumerate(data["further_runs"])
    rest = [(f"further_runs/{n}/mechanism", run["mechanism"]) for n, run in further]
    return [("mechanism", data["mechanism"]), *rest]


def holds(data: Mapping[str, Any], name: str) -> bool:
    """Whether a check is stated to hold; one that is not there is none that was broken."""
    return all(check["result"] == "holds" for check in data["checks"] if check["id"] == name)
