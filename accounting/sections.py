"""The sections of a statement, each filled from the runs, their checks and people."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dpads.accounting.canonical import digest
from dpads.accounting.checks import Check, ClaimLevel, claim_level
from dpads.accounting.definition import definition_of, mechanism_of, setting_of
from dpads.accounting.figures import Figures
from dpads.accounting.headline import headline_of
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.joint import JointRuns
from dpads.accounting.joint_checks import checks_of
from dpads.accounting.limits import limitations_of
from dpads.accounting.nist import nist_view_of
from dpads.accounting.sealing import sealed

SCHEMA_VERSION = "0.3"

TASKS: Mapping[str, str] = {"ctr": "pctr", "cvr": "pcvr", "count": "conversion_count"}
"""The schema's name of each task."""


@dataclass(frozen=True)
class Sections:
    """Puts the parts of a statement together.

    Attributes:
        runs: The runs.
        on_progress: Called with how much of a guarantee for users is computed, and of how much.
    """

    runs: JointRuns
    on_progress: Callable[[int, int], None] | None = None

    @cached_property
    def checks(self) -> list[Check]:
        """Every assumption."""
        return checks_of(self.runs)

    @cached_property
    def level(self) -> ClaimLevel:
        """The computed claim level."""
        return claim_level(self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Every item of the schema, digests included."""
        runs = self.runs
        figures = Figures(runs, self.checks, self.level, self.on_progress)
        meaning, tier = figures.meaning(), figures.tier()
        data: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "statement_id": self._name(),
            "created_at": runs.created_at,
            "visibility": "internal",
            "claim_level": str(self.level),
            "headline": "",
            "subject": _subject(runs.first),
            "dp_setting": setting_of(runs),
            "definition": definition_of(runs),
            "mechanism": mechanism_of(runs.first),
            "further_runs": [
                {"run": place, "subject": _subject(run), "mechanism": mechanism_of(run)}
                for place, run in enumerate(runs.runs)
                if place > 0
            ],
            "accounting": figures.accounting(),
            "guarantees": figures.guarantees,
            **({} if meaning is None else {"meaning": meaning}),
            **({} if tier is None else {"tier": tier}),
            "checks": [check.to_dict() for check in self.checks],
            "audit": figures.audits(),
            "releases": self._releases(),
            "ledgers": [
                {"run": run.run, "entries": len(run.ledger), "head": run.ledger_head}
                for run in runs.runs
            ],
            "transparency": self._transparency(),
            "nist_view": [],
            "limitations": [],
            "signoffs": self._signoffs(),
            "missing": runs.missing(),
        }
        # These follow from the other items alone, so that a reader can make them again.
        data["headline"] = headline_of(data)
        data["nist_view"] = nist_view_of(data)
        data["limitations"] = limitations_of(data)
        return sealed(data)

    def _name(self) -> str:
        """A name of its own for every statement."""
        parts = [[run.ledger_head, dict(run.artifacts)] for run in self.runs.runs]
        return uuid.UUID(hex=digest([parts, self.runs.created_at])[:32]).urn

    def _releases(self) -> list[dict[str, Any]]:
        """Who gets what."""
        what = "the final parameters"
        return [
            {
                "what": f"{what} of {self.runs.name(place)}" if self.runs.is_joint else what,
                "to_whom": run.human.released_to,
                "date": self.runs.created_at[:10],
                "covered_by": None if self.level is ClaimLevel.NONE else "G1",
            }
            for place, run in enumerate(self.runs.runs)
            if run.human.released_to is not None
        ]

    def _transparency(self) -> dict[str, Any]:
        """Item 4: code, versions, how to recompute."""
        runs = self.runs
        repository = runs.said("repository")
        packages = sorted({name for run in runs.runs for name in run.versions})
        return {
            "code_available": "not_stated" if repository is None else "see_repository",
            "repository": repository,
            "commit": runs.said("commit"),
            "reproduce_accounting": "dpads verify on this statement; or any other accountant on "
            "accounting.dp_event, at delta, under definition.adjacency.relation",
            "versions": {
                name: runs.together(run.versions.get(name) for run in runs.runs)
                for name in packages
            },
            "third_party_review": runs.said("third_party_review"),
        }

    def _signoffs(self) -> list[dict[str, Any]]:
        """Who stands behind which assertions."""
        people: dict[str, list[str]] = {}
        for check in self.checks:
            for person in (check.asserted_by or "").split("; "):
                if person:
                    people.setdefault(person, []).append(check.id)
        return [
            {
                "name": person.partition(",")[0].strip(),
                "role": person.partition(",")[2].strip() or None,
                "fields": fields,
                "date": self.runs.created_at[:10],
            }
            for person, fields in people.items()
        ]


def _subject(run: StatementInputs) -> dict[str, Any]:
    """Which model this is about."""
    human = run.human
    return {
        "model_name": human.model_name or run.model,
        "model_version": human.model_version,
        "model_kind": run.model,
        "task": TASKS.get(run.task, "other"),
        "artifacts": [{"path": p, "sha256": s} for p, s in sorted(run.artifacts.items())],
        "intended_use": human.intended_use,
        "publisher": human.publisher,
        "contact": human.contact,
        "region": human.region,
    }
