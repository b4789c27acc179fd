"""Which checks one run's guarantee stands on, filled from its plan, its ledger and people."""

from __future__ import annotations

from dpads.accounting.checks import Basis, Check, Result
from dpads.accounting.events import NO_OP
from dpads.accounting.headline import number
from dpads.accounting.inputs import StatementInputs


def checks_of(inputs: StatementInputs) -> list[Check]:
    """Every assumption of the guarantee of one run."""
    return [
        *_sampling(inputs),
        *_clipping(inputs),
        *_noise(inputs),
        *_iterations(inputs),
        *_public_numbers(inputs),
        *_accesses(inputs),
        *_accounting(inputs),
    ]


def _sampling(inputs: StatementInputs) -> list[Check]:
    """The sampler is the one that is accounted."""
    same = inputs.covered_event == inputs.planned_event or not inputs.is_private
    return [
        Check(
            id="sampling.matches_accounting",
            assumption="Every unit joined every batch on its own coin, with the probability and the "
            "number of batches of the accounted event.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if same else Result.VIOLATED,
            note=None if same else "The ledger's event is not the plan's event.",
        ),
        Check(
            id="sampling.any_batch_size",
            assumption="No batch was truncated, and an empty batch took its noisy step too.",
            basis=Basis.ENFORCED,
        ),
    ]


def _clipping(inputs: StatementInputs) -> list[Check]:
    """One unit moves the sum by at most the clip norm."""
    weighted = inputs.schema.get("weight") is not None
    checks = [
        Check(
            id="clipping.joint_norm",
            assumption="Each unit's gradient over all trained parameters together, tables included "
            "and repeated ids merged, was scaled to at most l2_clip_norm before the sum.",
            basis=Basis.ENFORCED,
        ),
        Check(
            id="clipping.rounding",
            assumption="A unit more or less moves the sum by at most 2^-10 of l2_clip_norm beyond its "
            "own clipped gradient, rounding included, and the accounted noise multiplier is smaller by "
            "that much.",
            basis=Basis.ENFORCED,
        ),
        Check(
            id="clipping.non_finite",
            assumption="A unit whose gradient is not finite was replaced by zero and changed nobody "
            "else's part of the sum.",
            basis=Basis.ENFORCED,
        ),
        Check(
            id="model.no_cross_example_ops",
            assumption="No layer and no loss mixes units: no batch normalisation, no in-batch "
            "negatives, no listwise loss.",
            basis=Basis.ENFORCED,
        ),
        Check(
            id="weights.before_clipping",
            assumption="Example weights are inside the loss, before clipping.",
            basis=Basis.ENFORCED if weighted else Basis.NOT_APPLICABLE,
            result=Result.HOLDS if weighted else Result.NOT_APPLICABLE,
            load_bearing=weighted,
        ),
    ]
    if inputs.unit == "user":
        checks.append(
            Check(
                id="unit.cap_enforced",
                assumption="No user had more rows in training than max_examples_per_unit.",
                basis=Basis.NOT_CHECKED,
                result=Result.UNKNOWN,
            )
        )
    return checks


def _noise(inputs: StatementInputs) -> list[Check]:
    """The noise is there, on everything, and nobody can know it."""
    noisy = inputs.noise_multiplier > 0
    return [
        Check(
            id="noise.every_coordinate",
            assumption="Every trained coordinate got Gaussian noise of stddev noise_multiplier * "
            "l2_clip_norm in every iteration, table rows that nobody touched included.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if noisy else Result.VIOLATED,
            note=None if noisy else "noise_multiplier is 0: no noise was added at all.",
        ),
        Check(
            id="noise.never_reused",
            assumption="No draw served two gradients: each has an address of its own, and keys are "
            "bound to everything that changes the numbers.",
            basis=Basis.ENFORCED,
        ),
        Check(
            id="noise.generator",
            assumption="Noise and coins come from ChaCha20 keyed from the operating system; the key "
            "is kept secret and destroyed with the checkpoints.",
            basis=Basis.ENFORCED,
            result=Result.VIOLATED if inputs.noise_seed_used else Result.HOLDS,
            note="noise_seed was set, which is for tests only: whoever knows the seed can "
            "subtract the noise."
            if inputs.noise_seed_used
            else None,
        ),
        Check(
            id="noise.floating_point",
            assumption="The Gaussian is sampled exactly, so that the bits of a float tell nothing.",
            basis=Basis.VERIFIED,
            result=Result.VIOLATED,
            effect_if_false="theoretical",
            load_bearing=False,
            note="The noise is a float32 Gaussian (Mironov 2012; Jin et al. 2022, arXiv 2112.05307)."
            " Noisy gradients of the tower and released rows of tables are rounded to a public grid"
            " of about 2^-10 of the noise's stddev, which hides the low bits that betray which rows"
            " were touched. The guarantee is still the real-number mechanism's.",
        ),
        Check(
            id="normaliser.public_constant",
            assumption="The noisy sum is divided by a constant fixed before training, never by the "
            "size that a batch turned out to have.",
            basis=Basis.ENFORCED,
        ),
    ]


def _iterations(inputs: StatementInputs) -> list[Check]:
    """What ran is what was announced."""
    opened = inputs.entries("training")
    problem = None
    if inputs.is_private and inputs.covered_event == NO_OP:
        problem = "The ledger holds no covered training entry."
    elif len(opened) != 1 and inputs.is_private:
        problem = f"The ledger holds {len(opened)} training entries; this run is one."
    elif inputs.executed > inputs.planned_iterations:
        problem = f"{inputs.executed} iterations ran, {inputs.planned_iterations} were announced."
    log = (
        f"ledger of {len(inputs.ledger)} entries, head {inputs.ledger_head[:16]}: "
        f"{inputs.planned_iterations} planned, {inputs.executed} executed, {inputs.replayed} "
        "replayed after an interruption"
    )
    return [
        Check(
            id="iterations.all_counted",
            assumption="Every noisy iteration on private rows is in the event. One that was run again "
            "after an interruption was the same: a run is not resumed unless everything that changes "
            "its numbers is the same, the processor's kind included. That replays then are identical "
            "to the bit is tested, not compared in each run.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if problem is None else Result.VIOLATED,
            note=problem,
            evidence=[("log", log)],
        ),
        Check(
            id="iterations.fixed_in_advance",
            assumption="The largest number of iterations was on the ledger before the first batch, "
            "and the last iteration's model is the one described: no early stopping on private rows.",
            basis=Basis.ENFORCED,
        ),
    ]


def _public_numbers(inputs: StatementInputs) -> list[Check]:
    """Nothing secret is in the numbers that everybody sees."""
    checks = [
        Check(
            id="adjacency.public_numbers",
            assumption="sampling_prob, iterations, divisor, noise multiplier and delta are functions "
            "of the configuration and of a number of units that neighbours share.",
            basis=Basis.ENFORCED,
        ),
        Check(
            id="features.nothing_fitted",
            assumption="No vocabulary, normaliser, bin or width was fitted to the data by this "
            "library: ids are hashed, numbers transformed with constants of the configuration.",
            basis=Basis.ENFORCED,
            note="Whether a look at these rows chose those constants (columns, clip constants, "
            "numbers of buckets) code cannot know: a person must vouch for it, see tuning.declared.",
        ),
        Check(
            id="initialisation.data_independent",
            assumption="Initial parameters, biases included, do not come from the data.",
            basis=Basis.ENFORCED,
        ),
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


def _accesses(inputs: StatementInputs) -> list[Check]:
    """What looked at private rows without noise stays inside."""
    checks = []
    if inputs.entries("reference"):
        checks.append(
            _by_people(
                inputs,
                "reference.kept_inside",
                "The reference model that was trained without noise on the same rows, and its "
                "metrics, are not released and chose nothing that is.",
                "training.reference was true.",
            )
        )
    elif inputs.reference_trained:
        checks.append(
            Check(
                id="ledger.complete",
                assumption="Every access to private rows is on the ledger.",
                basis=Basis.VERIFIED,
                result=Result.VIOLATED,
                note="A reference was trained, and the ledger does not say so.",
                evidence=[("log", f"ledger head {inputs.ledger_head}")],
            )
        )
    if any(entry.rows != "test" for entry in inputs.entries("evaluation")):
        checks.append(
            _by_people(
                inputs,
                "evaluation.kept_inside",
                "Exact metrics on training rows are not released and chose nothing that is.",
                "The model was evaluated on rows that are, or may be, those it was trained on.",
            )
        )
    tuning = inputs.human.tuning
    checks.append(
        Check(
            id="tuning.declared",
            assumption="No other run or look at these rows chose this configuration: columns, clip "
            "constants, numbers of buckets and hyperparameters.",
            basis=Basis.NOT_CHECKED if tuning is None else _person(inputs),
            result=Result.UNKNOWN
            if tuning is None
            else Result.VIOLATED
            if tuning == "not_accounted"
            else Result.HOLDS,
            load_bearing=False,
            asserted_by=None if tuning is None else inputs.human.asserted_by,
            note="The guarantee is this run's alone; how its configuration was chosen is outside it."
            if tuning in (None, "not_accounted")
            else None,
            evidence=() if tuning is None else [("config_hash", f"statement.tuning = {tuning}")],
        )
    )
    return checks


def _accounting(inputs: StatementInputs) -> list[Check]:
    """The number is a bound, at a delta that means something."""
    small = inputs.default_delta is None or inputs.delta <= inputs.default_delta
    bounded = inputs.loss is not None
    return [
        Check(
            id="accountant.upper_bound",
            assumption="Every epsilon is an upper bound: a margin for numerical error is added, the "
            "smaller of two bounds is taken, and it is rounded up.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if bounded else Result.VIOLATED,
            note=None if bounded else "Nothing bounds the privacy loss of what is on the ledger.",
        ),
        Check(
            id="delta.small",
            assumption="delta is at most min(1e-8, 0.1 / units), rounded down to a power of ten.",
            basis=Basis.VERIFIED if inputs.default_delta is not None else Basis.NOT_CHECKED,
            result=Result.UNKNOWN
            if inputs.default_delta is None
            else Result.HOLDS
            if small
            else Result.VIOLATED,
            effect_if_false="weakens_quantified",
            load_bearing=False,
            note=None if small else "No tier is named at this delta: read the profile.",
            evidence=[("config_hash", f"delta = {number(inputs.delta)}")],
        ),
    ]


def _person(inputs: StatementInputs) -> Basis:
    """An assertion with a name, or the configuration's word alone."""
    return Basis.DECLARED if inputs.human.asserted_by is None else Basis.ASSERTED


def _by_people(inputs: StatementInputs, name: str, assumption: str, configuration: str) -> Check:
    """A load-bearing check that only people can answer for."""
    return Check(
        id=name,
        assumption=assumption,
        basis=_person(inputs),
        asserted_by=inputs.human.asserted_by,
        note=configuration,
        evidence=[("config_hash", configuration)],
    )
