"""The statement as a web page: everything on it, nothing beside it, nothing run from it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from headless import Headless, browser_path
from jinja2 import UndefinedError
from markupsafe import escape
from statement_runs import EVERYTHING, NO_CLAIM, STATEMENTS, run_inputs, statement_of

from dpads.accounting.facts import ASKED_FOR
from dpads.accounting.page import to_html
from dpads.accounting.statement import load_schema, make_statement

TEMPLATES = Path(__file__).parents[2] / "accounting" / "templates"
ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;{{ 1 }}"
VOID = {"meta", "link", "br", "img", "input", "hr", "col"}
# Words that decide what is shown: one that the schema does not know is refused, not shown.
DECIDING = {
    "accounting.tuning.method",
    "checks[].basis",
    "checks[].result",
    "claim_level",
    "definition.adjacency.relation",
    "definition.data_accesses[].filled_by",
    "definition.data_accesses[].treatment",
    "guarantees[].id",
    "guarantees[].notion",
    "tier.label",
}
# What other words on the page say.
SAID_OTHERWISE = {
    "accounting.tuning.run_count_distribution",
    "definition.unit_of_privacy.contribution_bound.method",
    "mechanism.sampler.kind",
    "further_runs[].mechanism.sampler.kind",
}


class Page(HTMLParser):
    """A page's elements and texts, checked for being closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, str(dict(attrs).get("id"))))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            path = tuple(f"{tag}#{name}" for tag, name in self._open)
            self.texts.append((path, " ".join(data.split())))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        """The attributes of every element of these kinds."""
        return [attributes for tag, attributes in self.elements if tag in tags]

    def text(self, within: str = "html#None", without: str | None = None) -> str:
        """The text inside one element and outside of another."""
        return " ".join(
            text
            for path, text in self.texts
            if within in path and without not in path and "style#None" not in path
        )


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, dict[Any, Any] | list[Any], Any]]:
    """Every text: its path without indices, what holds it, and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        here = f"{path}.{key}".lstrip(".") if isinstance(value, dict) else f"{path}[]"
        if isinstance(item, dict | list):
            yield from leaves(item, here)
        elif isinstance(item, str):
            yield here, value, key


@pytest.mark.parametrize("name", STATEMENTS)
def test_pages_are_whole_and_nothing_is_fetched_and_no_script_runs(name: str) -> None:
    page = Page(to_html(statement_of(name).data))
    assert page.all("html") == [{"lang": "en"}]
    kinds = {tag for tag, _ in page.elements}
    assert kinds >= {"header", "nav", "main", "section", "footer", "h1", "table", "title"}
    assert not kinds & {"script", "img", "iframe", "object", "embed", "form", "base", "video"}
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")

    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("href", "src", "xlink:href", "action"):
            target = attributes.get(key)
            assert target is None or target == "data:," or target.removeprefix("#") in ids, target
        for named in (attributes.get("aria-labelledby") or "").split():
            assert named in ids
        if tag == "section":
            assert attributes["aria-labelledby"] == f"{attributes['id']}-title"

    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    charts = [a for a in page.all("svg") if a.get("role") == "img"]
    assert all(a["aria-labelledby"] for a in charts)
    assert len(charts) + sum("aria-hidden" in a for a in page.all("svg")) == len(page.all("svg"))


def test_styles_fetch_nothing() -> None:
    style = (TEMPLATES / "statement.css").read_text()
    assert not re.search(r"url\(|@import|@font-face|expression|</", style)


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_claim_its_checks_and_its_accesses_are_on_the_page(name: str) -> None:
    data = statement_of(name).data
    page = Page(to_html(data))
    claim = page.text("section#claim")
    assert f"Claim level: {data['claim_level']}" in claim
    assert " ".join(data["headline"].split()) in claim
    for check in data["checks"]:
        assert check["assumption"] in page.text(f"tr#check-{check['id']}")
        for item in check["evidence"]:
            assert item["ref"] in page.text(f"tr#check-{check['id']}")
    for access in data["definition"]["data_accesses"]:
        assert access["description"] in page.text(f"tr#use-{access['id']}")
        assert any(a.get("href") == f"#use-{access['id']}" for a in page.all("a"))
    for limit in data["limitations"]:
        assert limit in page.text("section#limits")
    for item in data["nist_view"]:
        assert item["block"] in page.text("section#nist")
    for item in data["missing"]:
        assert f"missing : {item['asks_for']}" in page.text("section#missing")
    assert "dpads verify statement.json" in page.text("section#recheck")
    assert data["digest"] in page.text("section#recheck")
    assert "None" not in re.findall(r"\w+", page.text(without="section#claim"))


@pytest.mark.parametrize("name", STATEMENTS)
def test_at_claim_level_none_no_epsilon_stands_beside_the_claim(name: str) -> None:
    data = statement_of(name).data
    page = Page(to_html(data))
    claim = page.text("section#claim")
    if data["claim_level"] != "none":
        assert name not in NO_CLAIM
        assert f"epsilon {data['guarantees'][0]['value']['epsilon']:.2f}" in claim
        assert "What the accounting would have said" not in page.text()
        return
    assert "epsilon" not in claim
    assert "What the accounting would have said" in page.text("section#numbers")
    figures = {f"{v:g}" for v in data["accounting"]["bounds"].values() if v is not None}
    for guarantee in data["guarantees"]:
        assert guarantee["hypothetical"]
        if guarantee["notion"] == "approx_dp":
            figures.add(f"epsilon {guarantee['value']['epsilon']:.2f}")
        for point in guarantee["value"].get("profile", ()):
            figures.add(f"epsilon {point['epsilon']:.2f}")
    outside = page.text(without="section#numbers")
    assert not [figure for figure in figures if figure in outside]
    assert all(figure in page.text("section#numbers") for figure in figures if "." in figure[:3])


@pytest.mark.parametrize("name", ["everything", "three signed", "no noise", "selected privately"])
def test_every_text_of_the_data_is_escaped(name: str) -> None:
    """ATTACK in every text: the page shows it as text, or refuses a word that is none of its own."""
    clean = statement_of(name).data
    otherwise = set(SAID_OTHERWISE)
    if name == "selected privately":  # the law is a word of the page
        otherwise.remove("accounting.tuning.run_count_distribution")
    paths = {path for path, _, _ in leaves(clean)}
    for path in sorted(paths):
        try:
            page = to_html(attacked(clean, {path}))
        except (KeyError, ValueError, UndefinedError):
            assert path in DECIDING
            continue
        assert "<script" not in page
        assert "<img" not in page
        assert (escape(ATTACK) in page) != (path in otherwise), path
    whole = Page(to_html(attacked(clean, paths - DECIDING)))
    before = Page(to_html(clean))
    assert [tag for tag, _ in whole.elements] == [tag for tag, _ in before.elements]
    assert [set(a) for _, a in whole.elements] == [set(a) for _, a in before.elements]


def attacked(clean: Mapping[str, Any], paths: set[str]) -> dict[str, Any]:
    """The data with ATTACK in the place of every text at these paths."""
    data = copy.deepcopy(dict(clean))
    for path, holder, key in list(leaves(data)):
        if path in paths:
            holder[key] = ATTACK  # type: ignore[call-overload]
    return data


def test_what_the_data_lack_is_an_error_and_not_a_blank() -> None:
    clean = statement_of("signed").data
    unused = set()
    for key in clean:
        try:
            to_html({k: v for k, v in clean.items() if k != key})
        except (UndefinedError, KeyError):
            continue
        unused.add(key)
    assert unused == {"meaning", "tier"}  # which a statement need not have


def test_the_same_data_give_the_same_bytes() -> None:
    data = statement_of("signed").data
    assert statement_of("signed").to_html() == to_html(data)
    assert to_html(data) == to_html(json.loads(json.dumps(data, sort_keys=True)))


def test_what_people_did_not_supply_is_printed_as_missing() -> None:
    page = Page(to_html(statement_of("public size").data))
    assert all(key in page.text("section#missing") for key in ASKED_FOR)
    assert "version missing ; published by missing" in page.text("header#None")
    signed = Page(to_html(statement_of("signed").data))
    assert not [path for path, text in signed.texts if (path[-1], text) == ("span#None", "missing")]
    for key, value in EVERYTHING.items():
        assert key == "tuning" or value.split(",")[0] in signed.text(), key


def test_the_public_copy_is_a_page_too() -> None:
    statement = statement_of("store's count")
    size = f"{statement.data['definition']['adjacency']['dataset_size']:,}"
    assert size in Page(to_html(statement.data)).text("section#setting")
    page = Page(to_html(statement.public().data))
    assert "public copy" in page.text("header#None")
    assert "None" not in re.findall(r"\w+", page.text(without="section#claim"))


def test_every_word_of_the_schema_has_words() -> None:
    """A treatment, result, basis or notion that the schema knows cannot stop the page."""
    data = copy.deepcopy(dict(statement_of("signed").data))
    definitions = load_schema()["$defs"]
    access = data["definition"]["data_accesses"][0]
    accesses = load_schema()["properties"]["definition"]["properties"]["data_accesses"]
    words = accesses["items"]["properties"]
    places: list[tuple[dict[str, Any], str, list[str]]] = [
        (access, "treatment", words["treatment"]["enum"]),
        (access, "stage", words["stage"]["enum"]),
        (access, "filled_by", definitions["prov"]["enum"]),
        *(
            (data["checks"][0], key, definitions["check"]["properties"][key]["enum"])
            for key in ("result", "effect_if_false", "basis")
        ),
    ]
    data["checks"][0]["asserted_by"] = "Ada"
    for holder, key, known in places:
        kept = holder[key]
        for word in known:
            holder[key] = word
            assert to_html(data)
        holder[key] = kept


def test_colours_are_told_apart_in_light_and_dark() -> None:
    """At least 4.5 to 1, what WCAG 2.1 asks of text, for every pair that the styles use."""
    style = (TEMPLATES / "statement.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("@media screen", 1)
    )
    dark = {**light, **dict(list(dark.items())[: len(light)])}
    pairs = [
        (ink, ground) for ink in ("ink", "quiet", "link") for ground in ("page", "paper", "sunk")
    ]
    for look in ("good", "care", "bad", "calm", "open"):
        pairs += [
            (look, f"{look}-back"),
            (look, "paper"),
            ("ink", "calm-back"),
            ("quiet", "calm-back"),
        ]
    for theme in (light, dark):
        for ink, ground in pairs:
            bright, dim = sorted((luminance(theme[ink]), luminance(theme[ground])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, ground)
    assert light["paper"] != dark["paper"]


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headless]:
    program = browser_path()
    if program is None:
        pytest.skip("needs Chromium on PATH (Debian: apt-get install chromium)")
    with Headless(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("name", ["three signed", "audit above the claim", "long words"])
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (390, "dark"), (1280, "light")])
def test_a_browser_shows_the_page_without_scrolling_sideways(
    browser: Headless, tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    if name == "long words":
        long = {k: v if k == "tuning" else "W" * 300 for k, v in EVERYTHING.items()}
        data = make_statement(run_inputs(human=long)).data
    else:
        data = statement_of(name).data
    file = tmp_path / "statement.html"
    file.write_text(to_html(data), encoding="utf-8")
    browser.open(file, width=width, scheme=scheme)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(
        "[...document.querySelectorAll('main *')].every(e => e.closest('svg') || "
        f"e.getBoundingClientRect().right <= {width} + .5 || getComputedStyle(e).clipPath != 'none')"
    )
    assert browser.reports("Log.entryAdded", "Runtime.consoleAPICalled") == []
    assert browser.reports("Runtime.exceptionThrown") == []
    requests = {r["request"]["url"] for r in browser.reports("Network.requestWillBeSent")}
    assert requests == {file.resolve().as_uri()}
    for guarantee in data["guarantees"]:
        if guarantee["notion"] == "privacy_profile":
            points = f"#figure-{guarantee['id']} circle.point"
            assert browser.value(f"document.querySelectorAll('{points}').length") == len(
                guarantee["value"]["profile"]
            )
    dark = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 25)"
    assert dark == (scheme == "dark")


def test_a_printed_page_is_light_and_has_everything_open(browser: Headless, tmp_path: Path) -> None:
    file = tmp_path / "statement.html"
    file.write_text(to_html(statement_of("signed").data), encoding="utf-8")
    browser.open(file, width=1280, scheme="dark", media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value(
        "[...document.querySelectorAll('main details')].every(d => "
        "[...d.children].every(e => e.checkVisibility({contentVisibilityAuto: true})))"
    )
    assert browser.value("document.querySelectorAll('main details').length") > 20
    assert browser.value("[...document.querySelectorAll('nav')].every(e => !e.checkVisibility())")
