"""From raw ids to rows of a table: xxh3_64 of the id's text, seeded by the table's name.

    "ab12" or 42 -> UTF-8 text, integers in decimal -> xxh3_64(text, seed = xxh3_64(table name))
                 -> row 1 + hash mod (buckets - 1)
    null or ""   -> row 0, the row of what is missing

The seed is taken from the table, not the column, so that columns that share a table give one id
one row; a column with a table of its own has the table named after it. An id never seen before
takes the row its hash gives, like any other. Nothing depends on the order of columns or rows, on
the machine, or on whether the id came as an integer or as its decimal text.

References:
    Collet, xxHash: XXH3 64-bit variant, format stable since xxHash 0.8.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpads.errors import DataError

if TYPE_CHECKING:
    import polars as pl

MISSING_ROW = 0


def table_seed(table: str) -> int:
    """The hash seed of a table: xxh3_64 of the UTF-8 name with seed 0.

    Args:
        table: the table's name; a column without a shared table has one of its own name.

    Examples:
        >>> table_seed("C1")
        4286596853037386291
    """
    import polars as pl

    return int(_xxh3(pl.Series([table]), 0)[0])


def id_text(values: pl.Series, column: str) -> pl.Series:
    """Raw ids as text: integers in decimal, text as it is, empty text as null.

    Args:
        values: text, integers, or categories of text.
        column: the column's name, for messages.

    Returns:
        A series of strings; null where the id is missing.

    Raises:
        DataError: the column holds floats, booleans or anything else that has no one text form.
    """
    import polars as pl

    kind = values.dtype
    if kind == pl.String:
        text = values
    elif kind.is_integer() or kind in (pl.Categorical, pl.Enum, pl.Null):
        text = values.cast(pl.String)
    elif kind.is_float():
        raise DataError(
            f'Column "{column}": expected text or integers as ids, got floats, whose text is not '
            "unique. Cast the column to an integer or a text type."
        )
    elif kind == pl.Boolean:
        raise DataError(
            f'Column "{column}": expected text or integers as ids, got booleans, whose text '
            "differs between file formats. Cast the column to integers or declare it numeric."
        )
    else:
        raise DataError(
            f'Column "{column}": expected text or integers as ids, got {kind}. '
            "Cast the column to text or to integers."
        )
    empty = text.str.len_bytes() == 0
    if empty.any():
        return text.set(empty, None)
    return text


def hash_text(text: pl.Series, seed: int) -> NDArray[np.uint64]:
    """xxh3_64 of UTF-8 text.

    Args:
        text: strings; nulls are hashed as empty text.
        seed: unsigned 64-bit seed.

    Returns:
        uint64[n].
    """
    return _xxh3(text.fill_null(""), seed).to_numpy()


def table_rows(text: pl.Series, table: str, buckets: int) -> NDArray[np.int32]:
    """The table row of each id.

    Args:
        text: what `id_text` returns.
        table: the table's name, which seeds the hash.
        buckets: rows of the table, at least 2.

    Returns:
        int32[n], 0 where the id is missing, else from 1 to buckets - 1.

    Guarantees:
        - One id has one row in one table, whichever column it stands in.
        - Rows agree across versions, machines, file formats and column orders.

    Examples:
        >>> import polars as pl
        >>> table_rows(pl.Series(["68fd1e64", None]), "C1", 100_000).tolist()
        [21574, 0]
    """
    hashes = hash_text(text, table_seed(table))
    rows = (hashes % np.uint64(buckets - 1)).astype(np.int32) + np.int32(1)
    if text.null_count():
        rows[text.is_null().to_numpy()] = MISSING_ROW
    return rows


def user_keys(text: pl.Series) -> NDArray[np.uint64]:
    """A 128-bit key per user: the first half of BLAKE3 of the id's text.

    A cryptographic hash, because two users under one key would be one privacy unit, and then
    adding one user would replace the other's data instead of adding to it.

    Args:
        text: what `id_text` returns, without nulls.

    Returns:
        uint64[n, 2], high half first; equal exactly where the ids are equal.
    """
    import polars_hash

    digests = text.to_frame("id").select(polars_hash.col("id").chash.blake3()).to_series()
    raw = "".join(digests.str.slice(0, 32).to_list())
    words = np.frombuffer(bytes.fromhex(raw), dtype=">u8").reshape(-1, 2)
    return np.ascontiguousarray(words, dtype=np.uint64)


def _xxh3(text: pl.Series, seed: int) -> pl.Series:
    """xxh3_64 as an unsigned 64-bit series; null stays null."""
    import polars_hash

    frame = text.to_frame("id")
    return frame.select(polars_hash.col("id").nchash.xxh3_64(seed=seed)).to_series()
