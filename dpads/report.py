"""From a run to its guarantee statement."""

from __future__ import annotations

from dpads.accounting.facts import HumanFacts
from dpads.accounting.ledger import Ledger
from dpads.accounting.statement import GuaranteeStatement, StatementInputs, make_statement
from dpads.plan import Plan
from dpads.record import RunRecord


def build_statement(
    plan: Plan, record: RunRecord, ledger: Ledger, *, created_at: str
) -> GuaranteeStatement:
    """The statement of one run, from its plan, its record and its ledger.

    Args:
        plan: the mechanism, resolved.
        record: how the run came about.
        ledger: every access to private rows so far.
        created_at: of the statement, UTC, ISO 8601.
    """
    return make_statement(
        StatementInputs(
            plan=plan.to_dict(),
            ledger=ledger.entries,
            ledger_head=ledger.head,
            artifacts=record.artifacts,
            task=str(record.schema["task"]),
            model=str(record.model["name"]),
            schema=record.schema,
            table_noise=str(record.settings["table_noise"]),
            executed=record.executed,
            replayed=record.replayed,
            versions=record.versions,
            created_at=created_at,
            noise_seed_used=record.settings["noise_seed"] is not None,
            reference_trained=record.reference,
            human=HumanFacts.from_mapping(record.statement),
        )
    )
