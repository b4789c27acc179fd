from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dpads.errors import DataError
from dpads.hashing import MISSING_ROW, hash_text, id_text, table_rows, table_seed, user_keys

# (table, id, buckets, row), computed with the xxhash package: these may never change, since
# models and stores written earlier hold rows that were computed with them.
VECTORS = [
    ("C1", "68fd1e64", 100_000, 21574),
    ("C1", "0", 100_000, 85199),
    ("C2", "0", 100_000, 82539),
    ("C1", "-137304", 100_000, 64468),
    ("C1", "9223372036854775807", 2**31 - 1, 1612478549),
    ("url", "https://example.com/ä?q=1", 1000, 951),
    ("url", "日本", 2, 1),
    ("Straße", "x", 7, 4),
    ("C1", " ", 100_000, 98028),
]


def reference_row(table: str, value: str, buckets: int) -> int:
    seed = xxhash.xxh3_64_intdigest(table.encode())
    return 1 + xxhash.xxh3_64_intdigest(value.encode(), seed=seed) % (buckets - 1)


@pytest.mark.parametrize(("table", "value", "buckets", "row"), VECTORS)
def test_rows_equal_the_committed_vectors(table: str, value: str, buckets: int, row: int) -> None:
    assert table_rows(pl.Series([value]), table, buckets).tolist() == [row]
    assert reference_row(table, value, buckets) == row


@given(
    table=st.text(min_size=1),
    values=st.lists(st.text(min_size=1), min_size=1, max_size=20),
    buckets=st.integers(2, 2**31 - 1),
)
def test_rows_agree_with_xxhash(table: str, values: list[str], buckets: int) -> None:
    rows = table_rows(id_text(pl.Series(values), "c"), table, buckets)
    assert rows.dtype == np.int32
    assert rows.tolist() == [reference_row(table, v, buckets) for v in values]


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_integers_and_their_decimal_text_have_one_row(values: list[int]) -> None:
    numbers = id_text(pl.Series(values, dtype=pl.Int64), "c")
    text = id_text(pl.Series([str(v) for v in values]), "c")
    np.testing.assert_array_equal(
        table_rows(numbers, "c", 1_000_000), table_rows(text, "c", 1_000_000)
    )


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([1, 2], dtype=pl.UInt64),
        pl.Series([1, 2], dtype=pl.Int8),
        pl.Series(["1", "2"], dtype=pl.Categorical),
        pl.Series(["1", "2"], dtype=pl.Enum(["2", "1"])),
    ],
)
def test_every_kind_of_id_has_the_row_of_its_text(values: pl.Series) -> None:
    expected = table_rows(pl.Series(["1", "2"]), "c", 1000)
    np.testing.assert_array_equal(table_rows(id_text(values, "c"), "c", 1000), expected)


def test_null_and_empty_text_are_missing_and_nothing_else_is() -> None:
    rows = table_rows(id_text(pl.Series(["a", None, "", " ", "0"]), "c"), "c", 2)
    assert rows.tolist() == [1, MISSING_ROW, MISSING_ROW, 1, 1]
    assert table_rows(id_text(pl.Series([None, None]), "c"), "c", 9).tolist() == [0, 0]


def test_tables_are_salted_by_name() -> None:
    ids = pl.Series([str(i) for i in range(1000)])
    same = table_rows(ids, "C1", 1_000_000) == table_rows(ids, "C2", 1_000_000)
    assert same.mean() < 0.01
    assert table_seed("C1") != table_seed("C2")


def test_rows_fill_the_table_evenly() -> None:
    ids = pl.Series([str(i) for i in range(100_000)])
    counts = np.bincount(table_rows(ids, "C1", 101), minlength=101)
    assert counts[0] == 0
    # 100 cells of mean 1000: chi-square has mean 99 and standard deviation 14.
    chi_square = ((counts[1:] - 1000.0) ** 2 / 1000.0).sum()
    assert 99 - 5 * 14 < chi_square < 99 + 5 * 14


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (pl.Series([1.0, 2.0]), "floats"),
        (pl.Series([True, False]), "booleans"),
        (pl.Series([b"\x00"]), "Binary"),
        (pl.Series(["2024-01-01"]).str.to_date(), "Date"),
    ],
)
def test_what_has_no_one_text_is_refused(values: pl.Series, word: str) -> None:
    with pytest.raises(DataError, match=rf'Column "site".*{word}.*Cast'):
        id_text(values, "site")


def test_user_keys_are_the_first_half_of_blake3_and_tell_users_apart() -> None:
    # BLAKE3("abc") = 6437b3ac38465133 ffb63b75273a8db5 48c55846 5d79db03 ..., the reference value.
    keys = user_keys(pl.Series(["abc", "abc", "abd"]))
    assert keys.shape == (3, 2)
    assert [f"{w:016x}" for w in keys[0].tolist()] == ["6437b3ac38465133", "ffb63b75273a8db5"]
    assert (keys[0] == keys[1]).all()
    assert (keys[0] != keys[2]).any()
    many = user_keys(pl.Series([str(i) for i in range(50_000)]))
    assert len(np.unique(many, axis=0)) == 50_000


def test_hash_text_is_xxh3() -> None:
    assert (
        hash_text(pl.Series(["", None]), 7).tolist() == [xxhash.xxh3_64_intdigest(b"", seed=7)] * 2
    )
