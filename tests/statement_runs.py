"""Runs as statements see them: inputs made as a run makes them, to be changed by tests."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

from dpads.accounting import events
from dpads.accounting.earlier import GIVEN_WITH, earlier_entries, given_entry
from dpads.accounting.facts import HumanFacts
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.ledger import Ledger
from dpads.accounting.releases import AFTER_TRAINING, BEFORE_TRAINING, Release, Wanted
from dpads.accounting.statement import GuaranteeStatement, joint_statement
from dpads.plan import PrivacySpec, resolve

PUBLIC = {"epsilon": 3.0, "delta": 1e-8, "dataset_size": 71_000}
STORE_COUNT = {"epsilon": 3.0, "delta": 1e-8}
EVERYTHING = {
    "model_name": "clicks",
    "model_version": "2026-11-21",
    "publisher": "Example Ads",
    "contact": "privacy@example.com",
    "intended_use": "ranking of ads",
    "trusted_party": "Example Ads' training cluster",
    "asserted_by": "Ada Lovelace, data steward",
    "unit_definition": "one impression",
    "upstream": "Negatives were sampled down before the log came here.",
    "tuning": "public_data",
    "refresh": "Trained again every day on the last seven days.",
    "justification": "Agreed with the privacy board on 2026-11-01.",
    "region": "EU",
    "access_control": "Two people hold the keys; every access is logged.",
    "data_collection": "By consent, for measurement; kept for 90 days.",
    "period": "2026-11-01 to 2026-11-07",
    "released_to": "the serving fleet",
    "repository": "https://example.com/ads",
    "commit": "0123abc",
    "third_party_review": "none yet",
}


_COVERED = {"rows": "train", "treatment": "covered_by_accounting"}


def run_inputs(
    privacy: dict[str, Any] | None = None,
    *,
    human: dict[str, str] | None = None,
    reference: bool = False,
    evaluated_on: tuple[str, ...] = ("test",),
    before: tuple[dict[str, Any], ...] = (),
    selected: bool = False,
    extra: tuple[dict[str, Any], ...] = (),
    wanted: tuple[Wanted, ...] = (),
    **changes: Any,
) -> StatementInputs:
    plan = resolve(
        PrivacySpec(**(privacy or PUBLIC)),
        expected_batch_size=1024,
        epochs=5,
        store_units=71_000,
        wanted=wanted,
    )
    released = {} if selected else {item.kind: _released(item) for item in plan.releases}
    ledger = Ledger()
    for entry in before:
        ledger.append(**{**_COVERED, **entry})
    if reference:
        ledger.append(
            kind="reference",
            description="A reference model was trained without noise on train rows",
            rows="train",
            treatment="not_covered",
        )
    for kind in BEFORE_TRAINING:
        if kind in released:
            ledger.append(**{**_COVERED, **released[kind]})
    ledger.append(
        kind="selected_training" if selected else "training",
        description=f"{plan.mechanism.iterations} iterations of DP-SGD over tower and tables",
        rows="train",
        treatment="covered_by_accounting" if plan.is_private else "not_covered",
        dp_event=plan.mechanism.event() if plan.is_private and not selected else None,
        details={"dp_event": plan.event()} if selected else {},
    )
    ledger.append(
        kind="training_finished",
        description="All iterations ran",
        rows="train",
        treatment="covered_by_accounting",
    )
    for entry in (*(released[k] for k in AFTER_TRAINING if k in released), *extra):
        ledger.append(**{**_COVERED, **entry})
    for rows in evaluated_on:
        ledger.append(
            kind="evaluation",
            description=f"Exact metrics of the model on {rows} rows",
            rows=rows,
            treatment="not_covered",
        )
    carried = [e.dp_event for e in ledger.entries if e.kind == "earlier_run" and e.dp_event]
    fields: dict[str, Any] = {
        "plan": {**plan.to_dict(), **({"carried": events.composed(carried)} if carried else {})},
        "ledger": ledger.entries,
        "ledger_head": ledger.head,
        "artifacts": {"model.safetensors": "ab" * 32, "model.json": "cd" * 32},
        "task": "ctr",
        "model": "mlp",
        "schema": {"user": None, "weight": None},
        "table_noise": "lazy",
        "executed": plan.mechanism.iterations,
        "replayed": 0,
        "versions": {"dpads": "0.1.0", "dp-accounting": "0.6.0"},
        "created_at": "2026-11-21T04:00:00Z",
        "train_fingerprint": "ef" * 32,
        "reference_trained": reference,
        "human": HumanFacts.from_mapping(human or {}),
    }
    return StatementInputs(**{**fields, **changes})


def _released(release: Release) -> dict[str, Any]:
    """A release as it stands on a ledger."""
    return {
        "kind": release.kind,
        "description": f"A noisy sum with a share of {release.share:g} of the budget",
        "dp_event": release.event(),
    }


AUDIT = {
    "method": "one_run_steinke2023",
    "access": "white_box_gradient",
    "epsilon_lower_bound": 0.47,
    "delta": 1e-8,
    "confidence": 0.95,
    "canaries": 1000,
    "guesses": 100,
    "correct": 70,
    "threshold_rule": "preregistered",
    "max_detectable_epsilon": 5.81,
    "same_run_as_release": False,
}
NOISY_COUNT = {
    "kind": "dp_count",
    "description": "A noisy count of clicks, for the bias",
    "dp_event": events.gaussian(100.0),
}
TRIAL = {
    "kind": "trial",
    "description": "This run is one of 6 trials of a sweep on the same rows; what they cost together is "
    "on the sweep's ledger",
    "treatment": "not_covered",
    "details": {"sweep": "a7" * 32, "trials": 6},
}
SCORED = events.gaussian(20.0)
SELECTION = {
    "kind": "tuning",
    "description": "The best of a secret number of runs",
    "dp_event": events.repeat_and_select(
        events.worst_of([events.dp_sgd(4.0, 0.01, 100), SCORED]), mean=5.0, shape=0.5
    ),
    "details": {
        "selection": "5e" * 16,
        "score": {
            "measure": "log_loss",
            "rows": "training_units_set_aside",
            "dp_event": SCORED,
        },
    },
}
FIXED_NOISE = {"noise_multiplier": 2.0, "delta": 1e-8, "dataset_size": 71_000}
OWN = resolve(
    PrivacySpec(**FIXED_NOISE), expected_batch_size=1024, epochs=5, store_units=71_000
).event()
ANOTHER = {
    "kind": "tuning",
    "description": "Another trial of the sweep was trained",
    "dp_event": OWN,
    "details": {"sweep": "a7" * 32, "trials": 4},
}
CANDIDATES = events.worst_of([events.dp_sgd(1.5, 0.005, 1000), OWN, SCORED])
TUNED = {
    **SELECTION,
    "dp_event": events.repeat_and_select(CANDIDATES, mean=10.0, shape="poisson"),
}
FILTER = {
    "kind": "tuning",
    "description": "A Renyi filter for every run of the recipe",
    "dp_event": events.renyi_filter(order=12.0, rdp=1.5),
}
CHOSEN_BY_TESTS = {
    "kind": "evaluation",
    "description": "Exact metrics of all trials on test rows: this model was chosen by auc_loss",
    "rows": "test",
    "treatment": "not_covered",
    "details": {"chose_configuration": True},
}
NOISE_FREE_STAGE = {
    "kind": "reference",
    "description": "Runs without noise chose the clip norm",
    "treatment": "not_covered",
    "details": {"chose_configuration": True},
}
BESIDE = (
    Wanted(kind="dp_count", share=0.01, l2_clip_norm=1.25),
    Wanted(kind="selection", share=0.1, l2_clip_norm=5.0),
    Wanted(kind="recalibration", share=0.01, l2_clip_norm=1.25),
)
BESIDE_SELECTED = resolve(
    PrivacySpec(**FIXED_NOISE),
    expected_batch_size=1024,
    epochs=5,
    store_units=71_000,
    wanted=BESIDE[2:],
).event()
USERS: dict[str, Any] = {"schema": {"user": "uid", "weight": None}}


def started_from(*rests_on: str, tuning: str | None = "none", **keys: Any) -> dict[str, Any]:
    """A run that starts from another one's final parameters."""
    other = run_inputs(**{"privacy": FIXED_NOISE, **keys})
    entries = earlier_entries(
        other.ledger, other.ledger_head, rests_on, parameters="ba" * 32, tuning=tuning
    )
    rows = {"test": "declared_test"}
    before = tuple({**entry, "rows": rows.get(entry["rows"], entry["rows"])} for entry in entries)
    return {"privacy": FIXED_NOISE, "before": before}


GIVEN = given_entry("Parameters of a model of public rows")
WITH_A_MODULE, WITH_A_FUNCTION = (given_entry(GIVEN_WITH[kind]) for kind in ("torch", "jax"))
IN_JAX = {"backend": "jax", "model": "jax", "before": (WITH_A_FUNCTION,)}
EARLIER = started_from(evaluated_on=())
RESTING = started_from("Somebody vouches for this.", "And for that.", reference=True)
RUNS: dict[str, dict[str, Any]] = {
    "public size": {},
    "store's count": {"privacy": STORE_COUNT},
    "signed": {"privacy": STORE_COUNT, "human": EVERYTHING},
    "loose delta": {"privacy": {**PUBLIC, "delta": 1e-5}},
    "fixed noise": {"privacy": {"noise_multiplier": 1.0, "dataset_size": 71_000}},
    "no count": {
        "privacy": {"epsilon": 3.0, "delta": 1e-8, "sampling_prob": 0.01, "iterations": 50}
    },
    "no noise": {"privacy": {"noise_multiplier": 0.0, "dataset_size": 71_000}},
    "fixed seed": {"noise_seed_used": True},
    "reference": {"reference": True},
    "train metrics": {"evaluated_on": ("test", "train")},
    "own test rows": {"evaluated_on": ("declared_test",)},
    "no metrics": {"evaluated_on": ()},
    "user unit": {"privacy": {**PUBLIC, "unit": "user", "max_examples_per_unit": 4}, **USERS},
    "users uncapped": USERS,
    "capped": {"privacy": {**PUBLIC, "max_examples_per_unit": 2}, **USERS},
    "user without column": {"privacy": {**PUBLIC, "unit": "user", "max_examples_per_unit": 4}},
    "truncated": {"privacy": {**PUBLIC, "sampler": "truncated_poisson"}},
    "fixed order": {"privacy": {**PUBLIC, "sampler": "fixed_order"}},
    "fixed order, capped": {
        "privacy": {**PUBLIC, "sampler": "fixed_order", "max_examples_per_unit": 2},
        **USERS,
    },
    "everything": {
        "privacy": {
            **PUBLIC,
            "sampler": "fixed_order",
            "max_examples_per_unit": 2,
            "noise_multiplier": 8.0,
            "epsilon": None,
        },
        "schema": {"user": "uid", "weight": "w"},
        "human": EVERYTHING,
        "audits": (AUDIT,),
        "run": "a",
    },
    "audited": {"audits": (AUDIT,)},
    "audit above the claim": {"audits": ({**AUDIT, "epsilon_lower_bound": 4.0},)},
    "recalibrated": {
        "extra": (
            {
                "kind": "recalibration",
                "description": "A noisy calibration layer",
                "dp_event": events.gaussian(30.0),
            },
        )
    },
    "counted": {"extra": (NOISY_COUNT, NOISY_COUNT)},
    "best of some": {
        "privacy": {"noise_multiplier": 2.0, "dataset_size": 71_000},
        "extra": (SELECTION,),
    },
    "chosen from a sweep": {
        "privacy": FIXED_NOISE,
        "extra": (
            ANOTHER,
            ANOTHER,
            {**ANOTHER, "dp_event": events.dp_sgd(2.5, 0.01, 300)},
            CHOSEN_BY_TESTS,
        ),
        "evaluated_on": (),
    },
    "chosen from a sweep with a trial made anew": {
        "privacy": FIXED_NOISE,
        "extra": (
            {**ANOTHER, "details": {"sweep": "a7" * 32, "trials": 2, "retrained": 1}},
            {**ANOTHER, "details": {"sweep": "a7" * 32, "trials": 2, "retrained": 1}},
            CHOSEN_BY_TESTS,
        ),
    },
    "trial of a recipe": {"before": (TRIAL, NOISE_FREE_STAGE, CHOSEN_BY_TESTS)},
    "chosen from a sweep with a reference": {
        "privacy": FIXED_NOISE,
        "reference": True,
        "extra": (
            {**ANOTHER, "rows": "train_and_test", "details": {}},
            {**CHOSEN_BY_TESTS, "rows": "train_and_test"},
        ),
        "human": {"tuning": "none", "asserted_by": "Ada"},
    },
    "selected privately": {"privacy": FIXED_NOISE, "before": (TUNED,), "selected": True},
    "trial": {"before": (TRIAL,), "human": {"tuning": "none"}},
    "trial of few": {"before": ({**TRIAL, "details": {"trials": 2}},), "human": EVERYTHING},
    "started from an earlier run": EARLIER,
    "started from an earlier run with a condition": {**RESTING, "human": EVERYTHING},
    "started from a run with metrics": started_from(),
    "started from a run that nobody spoke for": {
        **started_from(tuning=None),
        "human": {"tuning": "none", "asserted_by": "Ada"},
    },
    "started from a run that others chose": {
        **started_from(tuning="not_accounted"),
        "human": {"tuning": "public_data"},
    },
    "started from a run that others chose, and silent": started_from(tuning="not_accounted"),
    "started from a run on public data": {
        **started_from(tuning="public_data"),
        "human": {"tuning": "none", "asserted_by": "Ada"},
    },
    "started, and chosen from a sweep": {
        **started_from(tuning="not_accounted"),
        "extra": (
            ANOTHER,
            {**ANOTHER, "details": {**ANOTHER["details"]}},
            ANOTHER,
            CHOSEN_BY_TESTS,
        ),
        "human": {"tuning": "none"},
    },
    "users, started": {
        **started_from(
            privacy={**FIXED_NOISE, "max_examples_per_unit": 2},
            evaluated_on=("declared_test",),
            **USERS,
        ),
        "privacy": {**FIXED_NOISE, "max_examples_per_unit": 2},
        **USERS,
    },
    "started from a chain of runs": started_from(
        before=(*EARLIER["before"], {**EARLIER["before"][0], "dp_event": OWN}), extra=(NOISY_COUNT,)
    ),
    "started from given parameters": {"before": (GIVEN,)},
    "a user's module": {"model": "torch", "before": (WITH_A_MODULE,)},
    "a user's module, signed": {
        "model": "torch",
        "before": (WITH_A_MODULE,),
        "human": EVERYTHING,
    },
    "trained in JAX": {"backend": "jax"},
    "trained on a GPU": {"backend": "jax-gpu"},
    "trained on a GPU, resumed": {"backend": "jax-gpu", "replayed": 3},
    "a user's function": IN_JAX,
    "a user's function, signed": {**IN_JAX, "human": EVERYTHING},
    "started from a run without noise": {
        "before": ({**GIVEN, "rows": "train", "treatment": "not_covered"},)
    },
    "trial alone": {"before": ({**TRIAL, "details": {"trials": 1}},), "human": EVERYTHING},
    "trial on public rows": {"before": ({**TRIAL, "treatment": "public_data_only"},)},
    "recipe": {
        "privacy": FIXED_NOISE,
        "before": (FILTER, NOISE_FREE_STAGE, CHOSEN_BY_TESTS),
        "selected": True,
    },
    "recipe on public rows": {
        "privacy": FIXED_NOISE,
        "before": (FILTER, {**NOISE_FREE_STAGE, "rows": "none", "treatment": "public_data_only"}),
        "selected": True,
        "evaluated_on": (),
        "human": EVERYTHING,
    },
    "released beside training": {"wanted": BESIDE},
    "recalibrated by default": {"wanted": BESIDE[2:], "human": EVERYTHING},
    "equal releases": {"wanted": (BESIDE[0], replace(BESIDE[1], share=0.01))},
    "users, released beside": {
        "privacy": {**PUBLIC, "max_examples_per_unit": 2},
        "wanted": BESIDE,
        **USERS,
    },
    "truncated, released beside": {
        "privacy": {**PUBLIC, "sampler": "truncated_poisson"},
        "wanted": BESIDE,
    },
    "selected privately, recalibrated": {
        "privacy": FIXED_NOISE,
        "wanted": BESIDE[2:],
        "before": (
            {
                **SELECTION,
                "dp_event": events.repeat_and_select(
                    events.worst_of([OWN, BESIDE_SELECTED, SCORED]), mean=10.0, shape="poisson"
                ),
            },
        ),
        "selected": True,
    },
    "public rate": {"public_rate": True},
    "public rate, signed": {"public_rate": True, "human": EVERYTHING},
    "weights of classes": {"class_weighted": True},
    "weighted": {"schema": {"user": "uid", "weight": "w"}},
    "tuned": {"human": {"tuning": "not_accounted", "asserted_by": "Ada"}},
    "counts": {"task": "count", "table_noise": "dense"},
}
JOINT: dict[str, list[dict[str, Any]]] = {
    "two runs": [{}, {}],
    "three samplers": [RUNS["fixed order"], RUNS["truncated"], RUNS["fixed order"]],
    "two of users": [RUNS["user unit"], RUNS["user unit"]],
    "two capped": [RUNS["capped"], RUNS["capped"]],
    "two, one recalibrated": [{}, {"wanted": BESIDE[2:]}],
    "two, one from a public rate": [{"public_rate": True}, {"wanted": BESIDE[:1]}],
    "two, one seeded": [{}, RUNS["fixed seed"]],
    "one of them selected": [
        {"run": "a"},
        {"run": "b", "privacy": FIXED_NOISE, "before": (TUNED,), "selected": True},
    ],
    "two trials": [
        {"before": (TRIAL,), "human": {"tuning": "not_accounted"}},
        {"before": (TRIAL,), "human": {"tuning": "none"}},
    ],
    "two of a recipe": [
        {"privacy": FIXED_NOISE, "before": (FILTER, NOISE_FREE_STAGE), "selected": True},
        {"privacy": FIXED_NOISE, "before": (FILTER,), "selected": True, "reference": True},
    ],
    "two that started from one": [EARLIER, {**EARLIER, "run": "b"}],
    "two that started from others": [
        {**started_from(tuning=None), "human": {"tuning": "none"}},
        {**started_from(tuning="not_accounted"), "run": "b", "human": {"tuning": "not_accounted"}},
    ],
    "one of them started from another": [{}, {**RESTING, "run": "b"}, {"before": (GIVEN,)}],
    "one with a user's module": [{}, {"model": "torch", "before": (WITH_A_MODULE,), "run": "b"}],
    "one in JAX": [{}, {"backend": "jax", "run": "b"}],
    "a user's module and a function": [
        {"model": "torch", "before": (WITH_A_MODULE,)},
        {**IN_JAX, "run": "b"},
    ],
    "three signed": [{"human": EVERYTHING, "run": name} for name in ("a", "b", "c")],
}
STATEMENTS = (*RUNS, *JOINT)
NO_CLAIM = (
    "no noise", "fixed seed", "user without column", "started from a run without noise",
    "audit above the claim", "two, one seeded", "trained on a GPU, resumed",
)  # fmt: skip


def another(inputs: StatementInputs, number: int = 1) -> StatementInputs:
    """Another run on the same rows: noise gave it another model."""
    digest = f"{number:064x}"
    return replace(inputs, artifacts={"model.safetensors": digest, "model.json": "cd" * 32})


def inputs_of(name: str) -> list[StatementInputs]:
    """The runs of a statement, one or several."""
    runs = JOINT.get(name) or [RUNS[name]]
    return [another(run_inputs(**run), place) for place, run in enumerate(runs)]


@cache
def _text_of(name: str) -> str:
    return joint_statement(inputs_of(name)).to_json()


def statement_of(name: str) -> GuaranteeStatement:
    """A statement whose data a test may change."""
    return GuaranteeStatement(json.loads(_text_of(name)))
