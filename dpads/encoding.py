"""From a record batch of raw columns to a record batch of what models read.

`encode` is a pure function of one Arrow record batch and the schema, so that any engine can run it
over any partition of a log; nothing is learnt from the data.

    column            type                       what
    ids               FixedSizeList<int32>[F]    one table row per scalar categorical column
    bag:NAME          LargeList<int32>           table rows of a list column, -1 is padding
    bag_weights:NAME  LargeList<float>           one factor per id
    dense             FixedSizeList<float>[K]    numeric columns after their transforms
    label             float
    weight, exposure  float
    user              FixedSizeBinary[16]        a key per user, see `hashing.user_keys`

What is missing: a null id, or an empty text, takes row 0 in a scalar column and is padding inside
a list; a null list is an empty list; a null number takes the schema's `missing`. A null label,
weight, exposure, user or factor of an id is refused, for nothing could stand for it.

Negative integers: a scalar column may hold them, since hashed ids are often signed; a list column
may not, since there -1 marks padding in most logs and would be taken for an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from dpads._validate import nearest
from dpads.batch import PADDING
from dpads.errors import DataError
from dpads.hashing import id_text, table_rows, user_keys
from dpads.schema import FeatureSchema, Field, Numeric

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

USER_BYTES = 16
FLOAT32_MAX = float(np.finfo(np.float32).max)


def bag_column(field: str) -> str:
    """Name of the encoded column of a bag's table rows."""
    return f"bag:{field}"


def bag_weights_column(field: str) -> str:
    """Name of the encoded column of a bag's factors."""
    return f"bag_weights:{field}"


def input_columns(schema: FeatureSchema, *, labelled: bool = True) -> list[str]:
    """The columns that a log must have; without labels, all but the label."""
    return [name for name in schema.input_columns if labelled or name != schema.label]


def encoded_schema(schema: FeatureSchema) -> pa.Schema:
    """The Arrow schema of what `encode` returns; absent parts have no column."""
    import pyarrow as pa

    scalars = sum(not item.is_bag for item in schema.fields)
    columns: list[pa.Field] = []
    if scalars:
        columns.append(pa.field("ids", _fixed(pa.int32(), scalars), nullable=False))
    for item in schema.fields:
        if item.is_bag:
            columns.append(pa.field(bag_column(item.name), _list(pa.int32()), nullable=False))
        if item.weights:
            name = bag_weights_column(item.name)
            columns.append(pa.field(name, _list(pa.float32()), nullable=False))
    if schema.numeric:
        kind = _fixed(pa.float32(), len(schema.numeric))
        columns.append(pa.field("dense", kind, nullable=False))
    columns.append(pa.field("label", pa.float32(), nullable=False))
    if schema.weight:
        columns.append(pa.field("weight", pa.float32(), nullable=False))
    if schema.exposure:
        columns.append(pa.field("exposure", pa.float32(), nullable=False))
    if schema.user:
        columns.append(pa.field("user", pa.binary(USER_BYTES), nullable=False))
    return pa.schema(columns)


def check_columns(names: Sequence[str], schema: FeatureSchema, *, labelled: bool = True) -> None:
    """Checks that a log has every column of the schema, each once.

    Args:
        names: the log's columns.
        schema: what is wanted.
        labelled: whether the label is wanted too.

    Raises:
        DataError: a column is missing (the nearest names are listed) or there twice.
    """
    for column in input_columns(schema, labelled=labelled):
        count = names.count(column)
        if count == 0:
            raise DataError(
                f'Expected a column "{column}", which the log does not have.'
                + nearest(column, names)
                + " Rename the log's column or mend the schema."
            )
        if count > 1:
            raise DataError(f'Expected one column "{column}", got {count}. Rename the others.')


def encode(
    batch: pa.RecordBatch, schema: FeatureSchema, *, labelled: bool = True
) -> pa.RecordBatch:
    """Encodes the columns of a log.

    Args:
        batch: n rows with the schema's columns in any order; others are ignored.
        schema: what each column becomes.
        labelled: False does without the label and writes zeros: good for predictions alone.

    Returns:
        n rows with the columns of `encoded_schema`.

    Raises:
        DataError: a column is missing or of a wrong type, or a value is outside what the schema
            allows. The message names the column and the remedy and shows no value.

    Guarantees:
        - A pure function: equal rows give equal rows, whatever the batch or order they come in.
    """
    import pyarrow as pa

    check_columns(batch.schema.names, schema, labelled=labelled)
    arrays: dict[str, pa.Array] = {}
    size = batch.num_rows
    sizes = schema.table_rows
    scalars = [item for item in schema.fields if not item.is_bag]
    if scalars:
        ids = np.empty((size, len(scalars)), np.int32)
        for place, item in enumerate(scalars):
            text = id_text(_series(batch.column(item.name)), item.name)
            ids[:, place] = table_rows(text, item.table, sizes[item.table])
        arrays["ids"] = _fixed_array(ids)
    for item in schema.fields:
        if item.is_bag:
            _encode_bag(batch, item, sizes[item.table], arrays)
    if schema.numeric:
        dense = np.empty((size, len(schema.numeric)), np.float32)
        for place, numeric in enumerate(schema.numeric):
            dense[:, place] = _transform(batch.column(numeric.column), numeric)
        arrays["dense"] = _fixed_array(dense)
    if labelled:
        arrays["label"] = _label(batch.column(schema.label), schema)
    else:
        arrays["label"] = pa.array(np.zeros(size, np.float32))
    if schema.weight:
        arrays["weight"] = _factor(batch.column(schema.weight), schema.weight, "weights", 0.0)
    if schema.exposure:
        column = batch.column(schema.exposure)
        arrays["exposure"] = _factor(column, schema.exposure, "exposures", None)
    if schema.user:
        text = id_text(_series(batch.column(schema.user)), schema.user)
        if text.null_count():
            raise DataError(
                f'User column "{schema.user}": expected an id in every row, got null or empty '
                "text. Drop these rows, or give each an id of its own."
            )
        keys = user_keys(text).astype(">u8")
        arrays["user"] = pa.Array.from_buffers(
            pa.binary(USER_BYTES), size, [None, pa.py_buffer(keys)]
        )
    target = encoded_schema(schema)
    return pa.RecordBatch.from_arrays([arrays[name] for name in target.names], schema=target)


def _fixed(kind: pa.DataType, width: int) -> pa.DataType:
    """A fixed-size list type without nulls inside."""
    import pyarrow as pa

    return pa.list_(pa.field("item", kind, nullable=False), width)


def _list(kind: pa.DataType) -> pa.DataType:
    """A list type with 64-bit offsets and no nulls inside."""
    import pyarrow as pa

    return pa.large_list(pa.field("item", kind, nullable=False))


def _fixed_array(matrix: NDArray[np.int32] | NDArray[np.float32]) -> pa.Array:
    """A matrix as a column of fixed-size lists."""
    import pyarrow as pa

    values = pa.array(matrix.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, type=_fixed(values.type, matrix.shape[1]))


def _series(column: pa.Array) -> pl.Series:
    """An Arrow array as a polars series."""
    import polars as pl

    return cast("pl.Series", pl.from_arrow(column))


def numbers(column: pa.Array, name: str, role: str) -> NDArray[np.float64]:
    """A column as float64, nulls as NaN; NaN and infinities in the column itself are refused."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    kind = column.type
    if not (
        kinds.is_integer(kind)
        or kinds.is_floating(kind)
        or kinds.is_decimal(kind)
        or kinds.is_boolean(kind)
        or kinds.is_null(kind)
    ):
        remedy = {
            "features": "Cast the column, mend the cells that are no numbers, or declare it categorical.",
            "labels": "Write clicks and conversions as 0 and 1, and counts as whole numbers.",
        }.get(role, "Cast the column, and mend the cells that are no numbers.")
        raise DataError(
            f'Column "{name}": expected numbers as {role}, got {_kind_name(kind)}. {remedy}'
        )
    if kinds.is_boolean(kind):
        column = pc.cast(column, pa.int8())
    values = pc.cast(column, pa.float64(), safe=False)
    present = values.drop_null().to_numpy(zero_copy_only=False)
    if not np.isfinite(present).all():
        raise DataError(
            f'Column "{name}": expected finite {role}, got NaN or infinity. '
            "Replace them by null upstream, or drop these rows."
        )
    return cast(
        "NDArray[np.float64]", pc.fill_null(values, float("nan")).to_numpy(zero_copy_only=False)
    )


def _kind_name(kind: pa.DataType) -> str:
    """What to call an Arrow type in a message."""
    import pyarrow.types as kinds

    text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
    return "text" if text or kinds.is_dictionary(kind) else str(kind)


def _transform(column: pa.Array, numeric: Numeric) -> NDArray[np.float64]:
    """A numeric column after its missing value, clip and transform."""
    values = numbers(column, numeric.column, "features")
    values = np.where(np.isnan(values), numeric.missing, values)
    if numeric.clip is not None:
        values = np.clip(values, *numeric.clip)
    if numeric.transform == "signed_log1p":
        return cast("NDArray[np.float64]", np.sign(values) * np.log1p(np.abs(values)))
    if values.size and float(np.abs(values).max()) > FLOAT32_MAX:
        raise DataError(
            f'Column "{numeric.column}": expected features within float32, got larger ones. '
            'Set clip = [low, high] in the schema, or transform = "signed_log1p".'
        )
    return values


def _label(column: pa.Array, schema: FeatureSchema) -> pa.Array:
    """The label, checked against the task."""
    import pyarrow as pa

    binary = schema.task != "count"
    wanted = "0 or 1" if binary else "whole numbers from 0"
    labels = numbers(column, schema.label, "labels")
    if np.isnan(labels).any():
        raise DataError(
            f'Label column "{schema.label}": expected {wanted} in every row, got null. '
            "Drop the rows without a label."
        )
    fits = (labels == 0) | (labels == 1) if binary else (labels >= 0) & (labels == np.rint(labels))
    if not fits.all():
        remedy = ', or use task = "count" for counts' if binary else ""
        raise DataError(
            f'Label column "{schema.label}": expected {wanted}, got another value. '
            f"Mend or drop these rows{remedy}."
        )
    return pa.array(_float32(labels, schema.label))


def _factor(column: pa.Array, name: str, role: str, minimum: float | None) -> pa.Array:
    """Loss weights (at least the minimum) or exposures (above 0)."""
    import pyarrow as pa

    wanted = "finite numbers above 0" if minimum is None else "finite numbers from 0"
    values = numbers(column, name, role)
    if np.isnan(values).any():
        raise DataError(f'Column "{name}": expected {wanted} as {role}, got null. Drop these rows.')
    narrow = _float32(values, name)
    fits = narrow > 0 if minimum is None else narrow >= minimum
    if not fits.all():
        raise DataError(
            f'Column "{name}": expected {wanted} as {role}, got '
            f"{'0 or a smaller one' if minimum is None else 'a smaller one'}. Mend or drop these rows."
        )
    return pa.array(narrow)


def _float32(values: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    """Narrows, refusing what would become infinite."""
    if values.size and float(np.abs(values).max()) > FLOAT32_MAX:
        raise DataError(f'Column "{name}": expected numbers within float32. Drop larger ones.')
    return values.astype(np.float32)


def _encode_bag(
    batch: pa.RecordBatch, item: Field, buckets: int, arrays: dict[str, pa.Array]
) -> None:
    """Adds a bag's columns."""
    values, offsets = _items(batch.column(item.name), item.name, "ids")
    if str(values.type).startswith("int") and values.null_count < len(values):
        import pyarrow.compute as pc

        if pc.min(values).as_py() < 0:
            raise DataError(
                f'Bag "{item.name}": expected ids from 0, got a negative one. Write padding as '
                "null, or shorten the lists; cast the ids to text if negative ones are real."
            )
    text = id_text(_series(values), item.name)
    rows = table_rows(text, item.table, buckets)
    padding = text.is_null().to_numpy()
    rows[padding] = PADDING
    arrays[bag_column(item.name)] = _large_list(rows, offsets)
    if item.weights is None:
        return
    raw, weight_offsets = _items(batch.column(item.weights), item.weights, "weights")
    if not np.array_equal(offsets, weight_offsets):
        raise DataError(
            f'Column "{item.weights}": expected one weight per id of bag "{item.name}", got lists '
            "of other lengths. Mend or drop these rows."
        )
    weights = np.where(padding, 0.0, numbers(raw, item.weights, "weights"))
    if np.isnan(weights).any() or (weights < 0).any():
        raise DataError(
            f'Column "{item.weights}": expected weights from 0, got null or a negative one. '
            "Mend or drop these rows."
        )
    narrow = _float32(weights, item.weights)
    arrays[bag_weights_column(item.name)] = _large_list(narrow, offsets)


def _items(column: pa.Array, name: str, role: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """The items of a list column, one after another, and where each list starts."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    kind = column.type
    if not (
        kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
    ) and not kinds.is_null(kind):
        raise DataError(
            f'Column "{name}": expected lists of {role}, got {_kind_name(kind)}. Write lists to '
            "Parquet or Arrow (delimited files hold none), or declare the column categorical."
        )
    if kinds.is_null(kind):
        import pyarrow as pa

        return pa.nulls(0), np.zeros(len(column) + 1, np.int64)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return column.flatten(), offsets


def _large_list(
    values: NDArray[np.int32] | NDArray[np.float32], offsets: NDArray[np.int64]
) -> pa.Array:
    """Values and offsets as a column of lists."""
    import pyarrow as pa

    items = pa.array(values)
    return pa.LargeListArray.from_arrays(pa.array(offsets), items, type=_list(items.type))
