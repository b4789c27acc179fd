"""Starting from an earlier run: its parameters, and its ledger carried on.

    day 1: runs/mon   ledger: training, recalibration                    epsilon 1.0
    day 2: runs/tue   ledger: earlier_run (all of mon's), training, ...  epsilon 1.4, both together
    day 3: runs/wed   ledger: earlier_run (all of tue's), training, ...  epsilon 1.7, all three

`privacy.epsilon` of a run is the total, earlier runs included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpads import run_files as files
from dpads.accounting.checks import Basis, Check, ClaimLevel, Result
from dpads.accounting.earlier import carried_event, earlier_entries, given_entry, resting_on
from dpads.accounting.events import EventTree
from dpads.accounting.ledger import Ledger, LedgerEntry
from dpads.config import Config, DataConfig, load_config
from dpads.errors import ConfigError, VerificationError
from dpads.models import UsersModel, describe
from dpads.models.output import Output
from dpads.plan import Plan
from dpads.record import RunRecord, check_format, load_statement
from dpads.report import checks_of_run, tuning_of_run
from dpads.start_rows import DETAIL, EarlierRows
from dpads.store import ExampleStore
from dpads.tensor_files import map_tensors
from dpads.training_start import StartModel

# What follows from looks that are carried on, which bring these checks with them.
_OF_LOOKS = ("reference.", "evaluation.", "public_rows.", "initialisation.earlier_assumptions")
_PEOPLE = (Basis.ASSERTED, Basis.DECLARED)


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        model: the parameters.
        entries: fields of the first entries of the run's ledger, before its rows are known.
        plan: of the earlier run; None where people vouch for the parameters.
        carried: what the earlier runs have spent; None where nothing is carried on.
        rows: which rows the earlier runs trained on.
        path: the earlier run's folder.
    """

    model: StartModel
    entries: tuple[Mapping[str, Any], ...]
    plan: Plan | None
    carried: EventTree | None
    rows: EarlierRows
    path: Path

    def entries_beside(self, train: ExampleStore, data: DataConfig) -> list[Mapping[str, Any]]:
        """The first entries of the ledger of a run on some rows.

        Args:
            train: the rows, capped.
            data: where they come from.
        """
        first, *looks = self.entries
        details = {**first["details"], DETAIL: self.rows.to_list()}
        return [
            {**first, "details": details},
            *({**e, "rows": self.rows.looked_at(e["rows"], train, data)} for e in looks),
        ]

    def check_rows(self, train: ExampleStore, data: DataConfig) -> None:
        """Refuses rows as public, of an earlier run or of one before it, that this run trains on.

        Args:
            train: the rows, capped.
            data: where they come from.

        Raises:
            ConfigError: both are of one store, or of one log.
        """
        shared = self.rows.shared_with_public(train, data)
        if shared is not None:
            raise ConfigError(
                f"[training] start_from_public: expected rows that are nobody's data, but {self.path}, or a "
                f"run that it started from, was trained on rows of the same {shared} as this run's training "
                "rows, and called them public. Leave start_from_public out, so that the earlier run is "
                "accounted for; rows that are public keep in a log and a store of their own."
            )

    def check_plan(self, plan: Plan) -> None:
        """Refuses a plan whose guarantee says nothing together with the earlier run's.

        Raises:
            ConfigError: unit, relation, cap or delta differ; the message names the item.
        """
        if self.plan is None:
            return
        if plan.relation != self.plan.relation:
            remedy = (
                "It follows from privacy.dataset_size, which both configure or neither does, and from "
                "privacy.sampler."
            )
            item, own, other = "neighbouring relation", plan.relation, self.plan.relation
            raise _differs(self.path, item, other, own, remedy)
        if plan.delta != self.plan.delta:
            remedy = f"Set privacy.delta = {self.plan.delta:g}."
            raise _differs(self.path, "delta", self.plan.delta, plan.delta, remedy)


def open_start(config: Config, begun: Ledger | None = None) -> Start | None:
    """Opens what a configuration starts from.

    Args:
        config: of the run that starts.
        begun: its ledger, where it was cut off and goes on.

    Returns:
        The start; None where parameters are made by init_seed.

    Raises:
        ConfigError: there is no whole run in that folder, or its model, schema, unit or cap is another
            one; or nothing bounds what its parameters tell.
        RunError: a file of it is missing, damaged or of another version.
        VerificationError: its ledger or its statement was altered, or its ledger cut off.
    """
    if config.training.start_from is None:
        return None
    path = Path(config.training.start_from)
    if config.prior.kind != "zero":
        raise ConfigError(
            f'[prior] kind = "{config.prior.kind}" says where the model\'s output starts, and so does '
            "training.start_from. Leave one of them out."
        )
    if not files.is_run(path):
        raise ConfigError(
            f"[training] start_from = {str(path)!r}: expected the folder of a run, found none."
            f"{files.hint_of(path)}"
        )
    record = RunRecord.from_dict(files.read_json(path / files.RUN))
    facts = files.read_json(path / files.MODEL)
    check_format(path / files.MODEL, facts)
    _check_same(config, record, facts, path)
    digest = _check_files(record, path)
    output = Output.from_dict(facts["output"])
    model = StartModel(map_tensors(path / files.PARAMETERS), output.offset, digest)
    ledger = Ledger.load(path / files.LEDGER)
    _check_whole(ledger, path)
    # What somebody looked at since this run began changed nothing of it.
    entries = ledger.entries[: _entries_at_start(begun)]
    public, data = config.training.start_from_public, load_config(path / files.CONFIG).data
    rows = EarlierRows.of_run(record, entries, data, public=public)
    if public:
        known = {"head": ledger.head, "entries": len(ledger.entries), "parameters": digest}
        entry = given_entry(
            "Training starts from the parameters of an earlier run on rows that are called public",
            {"earlier": known},
        )
        return Start(model, (entry,), None, None, rows, path)
    plan = Plan.from_dict(record.plan)
    _check_promise(config, plan, path)
    covered = carried_event(entries)
    if begun is not None and _first(begun) not in (None, covered):
        raise ConfigError(
            f"{path}: its ledger is another one than when the interrupted run began. Train anew under "
            "another --out."
        )
    level, checks = checks_of_run(plan, record, ledger)
    unprotected = config.privacy.noise_multiplier == 0.0
    if level is ClaimLevel.NONE and not unprotected:
        raise ConfigError(
            f"{path}: nothing is claimed for this run ({_reason(checks)}), so that nothing bounds what its "
            "parameters tell of its rows. Start from a run with a guarantee; or, if its rows are public, "
            "set start_from_public = true."
        )
    fields = earlier_entries(
        entries,
        ledger.head,
        _resting(checks, entries),
        parameters=digest,
        tuning=tuning_of_run(plan, record, ledger),
    )
    if unprotected:  # nothing is claimed for what starts here either
        fields[0] |= {"treatment": "not_covered", "dp_event": None}
        return Start(model, tuple(fields), plan, None, rows, path)
    return Start(model, tuple(fields), plan, covered, rows, path)


def refuse_start(config: Config, what: str) -> None:
    """Refuses a start from an earlier run where it is not accounted for.

    Raises:
        ConfigError: the configuration has one.
    """
    if config.training.start_from is not None:
        raise ConfigError(
            f"[training] start_from: {what} cannot start from an earlier run: its runs are accounted for "
            "together, and the earlier run is outside. Leave start_from out, and train the "
            "configuration that was chosen from the earlier run with dpads train."
        )


def _check_same(config: Config, record: RunRecord, facts: Any, path: Path) -> None:
    """The earlier run has the same columns, the same model and the same weights of classes."""
    own_model, other_model = config.model.to_dict(), facts["model"]
    if isinstance(config.model, UsersModel) and config.model.matches(describe(other_model)):
        other_model = own_model  # made again, with other initial parameters: those are overwritten
    for name, own, other in (
        ("schema", config.schema.to_dict(), facts["schema"]),
        ("model", own_model, other_model),
    ):
        keys = sorted(key for key in {*own, *other} if own.get(key) != other.get(key))
        if keys:
            raise ConfigError(
                f"{path}: expected a run of the same {name} to start from, got one that differs in "
                f"{', '.join(keys)}. Train with the [{name}] of its {files.CONFIG}, or start anew."
            )
    for name in ("positive_weight", "negative_weight"):
        other = record.settings[name]
        if getattr(config.training, name) != other:
            raise _differs(
                path, name, other, getattr(config.training, name), f"Set training.{name} = {other}."
            )


def _check_files(record: RunRecord, path: Path) -> str:
    """The files are those that training wrote; the digest of the parameters."""
    for name in (files.MODEL, files.PARAMETERS):
        with (path / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if record.artifacts.get(name) != found:
            raise ConfigError(
                f"{path / name}: it is another file than was trained. Restore it from a copy."
            )
    return found


def _check_whole(ledger: Ledger, path: Path) -> None:
    """The ledger is as long as when the statement beside it was made.

    Raises:
        VerificationError: entries were cut off, or the statement was not renewed.
    """
    (stated,) = load_statement(path).data["ledgers"]
    if (stated["entries"], stated["head"]) != (len(ledger.entries), ledger.head):
        raise VerificationError(
            f"{path / files.LEDGER}: expected the {stated['entries']} entries that {files.STATEMENT_JSON} "
            f"was made of, got {len(ledger.entries)}, or others: entries were cut off, or a look was. "
            "Restore both files from a copy."
        )


def _check_promise(config: Config, plan: Plan, path: Path) -> None:
    """Unit and cap are the same; so is a delta that is configured."""
    own, other = config.privacy, plan.privacy
    if own.unit != other.unit:
        raise _differs(path, "unit", other.unit, own.unit, f'Set privacy.unit = "{other.unit}".')
    cap, known = own.max_examples_per_unit, other.max_examples_per_unit
    if cap != known:
        remedy = "Leave it out." if known is None else f"Set it to {known}."
        raise _differs(path, "privacy.max_examples_per_unit", known, cap, remedy)
    if own.delta is not None and own.delta != plan.delta:
        raise _differs(path, "delta", plan.delta, own.delta, f"Set privacy.delta = {plan.delta:g}.")


def _differs(path: Path, item: str, other: object, own: object, remedy: str) -> ConfigError:
    """An item in which two runs have to agree, so that their guarantees compose."""
    return ConfigError(
        f"{path}: expected the {item} of the run that training starts from, {other}, got {own}: what "
        f"differs in it has no guarantee together. {remedy}"
    )


def _entries_at_start(begun: Ledger | None) -> int | None:
    """How many entries the earlier ledger had when the interrupted run began; None: it had not."""
    known = [] if begun is None else [e for e in begun.entries if e.kind == "earlier_run"]
    found = known[0].details.get("earlier") if known else None
    return None if found is None else int(found["entries"])


def _first(begun: Ledger) -> EventTree | None:
    """The event of the earlier run that an interrupted run has on its ledger."""
    return next((e.dp_event for e in begun.entries if e.kind == "earlier_run"), None)


def _resting(checks: list[Check], entries: tuple[LedgerEntry, ...]) -> list[str]:
    """What the earlier run's guarantee rests on, but what its looks bring with them."""
    own = [
        check.assumption
        for check in checks
        if check.load_bearing and check.basis in _PEOPLE and not check.id.startswith(_OF_LOOKS)
    ]
    return list(dict.fromkeys([*resting_on(entries), *own]))


def _reason(checks: list[Check]) -> str:
    """Why nothing is claimed."""
    broken = [c for c in checks if c.load_bearing and c.result is not Result.HOLDS]
    return "; ".join(dict.fromkeys((c.note or c.assumption).rstrip(".") for c in broken))


__all__ = ["Start", "open_start", "refuse_start"]
