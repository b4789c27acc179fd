"""Guides name code and tests: all of it is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
REFERENCES = sorted(
    {
        (guide.name, path, name)
        for guide in (ROOT / "guides").glob("*.md")
        for path, name in NAMED.findall(guide.read_text())
    }
)


@pytest.mark.parametrize(("guide", "path", "name"), REFERENCES, ids=lambda text: str(text))
def test_what_guides_point_at_exists(guide: str, path: str, name: str) -> None:
    source = (ROOT / path).read_text()
    assert re.search(rf"^(?:(?:def|class) )?{name}\b", source, re.MULTILINE), (guide, path, name)


def test_guides_point_at_code() -> None:
    assert len(REFERENCES) >= 20
