"""A statement as a page for people."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from dpads.accounting.checks import Basis, Result
from dpads.accounting.ledger import TREATMENTS
from dpads.accounting.wording import RELATION_WORDS, TIER_WORDS, number

if TYPE_CHECKING:
    from jinja2 import Environment

_WIDTH = 100

_BASIS_WORDS: Mapping[str, str] = {
    Basis.ENFORCED: "enforced by code",
    Basis.VERIFIED: "verified",
    Basis.ASSERTED: "asserted by",
    Basis.DECLARED: "configuration, unsigned",
    Basis.NOT_CHECKED: "not checked",
    Basis.NOT_APPLICABLE: "not applicable",
}

_TUNING_WORDS: Mapping[str, str] = {
    "not_declared": "not declared: other runs on these rows, if there were any, are outside the figure",
    "none_data_independent": "the configuration was fixed without a look at these rows",
    "public_proxy": "the configuration was chosen on public or synthetic data",
    "not_accounted": "other runs on these rows chose the configuration and are outside the figure",
    "composition": "all runs are composed",
    "repeat_and_select": "the best of a random number of runs",
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
    return template.render(
        **data,
        relation_words=RELATION_WORDS,
        tier_words=TIER_WORDS,
        treatment_words=TREATMENTS,
        tuning_words=_TUNING_WORDS,
        bearing=bearing,
        not_bearing=[c for c in data["checks"] if not c["load_bearing"]],
        approx=[g for g in data["guarantees"] if g["notion"] == "approx_dp"],
        profiles=[g for g in data["guarantees"] if g["notion"] == "privacy_profile"],
        is_none=data["claim_level"] == "none",
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """The template environment; a name that the data lacks is an error, not a blank."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(
        cell=_cell,
        text=_text,
        para=_paragraph,
        item=_item,
        num=number,
        basis=_basis,
        result=_result,
    )
    return environment


def _template(name: str) -> str:
    """A template from the package."""
    folder = resources.files("dpads.accounting") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    """One line; angle brackets of what people wrote stay text."""
    if value is None:
        return "*missing*"
    return " ".join(str(value).split()).replace("<", "&lt;").replace("`", "'")


def _cell(value: object) -> str:
    """One line that cannot end its table cell."""
    return _text(value).replace("|", "\\|")


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
    words = _BASIS_WORDS[check["basis"]]
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
