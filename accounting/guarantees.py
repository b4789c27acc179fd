"""The guarantees of a statement: one event in every notion that describes it, rounded up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpads.accounting import accountant
from dpads.accounting.accountant import PrivacyLoss, epsilon_of, round_up
from dpads.accounting.events import NO_OP, EventTree
from dpads.accounting.group import group_profile, refusal_of
from dpads.accounting.notions import (
    attack_bounds,
    gdp_fit,
    rdp_points,
    round_up_digits,
    zcdp_rho,
)
from dpads.accounting.relation import Relation

_FEWEST_POINTS = 3  # of a profile in the schema

# What is to be told apart, and what a test of it finds at most.
_IN_WORDS: Mapping[Relation, tuple[str, str]] = {
    Relation.ADD_OR_REMOVE_ONE: (
        "whether one {unit} was among the training data",
        (
            "A test that wrongly finds {fpr} of those that were not in finds at most {tpr} of those that "
            "were."
        ),
    ),
    Relation.ZERO_OUT: (
        "whether one {unit} was in the training data or was emptied",
        (
            "A test that wrongly finds {fpr} of those that were emptied finds at most {tpr} of those that "
            "were in."
        ),
    ),
    Relation.REPLACE_ONE: (
        "which of two candidates one {unit} of the training data was",
        (
            "A test that names the first in {fpr} of the cases where it was the second names it in at "
            "most {tpr} of those where it was the first."
        ),
    ),
}


def guarantees_of(
    event: EventTree,
    *,
    delta: float,
    relation: Relation,
    unit: str,
    covers: str,
    depends_on: Sequence[str],
    hypothetical: bool,
    group_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    cached: bool = True,
) -> list[dict[str, Any]]:
    """What is guaranteed about an event, in the schema's form.

    Args:
        event: Everything that is covered.
        delta: The delta of the headline.
        relation: The neighbouring relation.
        unit: What one unit is: "example" or "user".
        covers: The schema's `covers`.
        depends_on: Ids of the checks that the guarantees stand on.
        hypothetical: Whether they do not hold as things are; they never headline then.
        group_size: The enforced cap of units (rows) per user, where units are examples.
        on_progress: For groups, see `group_profile`.
        cached: For groups, see `group_profile`.

    Returns:
        G1 (epsilon at delta), G1p (the profile), then G1r (RDP), G1z (zCDP) and G1g (GDP) where
        they describe the event, and G2 and G2p for users where a group size is given and a bound
        for groups exists; [] where nothing bounds the loss.

    Raises:
        ConfigError: delta is not in (0, 1), or the sampler needs another relation.
        InputError: The event is malformed.
        UnsupportedEventError: No accountant knows this event under this relation.

    Guarantees:
        - Every number is an upper bound, rounded up as it is printed.
    """
    relation = Relation(relation)
    loss = epsilon_of(event, delta, relation)
    if event == NO_OP or not math.isfinite(loss.epsilon):
        return []
    common = {
        "covers": covers,
        "unit": unit,
        "adjacency": str(relation),
        "is_bound": "upper_bound",
        "group_size": 1,
        "hypothetical": hypothetical,
        "depends_on_checks": list(depends_on),
    }
    losses = accountant.profile(event, relation, profile_deltas(delta))
    stated = [
        *_of_losses("G1", losses, loss.delta, common),
        *_other_notions(event, relation, common),
    ]
    if group_size is not None and refusal_of(event, group_size, relation) is None:
        if group_size > 1:
            losses = group_profile(
                event, group_size, relation, profile_deltas(delta), on_progress, cached
            )
        users = {**common, "unit": "user", "group_size": group_size}
        stated.extend(_of_losses("G2", losses, loss.delta, users))
    return stated


def profile_deltas(delta: float) -> tuple[float, ...]:
    """The deltas of a stated profile, largest first."""
    return tuple(sorted({*accountant.PROFILE_DELTAS, float(delta)}, reverse=True))


def meaning_of(event: EventTree, *, relation: Relation, unit: str) -> dict[str, Any]:
    """What the guarantee says of an attacker, in the schema's form.

    Args:
        event: Everything that is covered.
        relation: The neighbouring relation.
        unit: What one unit is: "example" or "user".

    Returns:
        The bounds, rounded up to four decimals, and two sentences with them.

    Raises:
        ConfigError: The sampler needs another relation.
        InputError: The event is malformed.
        UnsupportedEventError: No accountant knows this event under this relation.
    """
    bounds = attack_bounds(event, Relation(relation))
    advantage, tpr = round_up(bounds.advantage, 4), round_up(bounds.tpr, 4)
    accuracy = round_up((1.0 + advantage) / 2.0, 4)
    question, test = _IN_WORDS[Relation(relation)]
    told = question.format(unit=unit)
    text = (
        f"Whoever knows everything else, and holds both answers for equally likely beforehand, tells "
        f"{told} with an accuracy of at most {_percent(accuracy)} (guessing: 50 %). "
        + test.format(fpr=_percent(bounds.fpr), tpr=_percent(tpr))
    )
    return {
        "for_guarantee": "G1",
        "prior": 0.5,
        "advantage": advantage,
        "accuracy": accuracy,
        "fpr": bounds.fpr,
        "tpr": tpr,
        "text": text,
    }


def tier_of(guarantees: Sequence[Mapping[str, Any]], *, units: int | None) -> dict[str, Any] | None:
    """The tier of a statement's first guarantee, or None where naming one would flatter it.

    Args:
        guarantees: What `guarantees_of` gave.
        units: The public number of units; None where none is known.
    """
    first = next((g for g in guarantees if g["id"] == "G1"), None)
    if first is None or first["hypothetical"]:
        return None
    value = first["value"]
    label = accountant.tier(value["epsilon"], value["delta"], units)
    if label is None:
        return None
    return {"label": str(label), "for_guarantee": "G1", "delta": value["delta"]}


def _of_losses(
    name: str, losses: Sequence[PrivacyLoss], delta: float, common: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """(epsilon, delta) and the profile; what is infinite is left out."""
    finite = [loss for loss in losses if math.isfinite(loss.epsilon)]
    stated = [
        {
            "id": name,
            "notion": "approx_dp",
            "value": {"epsilon": round_up(loss.epsilon), "delta": loss.delta},
            "accountant": loss.accountant,
            **common,
        }
        for loss in finite
        if loss.delta == delta
    ]
    if stated and len(finite) >= _FEWEST_POINTS:
        points = [{"epsilon": round_up(x.epsilon), "delta": x.delta} for x in finite]
        stated.append(
            {
                "id": f"{name}p",
                "notion": "privacy_profile",
                "value": {"profile": points},
                "accountant": " and ".join(sorted({x.accountant for x in finite})),
                **common,
            }
        )
    return stated


def _other_notions(
    event: EventTree, relation: Relation, common: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """RDP, zCDP and GDP, each where it describes the event."""
    stated: list[tuple[str, str, dict[str, Any], str]] = []
    points, rho, fit = (
        rdp_points(event, relation),
        zcdp_rho(event, relation),
        gdp_fit(event, relation),
    )
    if points is not None:
        stated.append(
            ("G1r", "rdp_curve", {"rdp_orders": points[0], "rdp_values": points[1]}, "rdp")
        )
    if rho is not None:
        stated.append(("G1z", "zcdp", {"rho": round_up_digits(rho)}, "closed_form"))
    if fit is not None:
        value = {"mu": round_up(fit.mu, 4), "mu_fpr_floor": round_up_digits(fit.fpr_floor, 2)}
        how = "closed_form" if fit.fpr_floor == 0.0 else "pld"
        stated.append(("G1g", "gdp", value, how))
    return [
        {"id": name, "notion": notion, "value": value, "accountant": how, **common}
        for name, notion, value, how in stated
    ]


def _percent(share: float) -> str:
    """A share of four decimals, as people read it."""
    return f"{100.0 * share:.2f}".rstrip("0").rstrip(".") + " %"
