"""What a guarantee does not say: a function of the statement's other items alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpads.accounting.headline import no_guarantee_for_users
from dpads.accounting.wording import rows_words

# How runs that were compared are inside the figure.
_COUNTED = ("composition", "repeat_and_select", "renyi_filter")

_ALWAYS = (
    (
        "The noise is a float32 Gaussian; the guarantee is that of real numbers. Attacks on the bits "
        "of floats are known in theory (Mironov 2012; Jin et al. 2022, arXiv 2112.05307). What leaves "
        "is rounded to a public grid of about 2^-10 of the noise's stddev, which hides the lowest "
        "bits and is no proof."
    ),
    (
        "The margin that the accountant adds for numerical error is measured (twice the largest error "
        "that was seen), not proved."
    ),
    "Noise and coins are pseudorandom: against whoever breaks ChaCha20 nothing is claimed.",
    (
        "The guarantee is about what the model reveals. Timing, memory, logs of other systems and the "
        "security of the raw log are not addressed."
    ),
)


def limitations_of(data: Mapping[str, Any]) -> list[str]:
    """What a reader might take from the figures and should not.

    Args:
        data: The statement's data; `headline`, `limitations` and the digests are not looked at.
    """
    definition = data["definition"]
    items = [*_of_unit(data), *_of_neighbours(definition), *_of_accesses(data), *_ALWAYS]
    if data["audit"]:
        items.append("An empirical audit can refute a guarantee; it never proves one.")
    else:
        items.append("No empirical audit was made.")
    if data["visibility"] == "public":
        items.append(
            "This is the public copy: evidence that was read off private rows is left out of it."
        )
    return items


def _of_unit(data: Mapping[str, Any]) -> list[str]:
    """Whom one unit stands for, and whom it does not."""
    unit = data["definition"]["unit_of_privacy"]
    cap = unit["contribution_bound"]["max_examples_per_user"]
    why = no_guarantee_for_users(data)
    items = []
    if unit["kind"] == "example" and data["claim_level"] != "none":
        several = "The guarantee is for one row. A person with several rows has a weaker one"
        if why is None:
            items.append(f"{several}: the one that is stated for users.")
        else:
            items.append(f"{several}, and no user-level guarantee exists: {why}.")
    if unit["kind"] == "example" and cap is not None:
        items.append(
            f"The guarantee for rows is about the at most {rows_words(cap)} that are kept of each user: a "
            "row more or less in the log can let another row of the same user in or out."
        )
    if unit["kind"] == "user" or (why is None and cap is not None):
        items.append(
            "A user is one value of the user column. A person with several of them has a weaker "
            "guarantee, and rows of other logs or of another time are not in it."
        )
    items.append(
        "A fact that stands in several rows (a conversion that labels several clicks, an advertiser, "
        "a page) is not protected as a whole"
        + ("." if unit["kind"] == "example" else " where they are rows of several users.")
    )
    return items


def _of_composition(data: Mapping[str, Any]) -> str:
    """Why costs of runs that were compared add up."""
    by_people = any(
        check["id"] == "tuning.fixed_in_advance" and check["basis"] != "enforced_by_code"
        for check in data["checks"]
    )
    if by_people:
        return (
            "Runs that were compared compose where each of them, and how often it was tried, was fixed "
            "before the first result, for which somebody's word stands here. A run that is planned after "
            "a look at their results adds to what is stated here."
        )
    return (
        "Runs that were compared compose because one sweep's file fixed them in advance: each of its "
        "private trials is counted, whether it ran or not. A run that is planned after a look at their "
        "results adds to what is stated here."
    )


def _of_neighbours(definition: Mapping[str, Any]) -> list[str]:
    """What both of two neighbours may show."""
    adjacency, items = definition["adjacency"], []
    if adjacency["relation"] == "zero_out":
        items.append(
            "Zero-out applies to the training rows, after test rows were split off where a run does "
            "so. The split goes by a row's content (by its user's identifier where there is one): "
            "a row emptied before the split could have come to the other side. The same holds of units "
            "that a private selection sets aside for its score."
        )
    if adjacency["dataset_size_status"] != "private":
        items.append("The number of units counts as public; it is not protected.")
    return items


def _of_accesses(data: Mapping[str, Any]) -> list[str]:
    """What is read besides training."""
    stages = {
        access["stage"]
        for access in data["definition"]["data_accesses"]
        if access["treatment"] == "not_covered"
    }
    items = []
    if stages & {"evaluation", "model_selection"}:
        items.append(
            "Exact metrics are functions of the rows they were computed on, which have no guarantee "
            "against whoever sees these metrics."
        )
    if "reference_training" in stages:
        items.append(
            "The reference model and its metrics carry no guarantee: whoever sees them learns about "
            "the training rows."
        )
    if "reference_tuning" in stages:
        items.append(
            "Hyperparameters that runs without noise chose are functions of the training rows. Nothing "
            "bounds what they tell; that it is next to nothing is what the claim rests on."
        )
    if "further_trials" in stages:
        items.append(
            "This is a trial of a sweep. Whoever sees the other trials or their results too, or a model "
            "that was chosen for its result, has a weaker guarantee: what they cost together is on the "
            "sweep's ledger."
        )
    tuning = data["accounting"]["tuning"]["method"]
    if tuning == "repeat_and_select":
        items.append(
            "How many runs a private selection made is secret, and so is everything but its best run. "
            "Whoever watches the machine, or how long it takes, learns about the number of runs, and "
            "has no guarantee."
        )
    if len(data["ledgers"]) > 1:
        items.append(
            "Costs of runs add up where each one's noise, sampling and iterations were chosen without a "
            "look at the others' results, which code cannot know of runs that were started one by one."
        )
    elif tuning == "composition":
        items.append(_of_composition(data))
    joint = len(data["ledgers"]) > 1 or tuning in _COUNTED
    if "hyperparameter_tuning" in stages:
        items.append(
            "Other runs and looks at these rows are outside the figure: it is "
            + (
                "that of these runs together."
                if joint
                else "one run's, with its configuration taken as given."
            )
        )
    items.append(
        "Every further model that is trained on these rows, or on later rows of the same people, "
        "adds to what is stated here."
    )
    return items
