"""Keys and splits depend on content alone; real and large logs."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_logs import FULL, WITH_USER, expected, log, make, rows_of

from dpads.batch import SparseBatch
from dpads.errors import StoreError
from dpads.preparing import prepare
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.store_keys import content_keys, ordinals, with_ordinals


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, ExampleStore]:
    """A store of three record batches without users."""
    frame = log(140_000)
    return frame, make(frame, FULL, tmp_path_factory.mktemp("big"))


# Keys, splits and views


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(40)))
def test_keys_depend_on_content_and_not_on_position(order: list[int]) -> None:
    values = np.arange(40, dtype=np.int32) // 4  # ten values, four identical rows of each
    batch = SparseBatch.from_arrays(ids={"c": values}, labels=np.zeros(40))
    moved = SparseBatch.from_arrays(ids={"c": values[order]}, labels=np.zeros(40))
    keys, again = content_keys(batch, None, 3), content_keys(moved, None, 3)
    assert len(set(keys.tolist())) == 10
    np.testing.assert_array_equal(again, keys[order])


@pytest.mark.parametrize("name", ["y", "x1", "x2", "c3", "tags", "w", "plain", "factor", "seconds"])
def test_keys_depend_on_every_column(name: str, tmp_path: Path) -> None:
    frame = log(60)
    changed = frame.with_columns(
        {
            "y": 1 - pl.col("y"),
            "plain": pl.concat_list("plain", pl.lit("a")),
            "tags": pl.col("tags").list.eval(pl.element() + 100),
            "w": pl.col("w").list.eval(pl.element() + 1),
        }.get(name, pl.col(name) + 100).alias(name)
    )
    keys = make(frame, FULL, tmp_path, "a").content_keys(0)
    other = make(changed, FULL, tmp_path, "b").content_keys(0)
    lists = frame["tags"].list.len().to_numpy() > 0
    touched = lists if name in ("tags", "w") else np.ones(60, np.bool_)
    assert (keys[touched] != other[touched]).all()
    np.testing.assert_array_equal(keys[~touched], other[~touched])


def test_order_inside_a_bag_counts() -> None:
    bag = ([4, 5, 5, 4, 4, 5], [0, 2, 4, 6], None)
    batch = SparseBatch.from_arrays(ids={"b": bag}, labels=[0, 0, 0])
    keys = content_keys(batch, None, 0)
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_identical_rows_are_told_apart_and_rows_that_collide_are_not_counted_together() -> None:
    keys = np.array([7, 7, 7, 9, 7], np.uint64)
    secret = np.array([1, 1, 2, 1, 1], np.uint64)  # row 2 only collides with the others
    found = with_ordinals(keys, ordinals(secret, keys))
    assert len({*found[[0, 1, 4]].tolist()}) == 3
    without = np.array([0, 1, 3, 4])
    again = with_ordinals(keys[without], ordinals(secret[without], keys[without]))
    np.testing.assert_array_equal(again, found[without])
    assert found[2] == found[0]  # both are first of their kind


def test_a_split_does_not_depend_on_the_stores_secret_key(tmp_path: Path) -> None:
    schema = FeatureSchema(task="ctr", label="y", categorical=["c"])
    frame = pl.DataFrame({"y": [0] * 60, "c": [f"v{i % 20}" for i in range(60)]})
    sides = [
        make(frame, schema, tmp_path, name).split(0.4, seed=1)[1].input_rows.tolist()
        for name in ("a", "b")
    ]
    assert sides[0] == sides[1]


def test_keys_are_uniform_and_seeded(big: tuple[pl.DataFrame, ExampleStore]) -> None:
    store = big[1]
    keys, other = store.content_keys(0), store.content_keys(1)
    assert (keys != other).all()
    for word in (keys, keys ^ other):
        share = (word >> np.uint64(32)).astype(np.float64) / 2**32
        counts = np.bincount((share * 64).astype(np.int64), minlength=64)
        mean = len(keys) / 64  # chi-square of 64 cells: mean 63, standard deviation 11.2
        assert abs(((counts - mean) ** 2 / mean).sum() - 63) < 5 * 11.2


def sides(frame: pl.DataFrame, store: ExampleStore) -> list[set[int]]:
    """The rows' own numbers (column x1) on each side of a split."""
    parts = store.split(0.3, seed=5)
    return [set(frame["x1"].to_numpy()[part.input_rows].tolist()) for part in parts]


@pytest.mark.parametrize("schema", [FULL, WITH_USER])
def test_adding_or_moving_rows_moves_nobody_to_another_side(
    schema: FeatureSchema, tmp_path: Path
) -> None:
    frame = log(400, users=80).with_columns(x1=pl.int_range(400))
    before = sides(frame, make(frame, schema, tmp_path, "a"))
    extra = log(50, seed=9).with_columns(x1=pl.int_range(1000, 1050), uid=pl.lit(999))
    more = pl.concat([extra, frame.reverse()], how="vertical_relaxed")
    after = sides(more, make(more, schema, tmp_path, "b"))
    for old, new in zip(before, after, strict=True):
        assert {n for n in new if n < 1000} == old


def test_a_split_covers_every_row_once_at_about_the_fraction(
    big: tuple[pl.DataFrame, ExampleStore],
) -> None:
    _, store = big
    train, test = store.split(0.2, seed=7)
    rows = np.concatenate([train.input_rows, test.input_rows])
    assert sorted(rows.tolist()) == list(range(140_000))
    # Binomial: standard deviation sqrt(140000 * 0.2 * 0.8) = 150.
    assert abs(test.num_examples - 28_000) < 5 * 150
    other = store.split(0.2, seed=8)[1]
    assert other.input_rows.tolist() != test.input_rows.tolist()
    again = store.split(0.2, seed=7)[1]
    assert again.input_rows.tolist() == test.input_rows.tolist()
    prints = {s.fingerprint for s in (store, train, test, other)}
    assert len(prints) == 4
    assert again.fingerprint == test.fingerprint


def test_users_are_on_one_side(tmp_path: Path) -> None:
    frame = log(2000, users=200)
    store = make(frame, WITH_USER, tmp_path)
    owners = frame["uid"].to_numpy()
    train, test = store.split(0.3, seed=1)
    groups = [set(owners[part.input_rows].tolist()) for part in (train, test)]
    assert groups[0].isdisjoint(groups[1])
    assert train.num_users + test.num_users == 200
    for part in (train, test):
        assert part.user_offsets is not None
        for begin, end in itertools.pairwise(part.user_offsets):
            assert len(set(owners[part.input_rows[begin:end]])) == 1


def test_a_view_reads_as_the_store_does(big: tuple[pl.DataFrame, ExampleStore]) -> None:
    frame, store = big
    _, test = store.split(0.01, seed=2)
    rows = np.array([5, 0, len(test) - 1])
    numbers = test.input_rows[rows].tolist()
    assert rows_of(test.read(rows)) == expected(frame[numbers], FULL)
    scanned = np.concatenate([batch.labels for batch in test.scan(100)])
    np.testing.assert_array_equal(scanned, frame["y"].to_numpy()[test.input_rows])
    with pytest.raises(StoreError, match="positions"):
        test.read([len(test)])
    deeper = test.split(0.5, seed=3)
    assert sum(len(part) for part in deeper) == len(test)
    assert set(deeper[1].input_rows.tolist()) < set(test.input_rows.tolist())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_outside_are_refused(
    fraction: float, big: tuple[pl.DataFrame, ExampleStore]
) -> None:
    with pytest.raises(StoreError, match="fraction"):
        big[1].split(fraction, seed=0)


def test_a_split_with_an_empty_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="empty"):
        make(log(3), FULL, tmp_path).split(1e-9, seed=0)


# Real and large logs


def shared_data(name: str) -> Path:
    folder = Path(os.environ.get("DPADS_DATA", Path(__file__).parents[1] / "../shared/data"))
    if not (folder / name).exists():
        pytest.skip("needs ../shared/data (or the folder in DPADS_DATA)")
    return folder / name


@pytest.mark.parametrize("header", [False, True])
def test_criteo_in_its_original_form_through_the_preset(header: bool, tmp_path: Path) -> None:
    schema = FeatureSchema.from_dict({"preset": "criteo-display"})
    source = shared_data("criteo_1tb_day0_10k.tsv.gz")
    frame = pl.read_csv(source, separator="\t", has_header=False, infer_schema=False)
    if header:
        frame.columns = list(schema.columns)
        frame.write_csv(tmp_path / "day0.tsv", separator="\t")
        source = tmp_path / "day0.tsv"
    store = prepare(source, schema, out=tmp_path / "store")
    batch = store.read(np.arange(store.num_examples))
    assert batch.scalar_ids.shape == (10_000, 26)
    assert batch.dense.shape == (10_000, 13)
    labels = frame[:, 0].cast(pl.Float32).to_numpy()
    np.testing.assert_array_equal(batch.labels, labels)
    missing = frame[:, 14:].select(pl.all().is_null()).to_numpy()
    np.testing.assert_array_equal(batch.scalar_ids == 0, missing)
    raw = frame[:, 1:14].cast(pl.Float64).fill_null(0).to_numpy()
    np.testing.assert_allclose(batch.dense, np.sign(raw) * np.log1p(np.abs(raw)), rtol=1e-6)


def test_adkdd_with_its_signed_ids(tmp_path: Path) -> None:
    schema = FeatureSchema(
        task="ctr", label="click", categorical=[f"hash_{i}" for i in range(19)], buckets=3000
    )
    store = prepare(shared_data("criteo_adkdd2021.parquet"), schema, out=tmp_path / "store")
    assert store.num_examples == 71_567
    assert store.read(np.arange(71_567)).scalar_ids.min() >= 0


WRITE_LOG = """
import gzip, io, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.csv as text, pyarrow.parquet as parquet

path, chunks = Path(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
columns = {"y": rng.integers(0, 2, 50_000), "uid": rng.integers(0, 40_000, 50_000)}
for j in range(10):
    columns[f"C{j}"] = [f"{v:x}" for v in rng.integers(0, 2**60, 50_000)]
table = pa.table(columns)
with path.open("wb") as file:
    if path.suffix in (".parquet", ".arrow"):
        kind = parquet.ParquetWriter if path.suffix == ".parquet" else pa.ipc.new_file
        with kind(file, table.schema) as writer:
            for _ in range(chunks):
                writer.write_table(table)
    else:
        pack = gzip.compress if path.suffix == ".gz" else bytes
        lines = io.BytesIO()
        text.write_csv(table, lines, text.WriteOptions(include_header=False))
        file.write(pack((",".join(columns) + "\\n").encode()))
        part = pack(lines.getvalue())
        for _ in range(chunks):
            file.write(part)
"""
PREPARE_LOG = """
import sys, threading, time
import dpads, dpads.store_writing

dpads.store_writing.SORT_BYTES = 1 << 25
schema = dpads.FeatureSchema(task="ctr", label="y", user=sys.argv[3] or None,
                             categorical=[f"C{j}" for j in range(10)])
peak = 0

def watch():
    # Pages of mapped files do not count: the system takes them back when it needs them.
    global peak
    while True:
        with open("/proc/self/status") as file:
            now = next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
        peak = max(peak, now)
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
dpads.prepare(sys.argv[1], schema, out=sys.argv[2], shards=int(sys.argv[4]))
print(peak // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "user", "shards"),
    [
        (".parquet", "", 1),
        (".parquet", "", 3),
        (".csv", "", 1),
        (".csv.gz", "uid", 1),
        (".arrow", "uid", 3),
    ],
)
def test_memory_does_not_grow_with_the_log(
    suffix: str, user: str, shards: int, tmp_path: Path
) -> None:
    peaks = []
    for chunks in (50, 150):  # 2.5 and 7.5 million rows: 0.5 and 1.4 GB of text
        log_path, store_path = tmp_path / f"log{suffix}", tmp_path / "store"
        subprocess.run([sys.executable, "-c", WRITE_LOG, log_path, str(chunks)], check=True)
        command = [sys.executable, "-c", PREPARE_LOG, log_path, store_path, user, str(shards)]
        out = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(out.stdout))
        shutil.rmtree(store_path)
    # The larger store has 300 MB more, the larger log 900 MB more.
    assert peaks[1] < peaks[0] + 120, f"peak resident memory in MB: {peaks}"
