"""The sections of a statement, each filled from the plan, the ledger, the checks and people."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dpads.accounting import accountant, events
from dpads.accounting.accesses import accesses_of
from dpads.accounting.assumptions import checks_of
from dpads.accounting.canonical import canonical_bytes, digest
from dpads.accounting.checks import Check, ClaimLevel, claim_level
from dpads.accounting.facts import ASKED_FOR
from dpads.accounting.grid import grid_interval
from dpads.accounting.headline import headline_of, limitations_of
from dpads.accounting.inputs import StatementInputs

SCHEMA_VERSION = "0.2"

TASKS: Mapping[str, str] = {"ctr": "pctr", "cvr": "pcvr", "count": "conversion_count"}
"""The schema's name of each task."""


@dataclass(frozen=True)
class Sections:
    """Puts the parts of a statement together.

    Attributes:
        inputs: The run.
    """

    inputs: StatementInputs

    @cached_property
    def checks(self) -> list[Check]:
        """Every assumption."""
        return checks_of(self.inputs)

    @cached_property
    def level(self) -> ClaimLevel:
        """The computed claim level."""
        return claim_level(self.checks)

    @cached_property
    def loss(self) -> accountant.PrivacyLoss | None:
        """What the ledger's covered entries cost; None where nothing bounds it."""
        return self.inputs.loss

    def to_dict(self) -> dict[str, Any]:
        """Every item of the schema; the headline follows from the rest, the digest covers it."""
        inputs = self.inputs
        name = digest([inputs.ledger_head, inputs.created_at, dict(inputs.artifacts)])
        tier = self._tier()
        data: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "statement_id": uuid.UUID(hex=name[:32]).urn,
            "created_at": inputs.created_at,
            "visibility": "internal",
            "claim_level": str(self.level),
            "headline": headline_of(inputs, self.checks, self.level, self._epsilon(), tier),
            "subject": self._subject(),
            "dp_setting": self._setting(),
            "definition": self._definition(),
            "mechanism": self._mechanism(),
            "accounting": self._accounting(),
            "guarantees": self._guarantees(),
            **({} if tier is None else {"tier": tier}),
            "checks": [check.to_dict() for check in self.checks],
            "audit": [],
            "releases": self._releases(),
            "ledger": {"entries": len(inputs.ledger), "head": inputs.ledger_head},
            "transparency": self._transparency(),
            "limitations": limitations_of(inputs),
            "signoffs": self._signoffs(),
            "missing": [{"key": k, "asks_for": ASKED_FOR[k]} for k in inputs.human.missing()],
        }
        return {**data, "digest": digest(data)}

    def _epsilon(self) -> float | None:
        """Epsilon as it is printed."""
        return None if self.loss is None else accountant.round_up(self.loss.epsilon)

    def _subject(self) -> dict[str, Any]:
        """Which model this is about."""
        inputs, human = self.inputs, self.inputs.human
        return {
            "model_name": human.model_name or inputs.model,
            "model_version": human.model_version,
            "model_kind": inputs.model,
            "task": TASKS.get(inputs.task, "other"),
            "artifacts": [{"path": p, "sha256": s} for p, s in sorted(inputs.artifacts.items())],
            "intended_use": human.intended_use,
            "publisher": human.publisher,
            "contact": human.contact,
        }

    def _setting(self) -> dict[str, Any]:
        """Item 1: who is trusted, and what the adversary sees."""
        return {
            "model": "central",
            "trusted_parties": [
                {
                    "party": self.inputs.human.trusted_party,
                    "trusted_for": "holding the raw log, running the mechanism as written, and "
                    "keeping checkpoints, keys and the internal run folder secret",
                }
            ],
            "adversary_view": "all_noisy_gradients_and_checkpoints_brought_up_to_date",
        }

    def _definition(self) -> dict[str, Any]:
        """Item 2: the abstract definition mapped to this run."""
        inputs = self.inputs
        user = inputs.schema.get("user")
        if inputs.unit == "user":
            meaning = f"one user: at most {inputs.cap} rows of the training log with one identifier"
        else:
            meaning = "one example: one row of the training log, features and label"
        if inputs.human.unit_definition:
            meaning += f" ({inputs.human.unit_definition})"
        enforced = inputs.unit == "user"
        return {
            "data_accesses": accesses_of(inputs),
            "mechanism_output": {
                "released": f"the parameters after iteration {inputs.executed}, every table row "
                "brought up to date",
                "formally_protected": "every noisy gradient, every checkpoint whose rows were "
                "brought up to date, and the final model; not the checkpoints that an interrupted "
                "run goes on from, which hold keys and rows without noise",
            },
            "unit_of_privacy": {
                "kind": inputs.unit,
                "definition": meaning,
                "contribution_bound": {
                    "max_examples_per_unit": inputs.cap if enforced else 1,
                    "enforced": enforced,
                    "method": "keyed_hash" if enforced else "one_row_is_one_unit",
                    "identifier": user if enforced else None,
                },
            },
            "adjacency": {
                "relation": str(inputs.relation),
                "dataset_size_status": inputs.dataset_size_status,
                "dataset_size": inputs.dataset_size,
            },
            "protected_content": "full_example",
            "public_features": [],
        }

    def _mechanism(self) -> dict[str, Any]:
        """Exactly what ran."""
        inputs, mechanism = self.inputs, self.inputs.mechanism
        noise = inputs.noise_multiplier
        return {
            "algorithm": "dp_sgd",
            "sampler": {
                "kind": "poisson",
                "sampling_probability": mechanism["sampling_prob"],
                "max_over_examples": True,
                "truncated_batch_size": None,
            },
            "clipping": {
                "scope": "per_user" if inputs.unit == "user" else "per_example",
                "norm": mechanism["l2_clip_norm"],
                "adaptive": False,
                "normaliser": "public_constant",
                "expected_batch_size": mechanism["expected_batch_size"],
                "non_finite": "zeroed",
            },
            "noise": {
                "distribution": "gaussian_float32",
                "noise_multiplier": noise,
                "sensitivity_slack": events.SENSITIVITY_SLACK,
                "accounted_noise_multiplier": events.effective_noise_multiplier(noise),
                "tables": inputs.table_noise,
                "rng": "csprng_keyed_noise_seed"
                if inputs.noise_seed_used
                else "csprng_keyed_os_entropy",
                "seed_policy": "published_fixed" if inputs.noise_seed_used else "fresh_os_entropy",
            },
            "steps": {
                "planned": inputs.planned_iterations,
                "executed": inputs.executed,
                "replayed": inputs.replayed,
            },
            "loss_weights": "before_clipping" if inputs.schema.get("weight") else "none",
        }

    def _accounting(self) -> dict[str, Any]:
        """Item 3a and the tuning half of 3c."""
        inputs, event, loss = self.inputs, self.inputs.joint_event, self.loss
        methods = {
            None: "not_declared",
            "none": "none_data_independent",
            "public_data": "public_proxy",
            "not_accounted": "not_accounted",
        }
        bounds = {"pld": None, "rdp": None} if loss is None else _bounds(loss)
        interval = None
        if loss is not None:
            interval = grid_interval(canonical_bytes(event), inputs.delta, inputs.relation)
        return {
            "type": "none" if loss is None else loss.accountant,
            "library": "dp-accounting",
            "version": inputs.versions.get("dp-accounting", "unknown"),
            "dp_event": event,
            "dp_event_sha256": digest(event),
            "bounds": bounds,
            "value_discretization_interval": interval,
            "tuning": {"method": methods[inputs.human.tuning], "runs": 1},
        }

    def _guarantees(self) -> list[dict[str, Any]]:
        """Item 3c: (epsilon, delta) and the profile, each with what it stands on."""
        loss, inputs = self.loss, self.inputs
        if loss is None:
            return []
        common = {
            "covers": "final_model_single_run",
            "unit": inputs.unit,
            "adjacency": str(inputs.relation),
            "is_bound": "upper_bound",
            "group_size": 1,
            "hypothetical": self.level is ClaimLevel.NONE,
            "depends_on_checks": [c.id for c in self.checks if c.load_bearing],
        }
        deltas = tuple(sorted({*accountant.PROFILE_DELTAS, inputs.delta}, reverse=True))
        profile = accountant.profile(inputs.joint_event, inputs.relation, deltas)
        points = [
            {"epsilon": accountant.round_up(point.epsilon), "delta": point.delta}
            for point in profile
            if math.isfinite(point.epsilon)
        ]
        used = sorted({point.accountant for point in profile})
        return [
            {
                "id": "G1",
                "notion": "approx_dp",
                "value": {"epsilon": self._epsilon(), "delta": inputs.delta},
                "accountant": loss.accountant,
                **common,
            },
            {
                "id": "G1p",
                "notion": "privacy_profile",
                "value": {"profile": points},
                "accountant": " and ".join(used),
                **common,
            },
        ]

    def _tier(self) -> dict[str, Any] | None:
        """The tier, where the delta allows one to be named and anything is claimed."""
        epsilon = self._epsilon()
        if epsilon is None or self.level is ClaimLevel.NONE:
            return None
        label = accountant.tier(epsilon, self.inputs.delta, self.inputs.dataset_size)
        if label is None:
            return None
        return {"label": str(label), "for_guarantee": "G1", "delta": self.inputs.delta}

    def _releases(self) -> list[dict[str, Any]]:
        """Who gets what."""
        if self.inputs.human.released_to is None:
            return []
        covered = None if self.level is ClaimLevel.NONE else "G1"
        return [
            {
                "what": "the final parameters",
                "to_whom": self.inputs.human.released_to,
                "date": self.inputs.created_at[:10],
                "covered_by": covered,
            }
        ]

    def _transparency(self) -> dict[str, Any]:
        """Item 4: code, versions, how to recompute."""
        human = self.inputs.human
        return {
            "code_available": "not_stated" if human.repository is None else "see_repository",
            "repository": human.repository,
            "commit": human.commit,
            "reproduce_accounting": "dpads.accounting.accountant.epsilon_of(accounting.dp_event, "
            "delta, adjacency.relation), or any other accountant on the same event",
            "versions": dict(sorted(self.inputs.versions.items())),
            "third_party_review": human.third_party_review,
        }

    def _signoffs(self) -> list[dict[str, Any]]:
        """Who stands behind which assertions."""
        person = self.inputs.human.asserted_by
        asserted = [c.id for c in self.checks if c.asserted_by is not None]
        if person is None or not asserted:
            return []
        name, _, role = person.partition(",")
        return [
            {
                "name": name.strip(),
                "role": role.strip() or None,
                "fields": asserted,
                "date": self.inputs.created_at[:10],
            }
        ]


def _bounds(loss: accountant.PrivacyLoss) -> dict[str, float | None]:
    """Both accountants' bounds, rounded up; None where one has none."""
    both = {"pld": loss.pld_epsilon, "rdp": loss.rdp_epsilon}
    return {
        name: None if bound is None or math.isinf(bound) else accountant.round_up(bound, 4)
        for name, bound in both.items()
    }
