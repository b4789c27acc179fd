"""A statement as a page for people."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from dpads.accounting.checks import Basis, Result
from dpads.accounting.definition import PROTECTED
from dpads.accounting.ledger import TREATMENTS
from dpads.accounting.wording import (
    CLAIM_WORDS,
    NOTION_WORDS,
    TIER_WORDS,
    event_words,
    listed,
    neighbour_words,
    number,
    replayed_words,
    rounded_up,
    sampler_words,
)

if TYPE_CHECKING:
    from jinja2 import Environment

_WIDTH = 100
_ORDERS = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

BASIS_WORDS: Mapping[str, str] = {
    Basis.ENFORCED: "enforced by code",
    Basis.VERIFIED: "verified",
    Basis.ASSERTED: "asserted by",
    Basis.DECLARED: "configuration, unsigned",
    Basis.NOT_CHECKED: "not checked",
    Basis.NOT_APPLICABLE: "not applicable",
}

NOTHING_STATED: Mapping[str, str] = {"covered_by_accounting": "inside what was accounted"}

_TUNING_WORDS: Mapping[str, str] = {
    "not_declared": "not declared: other runs on these rows, if there were any, are outside the figure",
    "none_data_independent": "the configuration was fixed without a look at these rows",
    "public_proxy": "the configuration was chosen on public or synthetic data",
    "not_accounted": "other runs on these rows chose the configuration and are outside the figure",
    "composition": "all runs on the ledgers are composed, so each of them may be looked at",
    "renyi_filter": "everything inside a Renyi filter is counted, so each run inside may be looked at and "
    "may have shaped later ones",
    "repeat_and_select": "the best of a random, secret number of runs, the others never shown",
}


def to_markdown(data: Mapping[str, Any]) -> str:
    """The statement as Markdown: headline first, tables after.

    Args:
        data: `GuaranteeStatement.data`.

    Returns:
        Text with lines of at most about 100 characters, tables excepted.
    """
    template = _environment().get_template("statement.md.j2")
    bearing = [c for c in data["checks"] if c["load_bearing"]]
    runs, is_none = _runs(data), data["claim_level"] == "none"
    return template.render(
        **{"meaning": None, **data},
        runs=runs,
        is_joint=len(runs) > 1,
        names=listed(list(dict.fromkeys(run["subject"]["model_name"] for run in runs))),
        claim_words=CLAIM_WORDS,
        tier_words=TIER_WORDS,
        notion_words=NOTION_WORDS,
        treatment_words={**TREATMENTS, **(NOTHING_STATED if is_none else {})},
        tuning_line=tuning_words(data["accounting"]["tuning"]),
        bound_words=bound_words(data["definition"]["unit_of_privacy"]["contribution_bound"]),
        bearing=bearing,
        broken=_broken(bearing),
        not_bearing=[c for c in data["checks"] if not c["load_bearing"]],
        stated=[g for g in data["guarantees"] if g["notion"] in _VALUES],
        profile=_profile(data["guarantees"]),
        curve=_curve(data["guarantees"]),
        covered=_covered(data),
        hides=hides_runs(data),
        score_rows=score_rows_words,
        is_none=is_none,
    )


def empty_environment(*, escape: bool) -> Environment:
    """The package's templates, without filters; a name that the data lacks is an error, not a blank.

    Args:
        escape: Whether what the data hold is escaped for HTML.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=escape,
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """The templates of Markdown pages and their filters."""
    environment = empty_environment(escape=False)
    environment.filters.update(
        cell=_cell,
        text=_text,
        para=_paragraph,
        item=_item,
        sentence=_sentence,
        plain=lambda text: str(text).replace("_", " "),
        num=number,
        basis=_basis,
        result=_result,
        event=event_words,
        neighbours=neighbour_words,
        sampler=sampler_words,
        replayed=replayed_words,
        whom=whom_words,
        value=figure_words,
    )
    return environment


def _template(name: str) -> str:
    """A template from the package."""
    folder = resources.files("dpads.accounting") / "templates"
    return (folder / name).read_text(encoding="utf-8")


_VALUES: Mapping[str, Any] = {
    "approx_dp": lambda v: f"epsilon {v['epsilon']:.2f} at delta {number(v['delta'])}",
    "pure_dp": lambda v: f"epsilon {v['epsilon']:.2f}",
    "zcdp": lambda v: f"rho {number(v['rho'])}",
    "gdp": lambda v: f"mu {number(v['mu'])}{_floor(v['mu_fpr_floor'])}",
}
"""The notions that are one figure each, and how it is written."""


def figure_words(guarantee: Mapping[str, Any]) -> str:
    """The figure of a guarantee that is one."""
    return str(_VALUES[guarantee["notion"]](guarantee["value"]))


def _floor(rate: float) -> str:
    """The false positive rate below which a Gaussian says nothing."""
    return "" if rate == 0 else f", where both error rates are at least {number(rate)}"


def whom_words(guarantee: Mapping[str, Any]) -> str:
    """Who is protected by a guarantee."""
    rows = guarantee["group_size"]
    return str(guarantee["unit"]) + ("" if rows == 1 else f" (of at most {rows} rows)")


def _runs(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each run's model and mechanism, under the name it has on this page."""
    first = {"run": 0, "subject": data["subject"], "mechanism": data["mechanism"]}
    runs = [first, *data["further_runs"]]
    if len(runs) == 1:
        return [{**first, "title": "Model"}]
    names = [ledger["run"] for ledger in data["ledgers"]]
    return [
        {**run, "title": f"Run {place + 1}" + (f", {_cell(name)}" if name else "")}
        for place, (run, name) in enumerate(zip(runs, names, strict=True))
    ]


def bound_words(bound: Mapping[str, Any]) -> str:
    """How many rows of one user can be in training."""
    column, most = bound["identifier"], bound["max_examples_per_user"]
    if column is None:
        return "not bounded, since the schema names no user column"
    if most is None:
        return f"not bounded; users are told apart by the column {column}"
    return f"at most {most}, kept by a keyed hash; users are told apart by the column {column}"


def tuning_words(tuning: Mapping[str, Any]) -> str:
    """How the configuration was chosen, in words and figures."""
    words = _TUNING_WORDS[tuning["method"]]
    if tuning["method"] == "composition":
        return f"{words} ({tuning['runs']} runs)"
    if tuning["method"] == "renyi_filter":
        return f"{words} (order {number(tuning['order'])}, total {rounded_up(tuning['rdp'])})"
    if tuning["method"] == "repeat_and_select":
        law = str(tuning["run_count_distribution"]).replace("_", " ")
        shape = f", shape {number(tuning['shape'])}" if "shape" in tuning else ""
        return f"{words} ({law}, mean {number(tuning['mean'])}{shape})"
    return words


def score_rows_words(rows: str) -> str:
    """What a private selection computed its score from."""
    return {
        "training_units_set_aside": "training units that no run trains on",
        "none": "the run's noisy outputs alone",
    }.get(rows, rows)


def _covered(data: Mapping[str, Any]) -> str:
    """What the guarantee covers, in the words of the output of the mechanism."""
    words = str(data["definition"]["mechanism_output"]["formally_protected"])
    covered = words.partition("; not the checkpoints ")[0]
    count = len(data["ledgers"])
    if count > 1 and not hides_runs(data):
        covered = f"{PROTECTED} of each of the {count} runs, together"
    return covered


def hides_runs(data: Mapping[str, Any]) -> bool:
    """Whether the figures count runs of which nothing may ever be shown."""
    return str(data["dp_setting"]["adversary_view"]).endswith("_of_the_runs_that_are_shown")


def _broken(bearing: Sequence[Mapping[str, Any]]) -> str:
    """How many of the load-bearing assumptions do not hold."""
    count = sum(check["result"] != Result.HOLDS for check in bearing)
    if count == 0:
        return ""
    return f", and {count} of them {'does' if count == 1 else 'do'} not hold"


def _profile(guarantees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every profile over the same deltas; None where a profile has no point."""
    found = [g for g in guarantees if g["notion"] == "privacy_profile"]
    points = [{p["delta"]: p["epsilon"] for p in g["value"]["profile"]} for g in found]
    deltas = sorted({delta for row in points for delta in row}, reverse=True)
    rows = [
        {"whom": whom_words(g), "epsilons": [row.get(delta) for delta in deltas]}
        for g, row in zip(found, points, strict=True)
    ]
    return {"deltas": deltas, "rows": rows}


def _curve(guarantees: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A few points of the RDP curve: those at the orders nearest to powers of two."""
    value = next((g["value"] for g in guarantees if g["notion"] == "rdp_curve"), None)
    if value is None:
        return None
    points = list(zip(value["rdp_orders"], value["rdp_values"], strict=True))
    shown = {min((abs(point[0] - wanted), point) for point in points)[1] for wanted in _ORDERS}
    return {"all": len(points), "points": sorted(shown)}


def _text(value: object) -> str:
    """One line; angle brackets of what people wrote stay text."""
    if value is None:
        return "*missing*"
    return " ".join(str(value).split()).replace("<", "&lt;").replace("`", "'")


def _cell(value: object) -> str:
    """One line that cannot end its table cell."""
    return _text(value).replace("|", "\\|")


def _sentence(value: str) -> str:
    """What people wrote, with a full stop where they left it out."""
    return value if value.rstrip()[-1:] in ".!?" else f"{value.rstrip()}."


def _paragraph(value: object, prefix: str = "") -> str:
    """A paragraph wrapped to the page, each line after a prefix such as "> "."""
    return textwrap.fill(
        _text(value),
        width=_WIDTH,
        initial_indent=prefix,
        subsequent_indent=prefix,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _item(value: object) -> str:
    """A list item wrapped to the page."""
    return textwrap.fill(
        _text(value),
        width=_WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _basis(check: Mapping[str, Any]) -> str:
    """A check's basis, with the person where there is one."""
    words = BASIS_WORDS[check["basis"]]
    person = check.get("asserted_by")
    if check["basis"] == Basis.ASSERTED:
        return f"{words} {_cell(person)}"
    return words


def _result(check: Mapping[str, Any]) -> str:
    """A check's result; what does not hold stands out."""
    words = {
        Result.HOLDS: "holds",
        Result.VIOLATED: "**violated**",
        Result.UNKNOWN: "**unknown**",
        Result.NOT_APPLICABLE: "not applicable",
    }
    return words[Result(check["result"])]
