"""What all tests share: one seed for hypothesis, and where the real logs are."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from hypothesis import settings

from dpads import synthetic
from dpads.preparing import prepare
from dpads.store import ExampleStore
from dpads.synthetic import SyntheticLog

# Many tests compile the same step: the first to do so keeps it for the others, whichever process they are in.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

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


@pytest.fixture(scope="session")
def click_log() -> SyntheticLog:
    """A small synthetic log."""
    return synthetic.click_log(4000, seed=11, buckets=200)


@pytest.fixture(scope="session")
def log_folder(click_log: SyntheticLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small log as files: train.parquet (3000 rows) and test.parquet (1000 rows)."""
    folder = tmp_path_factory.mktemp("logs")
    parquet.write_table(click_log.table[:3000], folder / "train.parquet")
    parquet.write_table(click_log.table[3000:], folder / "test.parquet")
    return folder


@pytest.fixture(scope="session")
def train_store(click_log: SyntheticLog, log_folder: Path) -> ExampleStore:
    """train.parquet as a store."""
    return prepare(log_folder / "train.parquet", click_log.schema, out=log_folder / "train-store")


@pytest.fixture(scope="session")
def test_store(click_log: SyntheticLog, log_folder: Path) -> ExampleStore:
    """test.parquet as a store."""
    return prepare(log_folder / "test.parquet", click_log.schema, out=log_folder / "test-store")
