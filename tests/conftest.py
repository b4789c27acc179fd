"""What all tests share: one seed for hypothesis, and where the real logs are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every machine and no limit on the time of one: a slow machine is no bug.
settings.register_profile("dpads", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dpads")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real logs; its absence skips the test."""
    folder = Path(os.environ.get("DPADS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs the real logs in ../shared/data (or the folder in DPADS_DATA)")
    return folder
