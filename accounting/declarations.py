"""What one run's configuration, its ledger and its people say of private rows, as checks."""

from __future__ import annotations

from collections.abc import Mapping

from dpads.accounting.checks import Basis, Check, Result
from dpads.accounting.earlier import resting_on
from dpads.accounting.events import composed
from dpads.accounting.evidence import Evidence
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.relation import Relation


def declaration_checks(inputs: StatementInputs) -> list[Check]:
    """The assumptions about public numbers and about looks at private rows without noise."""
    return [
        *_public_numbers(inputs),
        *_fitted(inputs),
        *_start(inputs),
        *_own_model(inputs),
        *_carried(inputs),
        *_ledger(inputs),
        *_kept_inside(inputs),
    ]


def person(inputs: StatementInputs) -> Basis:
    """An assertion with a name, or the configuration's word alone."""
    return Basis.DECLARED if inputs.human.asserted_by is None else Basis.ASSERTED


def _public_numbers(inputs: StatementInputs) -> list[Check]:
    """Nothing secret is in the numbers that everybody sees."""
    problem = _secret_number(inputs)
    checks = [
        Check(
            id="adjacency.public_numbers",
            assumption="sampling_prob, iterations, divisor, noise multiplier and delta are functions "
            "of the configuration and of a number of units that neighbours share.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if problem is None else Result.VIOLATED,
            note=problem,
        )
    ]
    if inputs.dataset_size_status == "asserted_public":
        checks.append(
            _by_people(
                inputs,
                "adjacency.n_public",
                "The number of units in the training rows may be treated as public.",
                "privacy.dataset_size was not configured, so the store's own count was used.",
            )
        )
    return checks


def _secret_number(inputs: StatementInputs) -> str | None:
    """Why a number of the plan tells neighbours apart; None where none does."""
    status, size = inputs.dataset_size_status, inputs.dataset_size
    if status == "asserted_public" and inputs.relation is not Relation.ZERO_OUT:
        return "The store's own count entered the plan, and neighbours have another count."
    if status == "public" and inputs.plan["privacy"].get("dataset_size") != size:
        return "The number of units that is called public is not the configured one."
    if status == "private" and size is not None:
        return "A number of units entered the plan that nobody calls public."
    return None


def _fitted(inputs: StatementInputs) -> list[Check]:
    """Nothing was fitted to the rows but by training."""
    selected, counted = _exact(inputs, "selection"), _exact(inputs, "dp_count")
    checks = [
        Check(
            id="features.nothing_fitted",
            assumption="No vocabulary, normaliser, bin or width was fitted to the data by this "
            "library, but by noisy selections in the event: ids are hashed, numbers transformed with "
            "constants of the configuration.",
            basis=Basis.ENFORCED,
            result=Result.VIOLATED if selected else Result.HOLDS,
            note="The ledger holds a selection on training rows without noise."
            if selected
            else "Whether a look at these rows chose those constants (columns, clip constants, "
            "numbers of buckets) code cannot know: a person must vouch for it, see tuning.declared.",
        ),
        Check(
            id="initialisation.data_independent",
            assumption="Initial parameters, biases included, do not come from the data, but by noisy "
            + (
                "counts in the event and from what other checks of initialisation are about."
                if inputs.entries("earlier_run")
                else "counts in the event."
            ),
            basis=Basis.ENFORCED,
            result=Result.VIOLATED if counted else Result.HOLDS,
            note="The ledger holds a count of training rows without noise." if counted else None,
        ),
    ]
    if inputs.entries("recalibration"):
        exact = _exact(inputs, "recalibration")
        checks.append(
            Check(
                id="calibration.accounted",
                assumption="The calibration layer that was fitted on training rows added noise, and is "
                "in the event.",
                basis=Basis.VERIFIED,
                result=Result.VIOLATED if exact else Result.HOLDS,
                note="It was fitted on training rows without noise." if exact else None,
                evidence=[_log(inputs)],
            )
        )
    return checks


def _start(inputs: StatementInputs) -> list[Check]:
    """What training started from, where that was not made by init_seed."""
    checks = []
    if inputs.public_rate:
        checks.append(
            _by_people(
                inputs,
                "initialisation.rate_is_public",
                "The rate that the model's output starts at is known from elsewhere, not from these rows.",
                "The configuration names it: prior.rate.",
            )
        )
    earlier = inputs.entries("earlier_run")
    on_private_rows = [entry for entry in earlier if entry.treatment != "public_data_only"]
    if on_private_rows:
        exact = any(entry.dp_event is None for entry in on_private_rows)
        covered = [entry.details.get("earlier", {}) for entry in on_private_rows if entry.dp_event]
        checks.append(
            Check(
                id="initialisation.from_earlier_run",
                assumption="The parameters that training started from are the final ones of an earlier "
                "run, and everything that its ledger covers is in the event: both runs compose, "
                "whichever units are in both logs. Neither that this run would come, nor its noise, "
                "sampling and iterations, was chosen after a look at what the earlier one showed.",
                basis=person(inputs),
                asserted_by=inputs.human.asserted_by,
                result=Result.VIOLATED if exact else Result.HOLDS,
                note="The earlier run added no noise."
                if exact
                else "Training started from an earlier run; code cannot know who looked at it before.",
                evidence=[
                    Evidence(
                        "log",
                        f"ledger of {known['entries']} entries of the earlier run",
                        known["head"],
                    )
                    for known in covered
                    if known
                ],
            )
        )
    resting = resting_on(earlier)
    if resting:
        checks.append(
            _by_people(
                inputs,
                "initialisation.earlier_assumptions",
                f"What the guarantee of the earlier run rests on holds: {' '.join(resting)}",
                "The statement of the earlier run is conditional.",
            )
        )
    if len(on_private_rows) < len(earlier):
        checks.append(
            _by_people(
                inputs,
                "initialisation.vouched_for",
                "The parameters that training started from hold nothing of anybody's data that this "
                "guarantee is about.",
                "Training started from given parameters; code cannot know what they were made of.",
            )
        )
    return checks


def _carried(inputs: StatementInputs) -> list[Check]:
    """The plan and the ledger agree on what earlier runs have spent."""
    covered = [e.dp_event for e in inputs.entries("earlier_run") if e.dp_event is not None]
    if inputs.carried is None and not covered:
        return []
    agree = composed(covered) == composed([] if inputs.carried is None else [inputs.carried])
    return [
        Check(
            id="initialisation.earlier_accounted",
            assumption="What the ledger carries on of earlier runs is what the plan was made with.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if agree else Result.VIOLATED,
            note=None
            if agree
            else "The ledger does not hold the event of earlier runs that the plan was made with.",
        )
    ]


_APART: Mapping[str, str] = {
    "torch": "The forward pass of the user's module treats each example alone and keeps nothing between "
    "calls, whatever rows hold; so does helper code that it calls, which is in none of the model's "
    "digests.",
    "jax": "The user's function makes the same program whenever JAX traces it; and what it brings for JAX to "
    "run, rules for gradients and operations that are not JAX's own, treats each example alone, "
    "whatever rows hold.",
}
"""What people vouch for of a user's own model."""
_UNSEEN: Mapping[str, str] = {
    "torch": "The model is a user's torch module; code cannot know what it does to rows that nobody tried.",
    "jax": "The model is a user's function in JAX, which is given one example at a time; code cannot know "
    "what rules and operations of the user's own do to rows that nobody tried.",
}
"""Why code cannot."""


def _own_model(inputs: StatementInputs) -> list[Check]:
    """What no trial of a user's own model can show."""
    if inputs.users_model is None:
        return []
    kind = inputs.users_model
    return [_by_people(inputs, "model.examples_apart", _APART[kind], _UNSEEN[kind])]


def _exact(inputs: StatementInputs, kind: str) -> bool:
    """Whether the ledger holds an access of this kind to training rows that adds no noise."""
    return any(
        entry.dp_event is None and entry.rows in ("train", "train_and_test")
        for entry in inputs.entries(kind)
    )


def _ledger(inputs: StatementInputs) -> list[Check]:
    """The ledger says what the run's record says."""
    silent = inputs.reference_trained and not inputs.entries("reference")
    return [
        Check(
            id="ledger.complete",
            assumption="Every access to private rows that this library made is on the ledger, which "
            "was written before the access.",
            basis=Basis.ENFORCED,
            result=Result.VIOLATED if silent else Result.HOLDS,
            note="A reference was trained, and the ledger does not say so." if silent else None,
            evidence=[_log(inputs)],
        )
    ]


def _kept_inside(inputs: StatementInputs) -> list[Check]:
    """What looked at training rows without noise stays inside."""
    checks = []
    looks = [e for kind in ("reference", "evaluation", "trial") for e in inputs.entries(kind)]
    private = [entry for entry in looks if entry.treatment != "public_data_only"]
    references = [entry for entry in private if entry.kind == "reference"]
    if not all(entry.chose_configuration for entry in references):
        checks.append(
            _by_people(
                inputs,
                "reference.kept_inside",
                "The reference model that was trained without noise on the same rows, and its "
                "metrics, are not released and chose nothing that is.",
                "The configuration asked for a reference without noise.",
            )
        )
    if any(entry.chose_configuration for entry in references):
        checks.append(
            _by_people(
                inputs,
                "reference.chose_configuration",
                "Runs without noise on the same rows chose hyperparameters of this model; that choice "
                "tells nothing about any single row, and these runs' models and metrics are not "
                "released.",
                "Hyperparameters were chosen with noise off, on private rows.",
            )
        )
    if len(private) < len(looks):
        checks.append(
            _by_people(
                inputs,
                "public_rows.are_public",
                "The rows that were read outside of this guarantee and are called public hold nobody's "
                "data that this guarantee is about.",
                "The configuration calls them public; code cannot know.",
            )
        )
    evaluations = [entry for entry in private if entry.kind == "evaluation"]
    evaluated = {entry.rows for entry in evaluations if not entry.chose_configuration}
    compared = {entry.rows for entry in evaluations if entry.chose_configuration}
    if "declared_test" in evaluated | compared:
        checks.append(
            _by_people(
                inputs,
                "evaluation.test_rows_apart",
                "The rows that the configuration calls test rows are no training rows, neither of this "
                "run nor of one that it starts from.",
                "These rows and training rows are from logs or stores of their own; code cannot know what "
                "is in both.",
            )
        )
    if compared - {"test", "declared_test"}:
        checks.append(
            _by_people(
                inputs,
                "evaluation.chose_configuration",
                "Exact metrics on rows that may be training rows chose among runs; that choice tells "
                "nothing about any single row, and these metrics are not released.",
                "Runs were compared by exact metrics on rows that other runs, or this one, trained on.",
            )
        )
    if evaluated - {"test", "declared_test"}:
        checks.append(
            _by_people(
                inputs,
                "evaluation.kept_inside",
                "Exact metrics on training rows are not released and chose nothing that is.",
                "The model was evaluated on rows that are, or may be, those it was trained on.",
            )
        )
    return checks


def _log(inputs: StatementInputs) -> Evidence:
    """The ledger, by its head."""
    return Evidence("log", f"ledger of {len(inputs.ledger)} entries", inputs.ledger_head)


def _by_people(inputs: StatementInputs, name: str, assumption: str, configuration: str) -> Check:
    """A load-bearing check that only people can answer for."""
    return Check(
        id=name,
        assumption=assumption,
        basis=person(inputs),
        asserted_by=inputs.human.asserted_by,
        note=configuration,
        evidence=[Evidence("config_hash", configuration)],
    )
