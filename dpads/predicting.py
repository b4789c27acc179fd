"""Predictions for rows as they come: Arrow, polars, logs; encoded as `prepare` encodes, nothing kept.

Rows go through the encoder and the model a part at a time, so that memory does not grow with what is
streamed. Labels, weights and users are not looked at, and need not be there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from dpads.batch import BagIds, SparseBatch
from dpads.encoding import (
    bag_column,
    bag_weights_column,
    check_columns,
    encode,
    input_columns,
)
from dpads.errors import ConfigError, DataError
from dpads.models.base import Model
from dpads.reading import BATCH_ROWS, Logs, find_logs, read_batches
from dpads.schema import FeatureSchema

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

COLUMN: Final = "prediction"
# Models are read by one thread at a time; polars calls from several of its own.
_OWNER = threading.Lock()


def without_outcome(schema: FeatureSchema) -> FeatureSchema:
    """The schema without what a prediction does not read: the weight and the user."""
    return FeatureSchema.from_dict({**schema.to_dict(), "weight": None, "user": None})


def batch_of(encoded: pa.RecordBatch, schema: FeatureSchema) -> SparseBatch:
    """An encoded record batch as what models read.

    Args:
        encoded: n rows from `encode` of the same schema.
        schema: what they were encoded with.

    Returns:
        n examples, each its own unit.

    Guarantees:
        - Equal to what a store of the same rows gives back.
    """
    count = encoded.num_rows
    scalars = tuple(item.name for item in schema.fields if not item.is_bag)

    def matrix(name: str, width: int, kind: type[np.generic]) -> NDArray[Any]:
        if not width:
            return np.empty((count, 0), kind)
        flat: NDArray[Any] = encoded.column(name).flatten().to_numpy()
        return flat.reshape(count, width)

    def vector(name: str, wanted: bool) -> NDArray[np.float32] | None:
        return encoded.column(name).to_numpy() if wanted else None

    bags = {}
    for item in schema.fields:
        if item.is_bag:
            column = encoded.column(bag_column(item.name))
            weights = None
            if item.weights:
                weights = encoded.column(bag_weights_column(item.name)).flatten().to_numpy()
            bags[item.name] = BagIds(
                column.flatten().to_numpy().astype(np.int64),
                column.offsets.to_numpy() - column.offsets[0].as_py(),
                weights,
            )
    return SparseBatch(
        field_names=scalars,
        scalar_ids=matrix("ids", len(scalars), np.int32),
        bags=bags,
        dense=matrix("dense", len(schema.numeric), np.float32),
        labels=encoded.column("label").to_numpy(),
        weights=vector("weight", schema.weight is not None),
        exposure=vector("exposure", schema.exposure is not None),
    )


def predict_frame(model: Model, data: Any) -> Any:
    """Predicts rows of Arrow or polars data and appends a column `prediction`.

    Args:
        model: whose predictions.
        data: an Arrow table, record batch or record batch reader, a polars frame or lazy frame, or what
            else speaks Arrow's stream interface, as pandas' frames do; with the columns of the model's
            schema; no label, weight or user is needed.

    Returns:
        The same kind, an Arrow table of what is none of these, with one more column, float32:
        probabilities, or expected counts over each row's exposure. A reader and a lazy frame compute when
        they are read, a part at a time.

    Raises:
        ConfigError: the data are of another kind.
        DataError: a column is missing or of a wrong type, a value is outside what the schema allows, or a
            column `prediction` is there already.

    Guarantees:
        - Rows are encoded as `prepare` encodes them.
        - Memory does not grow with what a reader or a lazy frame streams.
    """
    import polars as pl
    import pyarrow as pa

    schema = without_outcome(model.schema)
    wanted = input_columns(schema, labelled=False)

    def predict(batches: Iterable[pa.RecordBatch]) -> NDArray[np.float32]:
        parts = [_predict(model, schema, part) for batch in batches for part in _cut(batch)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def with_predictions(frame: pl.DataFrame) -> pl.DataFrame:
        table = frame.select(wanted).to_arrow()
        return frame.with_columns(pl.Series(COLUMN, predict(_batches(table))))

    if isinstance(data, pl.LazyFrame):
        known = data.collect_schema()
        _check(known.names(), schema)
        return data.map_batches(
            with_predictions, schema={**known, COLUMN: pl.Float32()}, streamable=True
        )
    if isinstance(data, pl.DataFrame):
        _check(data.columns, schema)
        return with_predictions(data)
    arrow = isinstance(data, pa.Table | pa.RecordBatch | pa.RecordBatchReader)
    if not arrow and hasattr(data, "__arrow_c_stream__"):
        data = pa.table(data)
    elif not arrow:
        raise ConfigError(
            f"Expected rows to predict, got {type(data).__name__}. Give a store "
            "(dpads.ExampleStore.open), an Arrow table, record batch or reader, or a polars frame or "
            "lazy frame: polars.scan_parquet(path) opens a file as one, "
            "pyarrow.Table.from_pandas(frame) turns a frame of an old pandas into one."
        )
    _check(data.schema.names, schema)
    if isinstance(data, pa.Table):
        own = predict(_batches(data.select(wanted)))
        return data.append_column(_field(), pa.array(own))
    if isinstance(data, pa.RecordBatch):
        return data.append_column(_field(), pa.array(predict([data.select(wanted)])))

    def stream() -> Iterator[pa.RecordBatch]:
        for batch in data:
            for part in _cut(batch):
                own = _predict(model, schema, part.select(wanted))
                yield part.append_column(_field(), pa.array(own))

    return pa.RecordBatchReader.from_batches(data.schema.append(_field()), stream())


def record_batch(data: Any) -> pa.RecordBatch:
    """An Arrow table or record batch, or a polars frame, as one record batch.

    Raises:
        ConfigError: the data are of another kind.
        DataError: they are damaged.
    """
    import polars as pl
    import pyarrow as pa

    table = data.to_arrow() if isinstance(data, pl.DataFrame) else data
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    elif not isinstance(table, pa.Table) and hasattr(table, "__arrow_c_stream__"):
        table = pa.table(table)
    if not isinstance(table, pa.Table):
        raise ConfigError(
            f"Expected an Arrow table or record batch or a polars frame, got {type(data).__name__}."
        )
    whole = table.combine_chunks()
    batches = whole.to_batches()
    raw = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=whole.schema)
    _validate(raw)
    return raw


def predict_logs(model: Model, logs: Logs) -> Iterator[NDArray[np.float32]]:
    """Predicts the rows of log files, a part at a time, in their order.

    Args:
        model: whose predictions.
        logs: a path or glob, or several, as for `prepare`.

    Yields:
        float32[n] for the next n rows.

    Raises:
        DataError: a log is missing or damaged, or a value is outside the schema.
    """
    schema = without_outcome(model.schema)
    for file in find_logs(logs):
        for raw in read_batches(file, schema, labelled=False):
            try:
                yield _predict(model, schema, raw)
            except DataError as error:
                raise DataError(f"{file.path}: {error}") from None


def _predict(model: Model, schema: FeatureSchema, raw: pa.RecordBatch) -> NDArray[np.float32]:
    """Predictions of some rows, float32[n]."""
    batch = batch_of(encode(raw, schema, labelled=False), schema)
    with _OWNER:
        return model.predict(batch)


def _check(names: list[str], schema: FeatureSchema) -> None:
    """Checks the columns before anything is read."""
    check_columns(names, schema, labelled=False)
    if COLUMN in names:
        raise DataError(
            f'Expected no column "{COLUMN}", for that is where predictions go. Rename or drop it.'
        )


def _batches(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """A table's rows as record batches."""
    yield from table.to_batches(max_chunksize=BATCH_ROWS)


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Parts of a record batch, none too large, each looked at: nothing that is damaged is decoded."""
    for start in range(0, batch.num_rows, BATCH_ROWS):
        part = batch.slice(start, BATCH_ROWS)
        _validate(part)
        yield part


def _validate(batch: pa.RecordBatch) -> None:
    """Refuses damaged data."""
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowException:
        raise DataError(
            "Expected valid Arrow data, got a batch that is damaged. Write or fetch it again."
        ) from None


def _field() -> pa.Field:
    """The column of predictions."""
    import pyarrow as pa

    return pa.field(COLUMN, pa.float32())
