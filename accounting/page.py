"""A statement as one web page that needs nothing else: no network, no script, no font.

What people wrote is escaped everywhere, and the page's own policy forbids scripts and requests,
so that a statement from a stranger can be opened without trust in it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dpads.accounting import rendering
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.checks import Basis, Result
from dpads.accounting.ledger import TREATMENTS
from dpads.accounting.pictures import HEIGHT, WIDTH, Picture, profile_picture, rdp_picture
from dpads.accounting.wording import (
    CLAIM_WORDS,
    NOTION_WORDS,
    TIER_WORDS,
    event_words,
    listed,
    neighbour_words,
    number,
    replayed_words,
    sampler_words,
)

if TYPE_CHECKING:
    from jinja2 import Environment

_LANES = (
    "covered_by_accounting",
    "not_covered",
    "not_released",
    "declared_public",
    "public_data_only",
    "data_independent",
)

# Words of the schema that do not read well with spaces for underscores.
_WORDS: Mapping[str, str] = {
    "add_or_remove_one": "add or remove one",
    "all_noisy_gradients_and_checkpoints_of_the_runs_that_are_shown": (
        "of the runs that are shown all noisy gradients, and checkpoints whose rows were brought up to "
        "date; of the others nothing"
    ),
    "all_noisy_gradients_and_checkpoints_brought_up_to_date": (
        "all noisy gradients, and checkpoints whose rows were brought up to date"
    ),
    "asserted_public": "asserted to be public",
    "csprng_keyed_noise_seed": "ChaCha20, keyed from noise_seed",
    "csprng_keyed_os_entropy": "ChaCha20, keyed from the operating system",
    "discrete_gaussian": "discrete Gaussian",
    "dp_sgd": "DP-SGD",
    "final_model_single_run": "one run",
    "fresh_os_entropy": "a fresh key",
    "gaussian_float32": "Gaussian in float32",
    "gaussian_float64": "Gaussian in float64",
    "jax": "JAX",
    "jax-gpu": "JAX on a GPU",
    "pctr": "click-through rate",
    "pcvr": "conversion rate",
    "poisson": "Poisson",
    "truncated_poisson": "truncated Poisson",
    "weakens_quantified": "weakens it",
    "zero_out": "zero-out",
}

_EVIDENCE: Mapping[str, str] = {
    "code_path": "code",
    "unit_test": "test",
    "config_hash": "configuration",
}

# What a reviewer looks at first: what fails, then what rests on people, then what code enforces.
_RESULT_ORDER = (Result.VIOLATED, Result.UNKNOWN, Result.HOLDS, Result.NOT_APPLICABLE)
_BASIS_ORDER = (
    Basis.NOT_CHECKED,
    Basis.DECLARED,
    Basis.ASSERTED,
    Basis.VERIFIED,
    Basis.ENFORCED,
    Basis.NOT_APPLICABLE,
)

_ROWS_A_TABLE = 26


@dataclass(frozen=True)
class Figure:
    """One guarantee that is a curve: its picture and its numbers.

    Attributes:
        guarantee: The guarantee.
        picture: Where everything stands; None where nothing can be drawn.
        rows: The numbers as text, one pair per point.
        heads: What the two numbers of a pair are.
    """

    guarantee: Mapping[str, Any]
    picture: Picture | None
    rows: Sequence[tuple[str, str]]
    heads: tuple[str, str]

    @property
    def is_long(self) -> bool:
        """Whether the numbers need more room than the picture."""
        return len(self.rows) > _ROWS_A_TABLE

    @property
    def tables(self) -> list[Sequence[tuple[str, str]]]:
        """The rows in tables short enough to stand side by side."""
        return [self.rows[i : i + _ROWS_A_TABLE] for i in range(0, len(self.rows), _ROWS_A_TABLE)]


def to_html(data: Mapping[str, Any]) -> str:
    """The statement as one self-contained HTML page.

    Args:
        data: `GuaranteeStatement.data`.

    Returns:
        A whole document. The same data give the same text.

    Guarantees:
        - Nothing is fetched and no script runs: the page's own policy forbids both.
        - Every text of the data is escaped.
        - At claim level "none" no epsilon stands beside the claim.
    """
    checks = sorted(data["checks"], key=_urgency)
    bearing = [c for c in checks if c["load_bearing"]]
    is_none = data["claim_level"] == "none"
    subjects = [data["subject"], *(run["subject"] for run in data["further_runs"])]
    template = _environment().get_template("statement.html.j2")
    return template.render(
        **data,
        is_none=is_none,
        treatment_words={**TREATMENTS, **(rendering.NOTHING_STATED if is_none else {})},
        claim_words=CLAIM_WORDS[data["claim_level"]],
        names=listed(list(dict.fromkeys(subject["model_name"] for subject in subjects))),
        score_rows=rendering.score_rows_words,
        tuning_words=rendering.tuning_words(data["accounting"]["tuning"]),
        bound_words=rendering.bound_words(
            data["definition"]["unit_of_privacy"]["contribution_bound"]
        ),
        main=next((g for g in data["guarantees"] if g["id"] == "G1"), None),
        lanes=_lanes(data["definition"]["data_accesses"]),
        standing=_standing(data["guarantees"]),
        figures=sorted(_figures(data["guarantees"]), key=lambda f: f.is_long),
        bearing=bearing,
        not_bearing=[c for c in checks if not c["load_bearing"]],
        broken=[c for c in bearing if c["result"] != Result.HOLDS],
        bases=_bases(bearing),
        run_names=_run_names(data["ledgers"]),
        optional={key: data.get(key) for key in ("meaning", "tier")},
        group_events=data["accounting"].get("group_events", []),
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """The templates of web pages and their filters."""
    environment = rendering.empty_environment(escape=True)
    environment.globals.update(canvas=(WIDTH, HEIGHT), tier_words=TIER_WORDS)
    environment.filters.update(
        num=number,
        count=lambda value: f"{value:,}",
        plain=_plain,
        event=event_words,
        json=lambda value: canonical_bytes(value).decode(),
        accountant=lambda names: _plain(names).replace("pld", "PLD").replace("rdp", "RDP"),
        basis=_basis,
        percent=_percent,
        value=_value,
        notion=lambda name: NOTION_WORDS[name],
        neighbours=neighbour_words,
        sampler=sampler_words,
        replayed=replayed_words,
        whom=rendering.whom_words,
        evidence=lambda kind: _EVIDENCE.get(kind, _plain(kind)),
    )
    return environment


def _run_names(ledgers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each run is called on the page."""
    if len(ledgers) == 1:
        return [ledgers[0]["run"] or "this run"]
    names = [ledger["run"] for ledger in ledgers]
    return [f"run {i}" + (f", {name}" if name else "") for i, name in enumerate(names, start=1)]


def _lanes(accesses: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The accesses by treatment; covered and not covered are shown also where there are none."""
    lanes = [(lane, [a for a in accesses if a["treatment"] == lane]) for lane in _LANES]
    return [(lane, found) for lane, found in lanes if found or lane in _LANES[:2]]


def _standing(guarantees: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], Sequence[str]]]:
    """The checks that guarantees stand on, with all guarantees that stand on the same."""
    found: dict[tuple[str, ...], list[str]] = {}
    for guarantee in guarantees:
        found.setdefault(tuple(guarantee["depends_on_checks"]), []).append(guarantee["id"])
    return [(ids, checks) for checks, ids in found.items()]


def _figures(guarantees: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Every guarantee that is a curve, with the claim's point marked."""
    figures = []
    for guarantee in guarantees:
        value = guarantee["value"]
        if guarantee["notion"] == "privacy_profile":
            points = sorted(value["profile"], key=lambda p: -float(p["delta"]))
            figures.append(
                Figure(
                    guarantee,
                    profile_picture(points, _claimed_delta(guarantee, guarantees)),
                    [(number(p["delta"]), f"{p['epsilon']:.2f}") for p in points],
                    ("delta", "epsilon"),
                )
            )
        elif guarantee["notion"] == "rdp_curve":
            orders, values = value["rdp_orders"], value["rdp_values"]
            figures.append(
                Figure(
                    guarantee,
                    rdp_picture(orders, values),
                    [(number(o), number(v)) for o, v in zip(orders, values, strict=True)],
                    ("order", "divergence at most"),
                )
            )
    return figures


def _claimed_delta(
    profile: Mapping[str, Any], guarantees: Sequence[Mapping[str, Any]]
) -> float | None:
    """The delta of the (epsilon, delta) that a profile belongs to."""
    for guarantee in guarantees:
        same = all(guarantee[key] == profile[key] for key in ("unit", "group_size", "covers"))
        if guarantee["notion"] == "approx_dp" and same:
            return float(guarantee["value"]["delta"])
    return None


def _urgency(check: Mapping[str, Any]) -> tuple[int, int]:
    """What does not hold comes first, then what rests on people."""
    return _RESULT_ORDER.index(check["result"]), _BASIS_ORDER.index(check["basis"])


def _bases(checks: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """How many checks rest on what, the strongest first."""
    found = Counter(check["basis"] for check in checks)
    return [
        (rendering.BASIS_WORDS[basis].removesuffix(" by"), found[basis])
        for basis in reversed(_BASIS_ORDER)
        if found[basis]
    ]


def _basis(check: Mapping[str, Any]) -> str:
    """A check's basis, with the person where there is one."""
    words = rendering.BASIS_WORDS[check["basis"]]
    return f"{words} {check['asserted_by']}" if check["basis"] == Basis.ASSERTED else words


def _value(guarantee: Mapping[str, Any]) -> str:
    """The numbers of a guarantee in one line; a curve's are in its own table."""
    value, notion = guarantee["value"], guarantee["notion"]
    if notion == "privacy_profile":
        return f"{len(value['profile'])} points, below"
    if notion == "rdp_curve":
        return f"{len(value['rdp_orders'])} orders, below"
    return rendering.figure_words(guarantee)


def _percent(share: float) -> str:
    """A share as a percentage; a bound is never rounded down."""
    hundredths = math.ceil(round(share * 10_000, 6))
    return f"{hundredths / 100:g} %"


def _plain(word: str) -> str:
    """A word of the schema as people write it."""
    return _WORDS.get(word, word.replace("_", " "))
