"""What one run's mechanism must have done for its guarantee to hold, as checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dpads.accounting.canonical import digest
from dpads.accounting.checks import Basis, Check, Result
from dpads.accounting.events import NO_OP, SENSITIVITY_SLACK
from dpads.accounting.evidence import BY_BACKEND, Evidence
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.releases import Release
from dpads.accounting.wording import replayed_words

TESTED_BACKENDS = ("torch", *BY_BACKEND)
"""The backends that the tests behind the checks run on; another one's checks are unknown."""

_ELSEWHERE: Mapping[str, str] = {
    "jax-gpu": "A GPU ran it; the tests behind it run the same program on processors.",
}
"""What is tested on another kind of device, whose float64 is the same."""

_ON_THE_BACKEND = frozenset(
    {
        "sampling.any_batch_size", "clipping.joint_norm", "clipping.rounding", "clipping.non_finite",
        "model.no_cross_example_ops", "weights.before_clipping", "normaliser.public_constant",
        "noise.every_coordinate", "noise.never_reused", "noise.generator", "iterations.all_counted",
    }
)  # fmt: skip

_DRAWN: Mapping[str, str] = {
    "poisson": "Every unit joined every batch on its own coin, with the probability and the number of "
    "batches of the accounted event.",
    "truncated_poisson": "Every unit joined every batch on its own coin, and a batch above "
    "max_batch_size was cut to it at random, with the probability, the cap, the number of units and "
    "the number of batches of the accounted event.",
    "fixed_order": "Every unit was in one batch of each pass, in the order of the store, and the "
    "accounted event holds every pass that was begun.",
}
"""What each sampler did."""

_OF_THE_SAMPLER: Mapping[str, tuple[str, str]] = {
    "truncated_poisson": (
        "sampling.truncation_in_event",
        (
            "The cut of large batches is in the event, at a cap of at least the mean and six standard "
            "deviations of the public number of units; an empty batch took its noisy step too."
        ),
    ),
    "fixed_order": (
        "sampling.no_amplification",
        "No amplification by sampling is claimed: the event is that of plain passes.",
    ),
    "poisson": (
        "sampling.any_batch_size",
        "No batch was truncated, and an empty batch took its noisy step too.",
    ),
}
"""What each sampler's event stands on besides: a check of its own."""


_TRIED: Mapping[str, str] = {
    "torch": "The model is a user's torch module: it was tried on made-up rows of this module, and gets no "
    "more rows at a time than were tried.",
    "jax": "The model is a user's function in JAX: it is given one example at a time, its program was "
    "searched for code that JAX cannot see, and it was tried on made-up rows of this schema.",
}
"""How a user's own model was looked at."""

_ON_DEVICES = (
    "Coins, initial rows and sums beside training are drawn on the host, by compiled NumPy code; the "
    "noise of training where JAX trains, which makes float32 normals of the same ChaCha20 words, in "
    "float32 arithmetic. Several processes of one run send each other the key and sums without noise, not "
    "encrypted: whoever reads their network is told what the guarantee hides."
)
"""Which code draws, where JAX trains."""

_NOT_COVERED = (
    "No tuning entry before the selected run covers it: it is not among the runs of a private selection, "
    "and does not fit into a filter."
)


def mechanism_checks(inputs: StatementInputs) -> list[Check]:
    """The assumptions about what ran, but for those that people answer for."""
    checks = [
        *_sampling(inputs),
        *_clipping(inputs),
        *_cap(inputs),
        *_noise(inputs),
        *_iterations(inputs),
        *_releases(inputs),
    ]
    return [_on_tested_backend(inputs, check) for check in checks]


def _on_tested_backend(inputs: StatementInputs, check: Check) -> Check:
    """What code enforces is known on the backends where tests show it, and on no other."""
    if check.id not in _ON_THE_BACKEND or check.result is not Result.HOLDS:
        return check
    if inputs.backend in _ELSEWHERE:
        words = (check.note, _ELSEWHERE[inputs.backend])
        return replace(check, note=" ".join(word for word in words if word is not None))
    if inputs.backend in TESTED_BACKENDS:
        return check
    return replace(
        check,
        basis=Basis.NOT_CHECKED,
        result=Result.UNKNOWN,
        note="The tests behind it run on other backends than this run's.",
    )


def _sampling(inputs: StatementInputs) -> list[Check]:
    """Sampler, event and relation agree."""
    name, meaning = _OF_THE_SAMPLER[inputs.sampler]
    scheme = inputs.scheme
    note = None
    if inputs.is_private and inputs.covered_event != inputs.planned_event:
        note = "The ledger's event is not the plan's event."
    elif inputs.selected is not None and inputs.covering is None:
        note = _NOT_COVERED
    suits = scheme is not None and inputs.relation in scheme.relations
    return [
        Check(
            id="sampling.matches_accounting",
            assumption=_DRAWN[inputs.sampler],
            basis=Basis.ENFORCED,
            result=Result.HOLDS if note is None else Result.VIOLATED,
            note=note,
            evidence=[Evidence("config_hash", "the resolved plan", digest(dict(inputs.plan)))],
        ),
        Check(
            id="sampling.suits_relation",
            assumption="The accounted event was proved for this sampler under this relation between "
            "neighbours.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if suits else Result.VIOLATED,
            note=None
            if suits
            else "The sampler's numbers make no scheme that was proved under this relation.",
        ),
        Check(
            id=name,
            assumption=meaning,
            basis=Basis.ENFORCED,
            result=Result.VIOLATED if scheme is None else Result.HOLDS,
            effect_if_false="weakens_quantified"
            if inputs.sampler == "truncated_poisson"
            else "invalidates",
            note="The plan's numbers make no scheme of this kind." if scheme is None else None,
        ),
    ]


def _clipping(inputs: StatementInputs) -> list[Check]:
    """One unit moves the sum by at most the clip norm."""
    weighted = inputs.weighted
    bounded = not inputs.is_private or inputs.mechanism["l2_clip_norm"] is not None
    slack = float(inputs.plan["sensitivity_slack"])
    return [
        Check(
            id="clipping.joint_norm",
            assumption="Each unit's gradient over all trained parameters together, tables included "
            "and repeated ids merged, was scaled to at most l2_clip_norm before the sum.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if bounded else Result.VIOLATED,
            note=None if bounded else "There was no clip norm.",
        ),
        Check(
            id="clipping.rounding",
            assumption="A unit more or less moves the sum by at most 2^-10 of l2_clip_norm beyond its "
            "own clipped gradient, rounding included, and the accounted noise multiplier is smaller by "
            "that much.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if slack >= SENSITIVITY_SLACK else Result.VIOLATED,
            note=None if slack >= SENSITIVITY_SLACK else "The plan leaves less room for rounding.",
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
            basis=Basis.ENFORCED if inputs.users_model is None else Basis.VERIFIED,
            note=None if inputs.users_model is None else _TRIED[inputs.users_model],
        ),
        Check(
            id="weights.before_clipping",
            assumption="Example weights are inside the loss, before clipping.",
            basis=Basis.ENFORCED if weighted else Basis.NOT_APPLICABLE,
            result=Result.HOLDS if weighted else Result.NOT_APPLICABLE,
            load_bearing=weighted,
        ),
        Check(
            id="normaliser.public_constant",
            assumption="The noisy sum is divided by a constant fixed before training, never by the "
            "size that a batch turned out to have.",
            basis=Basis.ENFORCED,
        ),
    ]


def _cap(inputs: StatementInputs) -> list[Check]:
    """Users are capped, where a guarantee for users stands on it."""
    if inputs.cap is None and inputs.unit != "user":
        return []
    capped = inputs.cap is not None and inputs.user_column is not None
    return [
        Check(
            id="unit.cap_enforced",
            assumption="No user had more rows in training than max_examples_per_unit; which rows of "
            "a user stayed depended on no other user.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if capped else Result.VIOLATED,
            note=None
            if capped
            else "Users could not be capped: the schema names no user column, or there is no cap.",
        )
    ]


def _noise(inputs: StatementInputs) -> list[Check]:
    """The noise is there, on everything, and nobody can know it."""
    noisy, seeded = inputs.is_private, inputs.noise_seed_used
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
            assumption="No draw served two gradients"
            + (" or sums" if inputs.releases else "")
            + ": each has an address of its own, and keys are bound to everything that changes the "
            "numbers.",
            basis=Basis.ENFORCED,
            result=Result.VIOLATED if seeded else Result.HOLDS,
            note="Every run under one noise_seed draws the same noise." if seeded else None,
        ),
        Check(
            id="noise.generator",
            assumption="Noise and coins come from ChaCha20 keyed from the operating system; the key "
            "is kept secret and destroyed with the checkpoints.",
            basis=Basis.ENFORCED,
            result=Result.VIOLATED if seeded else Result.HOLDS,
            note="noise_seed was set, which is for tests only: whoever knows the seed can "
            "subtract the noise."
            if seeded
            else _ON_DEVICES
            if inputs.backend in BY_BACKEND
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
            " Noisy gradients of the tower and released rows of tables"
            + (", and noisy sums beside training," if inputs.releases else "")
            + " are rounded to a public grid"
            " of about 2^-10 of the noise's stddev, which hides the low bits that betray which rows"
            " were touched. The guarantee is still the real-number mechanism's.",
        ),
    ]


def _iterations(inputs: StatementInputs) -> list[Check]:
    """What ran is what was announced."""
    opened = inputs.opened
    problem = None
    if inputs.is_private and inputs.covered_event == NO_OP:
        problem = "The ledger holds no covered training entry."
    elif len(opened) != 1 and inputs.is_private:
        problem = f"The ledger holds {len(opened)} training entries; this run is one."
    elif inputs.selected is not None and inputs.covering is None:
        problem = _NOT_COVERED
    elif inputs.executed > inputs.planned_iterations:
        problem = f"{inputs.executed} iterations ran, {inputs.planned_iterations} were announced."
    log = (
        f"ledger of {len(inputs.ledger)} entries: {inputs.planned_iterations} planned, "
        f"{inputs.executed} executed, {replayed_words(inputs.told_replays)}"
    )
    cut_short = inputs.executed < inputs.planned_iterations
    # a GPU adds in whatever order its threads come
    inexact = problem is None and inputs.backend in _ELSEWHERE and bool(inputs.replayed)
    if inexact:
        problem = "Iterations ran again on a GPU, and nobody has tested that they were the same to the bit."
    return [
        Check(
            id="iterations.all_counted",
            assumption="Every noisy iteration on private rows is in the event. One that was run again "
            "after an interruption was the same: a run is not resumed unless everything that changes "
            "its numbers is the same, the processor's kind included. That replays then are identical "
            "to the bit is tested, not compared in each run.",
            basis=Basis.NOT_CHECKED if inexact else Basis.ENFORCED,
            result=Result.HOLDS
            if problem is None
            else Result.UNKNOWN
            if inexact
            else Result.VIOLATED,
            note=problem,
            evidence=[Evidence("log", log, inputs.ledger_head)],
        ),
        Check(
            id="iterations.fixed_in_advance",
            assumption="The largest number of iterations was on the ledger before the first batch, "
            "and the last iteration's model is the one described: no early stopping on private rows.",
            basis=Basis.NOT_CHECKED if cut_short else Basis.ENFORCED,
            result=Result.UNKNOWN if cut_short else Result.HOLDS,
            note=f"Only {inputs.executed} of {inputs.planned_iterations} announced iterations ran, "
            "and nothing says why training stopped."
            if cut_short
            else None,
        ),
    ]


def _releases(inputs: StatementInputs) -> list[Check]:
    """What is released beside training is what the plan reserved a share for."""
    planned = inputs.releases
    if not planned:
        return []
    missing = [release.kind for release in planned if not _is_noted(inputs, release)]
    note = None
    if missing and inputs.selected is None:
        note = f"The ledger does not hold, with the plan's noise: {', '.join(missing)}."
    return [
        Check(
            id="releases.accounted",
            assumption="Each noisy sum beside training scaled every unit's vector, over all of the unit's "
            "rows together, to its norm bound, got Gaussian noise on every coordinate, those that nobody "
            "has included, and is in the event with the noise of the share that was reserved for it.",
            basis=Basis.ENFORCED,
            result=Result.HOLDS if note is None else Result.VIOLATED,
            note=note,
        )
    ]


def _is_noted(inputs: StatementInputs, release: Release) -> bool:
    """Whether the ledger holds a planned release with its event."""
    return any(entry.dp_event == release.event() for entry in inputs.entries(release.kind))
