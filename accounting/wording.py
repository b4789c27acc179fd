"""Words and numbers as statements write them for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

RELATION_WORDS: Mapping[str, str] = {
    "add_or_remove_one": "adding or removing one",
    "zero_out": "replacing one by an empty one (zero-out)",
    "replace_one": "replacing one by another",
}

TIER_WORDS: Mapping[str, str] = {
    "tier1_eps_le_1": "Tier 1 (strong)",
    "tier2_eps_le_10": "Tier 2 (reasonable)",
    "tier3_eps_gt_10": "Tier 3 (weak)",
}

CLAIM_WORDS: Mapping[str, str] = {
    "formal": "Formal: every assumption that bears the guarantee is enforced by code or was verified.",
    "conditional": "Conditional: the guarantee holds if what people say holds; what code cannot check "
    "is named above.",
    "none": "None: an assumption that would bear the guarantee does not hold, or nobody knows whether "
    "it does.",
}

NOTION_WORDS: Mapping[str, str] = {
    "approx_dp": "(epsilon, delta)",
    "pure_dp": "pure epsilon",
    "privacy_profile": "privacy profile",
    "rdp_curve": "Renyi curve",
    "zcdp": "zero-concentrated",
    "gdp": "Gaussian",
}


def number(value: float) -> str:
    """A number as people write it, and no other: 1e-6, not 1e-06.

    Examples:
        >>> number(1e-06), number(0.25), number(123.4567)
        ('1e-6', '0.25', '123.4567')
    """
    short = f"{value:g}"
    return (short if float(short) == value else repr(value)).replace("e-0", "e-")


def rounded_up(value: float) -> str:
    """An upper bound with four digits, rounded up.

    Examples:
        >>> rounded_up(4.4860189950159945), rounded_up(1.5)
        ('4.487', '1.5')
    """
    return number(float(Context(prec=4, rounding=ROUND_CEILING).plus(Decimal(value))))


def rows_words(count: int) -> str:
    """A number of rows."""
    return "1 row" if count == 1 else f"{count} rows"


def log_words(split: bool, count: int = 2) -> str:
    """The log that rows of units come from, where rows of it may have been split off to test.

    Args:
        split: Whether they were.
        count: Of rows of one unit.

    Examples:
        >>> log_words(False), log_words(True, 1)
        ('the training log', 'the training log that was not split off to test')
    """
    log = "the training log"
    return f"{log} that {'was' if count == 1 else 'were'} not split off to test" if split else log


def row_words(*, split: bool, earlier: bool, joint: bool) -> str:
    """One row that a guarantee for rows is about.

    Args:
        split: Whether rows of the log were split off to test.
        earlier: Whether what earlier runs have spent is counted, which may have had other logs.
        joint: Whether there are several runs.

    Examples:
        >>> row_words(split=True, earlier=True, joint=False)
        'one row that this run or an earlier one trained on'
    """
    if not earlier:
        return f"one row of {log_words(split, 1)}"
    return (
        f"one row that {'one of these runs' if joint else 'this run'} or an earlier one trained on"
    )


def user_rows_words(most: int, *, split: bool, earlier: bool, joint: bool) -> str:
    """The rows that one user has at most; the other arguments are those of `row_words`.

    Examples:
        >>> user_rows_words(3, split=False, earlier=True, joint=False)
        'at most 3 rows in each run, this one and the earlier ones'
    """
    if not earlier:
        return f"at most {rows_words(most)} of {log_words(split, most)}"
    return f"at most {rows_words(most)} in each run, {'these' if joint else 'this one'} and the earlier ones"


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence.

    Examples:
        >>> listed(["a"]), listed(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def neighbour_words(definition: Mapping[str, Any]) -> str:
    """How one of two neighbouring data sets becomes the other, from the statement's `definition`."""
    unit = definition["unit_of_privacy"]["kind"]
    return {
        "add_or_remove_one": f"adding or removing one {unit}",
        "zero_out": f"replacing one {unit} by an empty one",
        "replace_one": f"replacing one {unit} by another",
    }[definition["adjacency"]["relation"]]


def replayed_words(replayed: int | None) -> str:
    """Iterations that ran again after an interruption, from the statement's `mechanism.steps`.

    Examples:
        >>> replayed_words(3)
        '3 replayed after an interruption'
    """
    if replayed is None:
        return "whether any was replayed is not told: it would say which of the runs was selected"
    return f"{replayed} replayed after an interruption"


def sampler_words(sampler: Mapping[str, Any]) -> str:
    """How units came into batches, from the statement's `mechanism.sampler`."""
    prob, units = sampler["sampling_probability"], sampler["dataset_size"]
    if sampler["kind"] == "fixed_order":
        return (
            f"Fixed order: {sampler['batches_per_pass']:,} batches hold each of {units:,} units once; "
            "no amplification"
        )
    words = f"Poisson, probability {prob} for every unit in every iteration"
    if sampler["kind"] == "truncated_poisson":
        words += f"; cut at random to {sampler['truncated_batch_size']:,} of {units:,} units"
    return words


def event_words(event: Mapping[str, Any]) -> str:
    """An event in words.

    Examples:
        >>> step = {"kind": "gaussian", "noise_multiplier": 0.766}
        >>> sampled = {"kind": "poisson_sampled", "sampling_prob": 0.0018, "event": step}
        >>> event_words({"kind": "self_composed", "count": 2798, "event": sampled})
        '2,798 x Gaussian (noise multiplier 0.766), Poisson-sampled (probability 0.0018)'
    """
    kind = event["kind"]
    noise = f"noise multiplier {event.get('noise_multiplier', 0):.6g}"
    if kind == "gaussian":
        return f"Gaussian ({noise})"
    if kind == "poisson_sampled":
        probability = f"probability {event['sampling_prob']:.6g}"
        return f"{event_words(event['event'])}, Poisson-sampled ({probability})"
    if kind == "fixed_order_pass":
        return f"{event_words(event['event'])}, a pass in fixed order"
    if kind == "truncated_poisson_gaussian":
        return (
            f"Gaussian ({noise}), Poisson-sampled (probability {event['sampling_prob']:.6g}) from "
            f"{event['dataset_size']:,} units and cut to {event['max_batch_size']:,}"
        )
    if kind == "mixture_of_gaussians":
        most = max(event["sensitivities"])
        return f"mixture of Gaussians ({noise}, 0 to {most:g} of a group in a batch)"
    if kind == "repeat_and_select":
        inner = event_words(event["event"])
        shape = event["shape"]
        law = f"law {shape}" if isinstance(shape, str) else f"shape {shape:g}"
        return f"the best of a random number (mean {event['mean']:g}, {law}) of runs of [{inner}]"
    if kind == "worst_of":
        parts = "; or ".join(event_words(part) for part in event["events"])
        return f"one of [{parts}], whichever costs most"
    if kind == "renyi_filter":
        return (
            f"a Renyi filter of order {event['order']:g} with the fixed total {event['rdp']:.6g}, and "
            "whatever ran inside"
        )
    if kind == "self_composed":
        inner = event_words(event["event"])
        compound = ("self_composed", "composed", "repeat_and_select", "worst_of")
        simple = event["event"]["kind"] not in compound
        return f"{event['count']:,} x {inner if simple else f'[{inner}]'}"
    if kind == "composed":
        return "; then ".join(event_words(part) for part in event["events"])
    return str(kind).replace("_", " ")
