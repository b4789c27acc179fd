"""The runs that a statement was made of, read back out of it.

A statement says all that it was made of, but for what no item of it follows from. So it can be made
again from what it says, and every sentence and every figure compared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dpads.accounting.events import SENSITIVITY_SLACK
from dpads.accounting.facts import TUNING, HumanFacts
from dpads.accounting.figures import FACTS
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.joint import JointRuns
from dpads.accounting.ledger import LedgerEntry
from dpads.accounting.sections import TASKS
from dpads.errors import InputError, VerificationError

LARGEST_LEDGER = 100_000
"""Entries of all ledgers together beyond which nothing is read back."""
LARGEST_CAP = 100_000
"""Rows of one user beyond which no group is recomputed."""

_KINDS: Mapping[str, str] = {
    "training": "training",
    "class_prior_or_bias_init": "dp_count",
    "vocabulary_or_hashing": "selection",
    "calibration_layer": "recalibration",
    "hyperparameter_tuning": "tuning",
    "evaluation": "evaluation",
    "reference_training": "reference",
    "reference_tuning": "reference",
    "model_selection": "evaluation",
    "monitoring_and_logs": "unplanned_read",
    "further_trials": "trial",
    "filtering_or_downsampling": "upstream",
}
"""The ledger's kind of each stage that an entry can have."""

_CHOSE = frozenset({"reference_tuning", "model_selection"})
"""The stages of exact looks that chose columns or hyperparameters of the model."""

_TIMES = re.compile(r"(.*) \(([1-9][0-9]{0,8}) times\)", re.DOTALL)
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


def run_name(data: Mapping[str, Any], place: int) -> str:
    """What a run is called among the others."""
    called = data["ledgers"][place]["run"]
    return f"run {place + 1}" if called is None else f'run {place + 1} ("{called}")'


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
        plan=_plan(data, mechanism),
        ledger=tuple(ledger),
        ledger_head=data["ledgers"][place]["head"],
        artifacts={item["path"]: item["sha256"] for item in subject["artifacts"]},
        task=tasks.get(subject["task"], subject["task"]),
        model=subject["model_kind"],
        schema={
            "user": bound["identifier"],
            "weight": None if mechanism["loss_weights"] == "none" else "weight",
        },
        table_noise=mechanism["noise"].get("tables", "dense"),
        executed=mechanism["steps"]["executed"],
        replayed=mechanism["steps"]["replayed"],
        versions=data["transparency"]["versions"],
        created_at=data["created_at"],
        train_fingerprint="",
        run=data["ledgers"][place]["run"],
        noise_seed_used=mechanism["noise"]["seed_policy"] == "published_fixed",
        reference_trained=any(entry.kind == "reference" for entry in ledger),
        audits=tuple({k: v for k, v in a.items() if k != "contradicts_claim"} for a in audits),
        human=_people(data, place, subject),
    )


def _plan(data: Mapping[str, Any], mechanism: Mapping[str, Any]) -> dict[str, Any]:
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
    return {
        "privacy": {key: value for key, value in privacy.items() if value is not None},
        "mechanism": mechanism_numbers(mechanism),
        "delta": delta_of(data),
        "relation": adjacency["relation"],
        "dataset_size": size,
        "dataset_size_status": adjacency["dataset_size_status"],
        "sensitivity_slack": SENSITIVITY_SLACK,
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
    times = _TIMES.fullmatch(text) if "rows" in row else None
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
        # One answer that counts as none of several runs, and another of a trial of a sweep.
        accesses = data["definition"]["data_accesses"]
        others = any(
            access.get("trials", 1) > 1 and access["treatment"] != "public_data_only"
            for access in accesses
        )
        return "none" if others else "not_accounted"
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
    return _Filling(data, sizes).filled()


class _Filling:
    """Puts the uses of the data back on ledgers."""

    def __init__(self, data: Mapping[str, Any], sizes: Sequence[int]) -> None:
        self._data = data
        self._sizes = sizes
        self._left = {item["id"]: item for item in data["accounting"]["entries"]}
        self._tuning = {i["id"] for i in self._left.values() if i["kind"] == "tuning"}
        self._selected = list(data["accounting"].get("selected", []))
        self._pending = Counter[int]()
        for item in self._left.values():
            self._pending[item["run"]] += item["count"]
        self._ledgers: list[list[LedgerEntry]] = [[] for _ in sizes]

    def filled(self) -> list[list[LedgerEntry]]:
        """The ledgers."""
        current = 0
        again: list[tuple[int, LedgerEntry]] = []
        for number, row in enumerate(self._data["definition"]["data_accesses"]):
            if "rows" not in row:  # no access of a ledger
                continue
            path = f"definition/data_accesses/{number}"
            if self._is_selected(row):
                current, entry = self._selected_run(row, path)
                self._ledgers[current].append(entry)
                continue
            if "dp_event" in row:
                item = self._item(row, path)
                current = item["run"]
                entry = self._entry(row, path, item)
                self._ledgers[current].extend([entry] * item["count"])
                continue
            entry, count = self._uncovered(row, path)
            place = next((p for p in range(current, len(self._sizes)) if self._room(p)), current)
            self._ledgers[place].append(entry)
            if count - 1 > sum(self._sizes):
                raise VerificationError(f"{path}: no ledger has so many entries.")
            again.extend([(place, entry)] * (count - 1))
        if self._left:
            name = next(iter(self._left))
            raise VerificationError(f'accounting/entries: no use of the data names "{name}".')
        if self._selected:
            raise VerificationError("accounting/selected: no use of the data is one of them.")
        self._put_again(again)
        listed = sum(len(ledger) for ledger in self._ledgers)
        if sum(self._sizes) > listed + len(self._sizes):
            raise VerificationError(
                f"definition/data_accesses: the ledgers have {sum(self._sizes)} entries, of which "
                f"{listed} are listed as uses, and each ledger has one more when a run ends."
            )
        for place, size in enumerate(self._sizes):
            self._fill_up(place, size)
        return self._ledgers

    def _is_selected(self, row: Mapping[str, Any]) -> bool:
        """Whether a use is a run that another entry covers."""
        if row["stage"] != "training" or row["treatment"] != "covered_by_accounting":
            return False
        return row.get("dp_event") is None or row["dp_event"] in self._tuning

    def _selected_run(self, row: Mapping[str, Any], path: str) -> tuple[int, LedgerEntry]:
        """A selected run's place, and its entry."""
        if not self._selected or self._selected[0]["run"] >= len(self._sizes):
            raise VerificationError(f"{path}: accounting/selected does not have this run.")
        item = self._selected.pop(0)
        text, place = str(row["description"]), int(item["run"])
        if len(self._sizes) > 1:
            text = text.removesuffix(f", {run_name(self._data, place)}")
        details = {"dp_event": item["dp_event"]}
        return place, _entry(row, path, text, None, details, kind="selected_training")

    def _room(self, place: int) -> int:
        """How many entries a ledger can still take, covered ones to come apart."""
        free = self._sizes[place] - len(self._ledgers[place]) - self._pending[place]
        return max(0, free)

    def _put_again(self, again: Sequence[tuple[int, LedgerEntry]]) -> None:
        """Entries that stand on the ledgers several times: on the next runs' first."""
        last: tuple[int, LedgerEntry] | None = None
        for first, entry in again:
            start = last[0] if last is not None and last[1] is entry else first
            order = [(start + 1 + step) % len(self._sizes) for step in range(len(self._sizes))]
            place = next((p for p in order if self._room(p)), first)
            self._ledgers[place].append(entry)
            last = (place, entry)

    def _fill_up(self, place: int, size: int) -> None:
        """Entries that only say more about another one are in no list of uses."""
        ledger = self._ledgers[place]
        if len(ledger) > size:
            raise VerificationError(
                f"ledgers/{place}/entries: {size} is stated, and definition/data_accesses lists "
                f"{len(ledger)}."
            )
        closing = LedgerEntry(
            kind="training_finished",
            description="Iterations ran",
            rows="train",
            treatment="covered_by_accounting",
        )
        ledger.extend([closing] * (size - len(ledger)))

    def _item(self, row: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The item of accounting.entries that a use names."""
        item: dict[str, Any] | None = self._left.pop(row["dp_event"], None)
        if item is None:
            raise VerificationError(
                f"{path}/dp_event: accounting/entries has none of this name, or it was used."
            )
        self._pending[item["run"]] -= item["count"]
        return item

    def _entry(self, row: Mapping[str, Any], path: str, item: Mapping[str, Any]) -> LedgerEntry:
        """A covered entry."""
        text, place, count = row["description"], item["run"], item["count"]
        if count > 1:
            text = text.removesuffix(f" ({count} times)")
        if len(self._sizes) > 1:
            text = text.removesuffix(f", {run_name(self._data, place)}")
        if _KINDS.get(row["stage"]) != item["kind"]:
            raise VerificationError(f'{path}/stage: its entry is of the kind "{item["kind"]}".')
        facts = {key: item[key] for key in FACTS if key in item}
        return _entry(row, path, text, item["dp_event"], {"id": item["id"], **facts})

    def _uncovered(self, row: Mapping[str, Any], path: str) -> tuple[LedgerEntry, int]:
        """An entry without an event, and how often it is there."""
        times = _TIMES.fullmatch(row["description"])
        text, count = (times[1], int(times[2])) if times else (row["description"], 1)
        details: dict[str, Any] = {"chose_configuration": True} if row["stage"] in _CHOSE else {}
        if "trials" in row:
            details["trials"] = row["trials"]
        return _entry(row, path, text, None, details), count


def _entry(
    row: Mapping[str, Any],
    path: str,
    text: str,
    event: dict[str, Any] | None,
    details: Mapping[str, Any],
    *,
    kind: str | None = None,
) -> LedgerEntry:
    """An entry of a ledger; its kind follows from the stage, but for a selected run's."""
    kind = _KINDS.get(row["stage"]) if kind is None else kind
    if kind is None:
        raise VerificationError(f"{path}/stage: no entry of a ledger has it.")
    try:
        return LedgerEntry(
            kind=kind,
            description=text,
            rows=row["rows"],
            treatment=row["treatment"],
            dp_event=event,
            details=details,
        )
    except InputError as error:
        raise VerificationError(f"{path}: {error}") from None
