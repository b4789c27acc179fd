"""From a run to its guarantee statement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dpads.accounting.accesses import tuning_of
from dpads.accounting.checks import Check, ClaimLevel, claim_level
from dpads.accounting.facts import HumanFacts
from dpads.accounting.joint import JointRuns
from dpads.accounting.joint_checks import checks_of
from dpads.accounting.ledger import Ledger
from dpads.accounting.statement import (
    GuaranteeStatement,
    StatementInputs,
    joint_statement,
    make_statement,
)
from dpads.plan import Plan
from dpads.record import PLATFORM, RunRecord
from dpads.run_files import now

if TYPE_CHECKING:
    from dpads.run import Run


_CLASS_WEIGHTS = ("positive_weight", "negative_weight")


def build_statement(
    plan: Plan,
    record: RunRecord,
    ledger: Ledger,
    *,
    created_at: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> GuaranteeStatement:
    """The statement of one run, from its plan, its record and its ledger.

    Args:
        plan: the mechanism, resolved.
        record: how the run came about.
        ledger: every access to private rows so far.
        created_at: of the statement, UTC, ISO 8601.
        on_progress: called with how much of a guarantee for users is computed, and of how much.
    """
    inputs = _inputs(plan, record, ledger, created_at, None)
    return make_statement(inputs, on_progress=on_progress)


def checks_of_run(plan: Plan, record: RunRecord, ledger: Ledger) -> tuple[ClaimLevel, list[Check]]:
    """How much is claimed for one run, and what that stands on, without its figures for users."""
    checks = checks_of(JointRuns((_inputs(plan, record, ledger, record.created_at, None),)))
    return claim_level(checks), checks


def tuning_of_run(plan: Plan, record: RunRecord, ledger: Ledger) -> str | None:
    """How people say that the configuration of a run was chosen, or of those that it starts from."""
    return tuning_of(JointRuns((_inputs(plan, record, ledger, record.created_at, None),)))


def build_joint_statement(
    runs: Sequence[Run], *, on_progress: Callable[[int, int], None] | None = None
) -> GuaranteeStatement:
    """What several runs on the same rows reveal together.

    Args:
        runs: the runs, each once.
        on_progress: called with how much of a guarantee for users is computed, and of how much.

    Raises:
        ConfigError: no runs, one of them twice, two of one private selection, or runs that differ in
            unit, relation, cap, public number of units or training rows; the message names the item.
    """
    created_at = now()
    for run in runs:
        run.renew_ledger()
    inputs = [
        _inputs(
            run.plan,
            run.record,
            run.ledger,
            created_at,
            None if run.path is None else run.path.name,
        )
        for run in runs
    ]
    return joint_statement(inputs, on_progress=on_progress)


def _backend(record: RunRecord) -> str:
    """What ran the mechanism: "torch", "jax" on processors, or "jax-gpu" and the like."""
    backend, platform = str(record.settings["backend"]), record.versions.get(PLATFORM, "cpu")
    return backend if platform == "cpu" else f"{backend}-{platform}"


def _inputs(
    plan: Plan, record: RunRecord, ledger: Ledger, created_at: str, name: str | None
) -> StatementInputs:
    """One run as statements see it."""
    return StatementInputs(
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
        train_fingerprint=record.train_fingerprint,
        backend=_backend(record),
        run=name,
        noise_seed_used=record.settings["noise_seed"] is not None,
        reference_trained=record.reference,
        class_weighted=any(record.settings.get(key, 1.0) != 1.0 for key in _CLASS_WEIGHTS),
        public_rate=record.settings.get("prior", {}).get("kind") == "public",
        human=HumanFacts.from_mapping(record.statement),
    )
