"""Predictions of frames, tables and readers: the same kind back, encoded as `prepare` encodes, streamed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SMALL
from store_logs import FULL, WITH_USER, log, make, rows_of

import dpads
from dpads.encoding import encode
from dpads.errors import ConfigError, DataError
from dpads.models import Logistic, Mlp
from dpads.models.base import Model
from dpads.predicting import COLUMN, batch_of, predict_frame, predict_logs
from dpads.store import ExampleStore
from dpads.synthetic import SyntheticLog


@pytest.fixture(scope="module")
def run(train_store: ExampleStore) -> dpads.Run:
    return dpads.train(train_store, **SMALL)


@pytest.fixture(scope="module")
def rows(click_log: SyntheticLog) -> pa.Table:
    """What is to be predicted, without labels and with a column that nobody asked for."""
    table = click_log.table[3000:].drop_columns("click")
    return table.append_column("note", pa.array([f"row {i}" for i in range(1000)]))


@pytest.fixture(scope="module")
def expected(run: dpads.Run, test_store: ExampleStore) -> Any:
    return run.predict(test_store)


def moved(model: Model, seed: int = 1) -> Model:
    """The model with parameters that are not zero."""
    rng = np.random.default_rng(seed)
    for array in (*model.tables.values(), *model.dense.values()):
        array[...] = rng.normal(0.0, 0.3, array.shape)
    return model


KINDS: dict[str, tuple[Callable[[pa.Table], Any], type[Any], Callable[[Any], pa.Table]]] = {
    "table": (lambda t: t, pa.Table, lambda out: out),
    "batch": (
        lambda t: t.combine_chunks().to_batches()[0],
        pa.RecordBatch,
        lambda out: pa.Table.from_batches([out]),
    ),
    "reader": (
        lambda t: t.to_reader(max_chunksize=300),
        pa.RecordBatchReader,
        lambda out: out.read_all(),
    ),
    "frame": (lambda t: pl.from_arrow(t), pl.DataFrame, lambda out: out.to_arrow()),
    "lazy": (
        lambda t: pl.from_arrow(t).lazy(),  # type: ignore[union-attr]
        pl.LazyFrame,
        lambda out: out.collect().to_arrow(),
    ),
    "lazy, streamed": (
        lambda t: pl.from_arrow(t).lazy(),  # type: ignore[union-attr]
        pl.LazyFrame,
        lambda out: out.collect(engine="streaming").to_arrow(),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kind_comes_back_with_the_predictions_of_a_store(
    run: dpads.Run, rows: pa.Table, expected: Any, kind: str
) -> None:
    made, wanted, read = KINDS[kind]
    out = run.predict(made(rows))
    assert isinstance(out, wanted)
    table = read(out)
    assert table.column_names == [*rows.column_names, COLUMN]
    assert table.schema.field(COLUMN).type == pa.float32()
    np.testing.assert_allclose(table[COLUMN].to_numpy(), expected, rtol=1e-6)
    assert table["note"].to_pylist() == rows["note"].to_pylist()


@given(
    seed=st.integers(0, 5),
    first=st.integers(0, 40),
    size=st.integers(0, 40),
    through=st.sampled_from(["arrow", "polars", "chunked", "categories"]),
)
def test_rows_are_encoded_as_prepare_encodes_them(
    seed: int, first: int, size: int, through: str
) -> None:
    """Bit for bit what the store of the same rows gives back, whatever they come in."""
    frame = log(60, seed=seed)[first : first + max(size, 1)]
    with tempfile.TemporaryDirectory() as name:
        store = make(frame, FULL, Path(name))
        wanted = rows_of(store.read(list(range(len(store)))))
        if through == "polars":
            table = frame.lazy().collect().to_arrow()
        elif through == "chunked":
            table = pa.concat_tables([frame[:3].to_arrow(), frame[3:].to_arrow()])
        elif through == "categories":
            texts = [pl.col(c).cast(pl.String).cast(pl.Categorical) for c in ("c1", "c2")]
            table = frame.with_columns(texts).to_arrow()
        else:
            table = frame.to_arrow()
        got = [row for b in table.to_batches() for row in rows_of(batch_of(encode(b, FULL), FULL))]
    assert got == wanted


@pytest.mark.parametrize("task", ["ctr", "count"])
@pytest.mark.parametrize("description", [Logistic(), Mlp(embedding_dim=4, hidden=(8,))], ids=str)
def test_bags_exposures_and_missing_values_are_predicted_as_from_a_store(
    description: Any, task: str, tmp_path: Path
) -> None:
    frame = log(500, seed=3).with_columns(
        x1=pl.when(pl.col("x1") > 40).then(None).otherwise(pl.col("x1")),
        c1=pl.when(pl.col("c1") > 25).then(None).otherwise(pl.col("c1")),
    )
    schema = dpads.FeatureSchema.from_dict({**WITH_USER.to_dict(), "task": task})
    store = make(frame, schema, tmp_path)
    assert (np.diff(store.input_rows) < 0).any()
    model = moved(description.init(schema))
    expected = np.empty(500, np.float32)
    expected[store.input_rows] = model.predict(store.read(list(range(500))))
    # neither label nor weight nor user is needed
    asked = frame.drop("y", "factor", "uid")
    got = predict_frame(model, asked)[COLUMN].to_numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert len(set(got.tolist())) > 400
    asked.write_parquet(tmp_path / "asked.parquet")
    parts = list(predict_logs(model, tmp_path / "asked.parquet"))
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-6)


def test_no_rows_give_no_predictions(run: dpads.Run, rows: pa.Table) -> None:
    for made, _, read in KINDS.values():
        if made is KINDS["batch"][0]:
            continue
        table = read(run.predict(made(rows[:0])))
        assert table.num_rows == 0
        assert table.column_names[-1] == COLUMN


def test_more_rows_than_a_part_holds(
    run: dpads.Run, rows: pa.Table, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpads import predicting

    monkeypatch.setattr(predicting, "BATCH_ROWS", 64)
    for made, _, read in KINDS.values():
        got = read(run.predict(made(rows)))[COLUMN].to_numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_reader_is_read_a_part_at_a_time(run: dpads.Run, rows: pa.Table) -> None:
    """A stream is predicted as far as it is asked for, and read no further."""
    taken = 0

    def stream() -> Iterator[pa.RecordBatch]:
        nonlocal taken
        for _ in range(20):
            taken += 1
            yield from rows.combine_chunks().to_batches()

    out = run.predict(pa.RecordBatchReader.from_batches(rows.schema, stream()))
    assert taken == 0
    for _ in range(3):
        assert out.read_next_batch().num_rows == 1000
    assert taken == 3


def test_a_lazy_frame_is_streamed_to_a_file(
    run: dpads.Run, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part that the model sees grows with the file."""
    parquet.write_table(
        pa.concat_tables([rows] * 300), tmp_path / "a.parquet", row_group_size=20_000
    )
    seen: list[int] = []
    predict = Model.predict

    def noting(self: Model, batch: Any) -> Any:
        seen.append(batch.num_examples)
        return predict(self, batch)

    monkeypatch.setattr(Model, "predict", noting)
    run.predict(pl.scan_parquet(tmp_path / "a.parquet")).sink_parquet(tmp_path / "b.parquet")
    assert sum(seen) == 300_000
    assert max(seen) <= 65_536
    first = pl.scan_parquet(tmp_path / "b.parquet").select(COLUMN).collect().to_series()
    np.testing.assert_array_equal(first[:1000].to_numpy(), first[-1000:].to_numpy())


def test_lazy_frames_may_be_joined_filtered_and_collected_at_once(
    run: dpads.Run, rows: pa.Table, expected: Any
) -> None:
    frame: Any = pl.from_arrow(rows)
    lazy = run.predict(frame.with_row_index("i").lazy())
    both = lazy.join(lazy, on="i").sort("i")
    for engine in ("in-memory", "streaming"):
        out = both.collect(engine=engine)
        np.testing.assert_allclose(out[COLUMN].to_numpy(), expected, rtol=1e-6)
        few = lazy.filter(pl.col(COLUMN) > 0.1).select("i").collect(engine=engine)
        assert sorted(few["i"].to_list()) == np.flatnonzero(expected > 0.1).tolist()


def test_what_cannot_be_predicted_is_told_before_anything_is_read(
    run: dpads.Run, rows: pa.Table
) -> None:
    def unread() -> Iterator[pa.RecordBatch]:
        raise AssertionError
        yield

    less = rows.drop_columns("device")
    for data in (
        less,
        pl.from_arrow(less),
        pl.from_arrow(less).lazy(),  # type: ignore[union-attr]
        pa.RecordBatchReader.from_batches(less.schema, unread()),
    ):
        with pytest.raises(DataError, match='"device"'):
            run.predict(data)
    with pytest.raises(DataError, match='no column "prediction"'):
        run.predict(rows.append_column(COLUMN, pa.nulls(1000)))
    for wrong in ("log.parquet", [1, 2], np.zeros(3)):
        with pytest.raises(ConfigError, match=r"polars\.scan_parquet"):
            run.predict(wrong)


def test_bad_values_keep_their_message_and_are_not_shown(run: dpads.Run, rows: pa.Table) -> None:
    index = rows.column_names.index("past_views")
    bad = rows.set_column(index, "past_views", pa.array([float("nan")] * 999 + [31337.5]))
    with pytest.raises(DataError, match=r'"past_views".*NaN'):
        run.predict(bad)
    with pytest.raises(DataError, match=r'"past_views".*NaN'):
        run.predict(bad.to_reader()).read_all()
    with pytest.raises(Exception, match=r'"past_views".*NaN') as caught:
        run.predict(pl.from_arrow(bad).lazy()).collect()  # type: ignore[union-attr]
    assert "31337" not in str(caught.value)


def test_damaged_arrow_data_are_refused(run: dpads.Run, rows: pa.Table) -> None:
    index = rows.column_names.index("site")
    offsets = pa.py_buffer(np.arange(1001, dtype=np.int32))
    text = pa.StringArray.from_buffers(1000, offsets, pa.py_buffer(b"\xff" * 1000))
    with pytest.raises(DataError, match="valid Arrow data"):
        run.predict(rows.set_column(index, "site", text))
