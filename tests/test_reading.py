from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dpads.errors import DataError
from dpads.reading import find_logs, read_batches
from dpads.schema import FeatureSchema

SCHEMA = FeatureSchema(task="ctr", label="y", numeric=["x"], categorical=["c", "d"])
HEADLESS = FeatureSchema(
    task="ctr", label="y", numeric=["x"], categorical=["c"], columns=["y", "x", "c", "spare"]
)
FRAME = pl.DataFrame(
    {
        "y": [0, 1, 0, 1],
        "x": [1.5, None, -3.0, 0.0],
        "c": ["a", None, 'say "hi", you', "ü"],
        "d": ["1", "-2", None, "007"],
        "unused": [1, 2, 3, 4],
    }
)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
FORMATS = [".parquet", ".arrow", ".arrows.arrow", ".feather", ".csv", ".tsv"]


def content(frame: pl.DataFrame, suffix: str, folder: Path) -> bytes:
    path = folder / f"made{suffix}"
    if suffix == ".parquet":
        frame.write_parquet(path)
    elif suffix in (".arrow", ".feather"):
        frame.write_ipc(path, compression="lz4" if suffix == ".feather" else "uncompressed")
    elif suffix == ".arrows.arrow":
        frame.write_ipc_stream(path)
    else:
        frame.write_csv(path, separator="\t" if suffix == ".tsv" else ",")
    return path.read_bytes()


def read(path: Path, schema: FeatureSchema = SCHEMA) -> pl.DataFrame:
    (file,) = find_logs(path)
    frames = [pl.DataFrame(pl.from_arrow(batch)) for batch in read_batches(file, schema)]
    return pl.concat(frames)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows(suffix: str, compression: str, tmp_path: Path) -> None:
    frame = FRAME
    if suffix == ".tsv":  # knows no quotes
        frame = FRAME.with_columns(pl.col("c").str.replace_all('"', ""))
    data = COMPRESS[compression](content(frame, suffix, tmp_path))
    out = read(write(tmp_path / f"log{suffix}{compression}", data))
    expected = frame.select("y", "x", "c", "d")
    assert out.columns == list(SCHEMA.input_columns)
    for name in expected.columns:
        assert out[name].cast(expected[name].dtype).to_list() == expected[name].to_list()


def test_paths_globs_and_lists(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "deep/c.csv.gz", "[odd].parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "")

    def names(logs: Any) -> list[str]:
        return [file.path.name for file in find_logs(logs)]

    assert names(f"{tmp_path}/*.csv") == ["a.csv", "b.csv"]
    assert names(f"{tmp_path}/**/*.csv*") == ["a.csv", "b.csv", "c.csv.gz"]
    assert names(tmp_path / "[odd].parquet") == ["[odd].parquet"]
    assert names([tmp_path / "b.csv", f"{tmp_path}/a.*"]) == ["b.csv", "a.csv"]


def test_relative_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.csv", "")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert [str(file.path) for file in find_logs("../*.csv")] == ["../a.csv"]


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ("none.csv", "none.csv: no such file"),
        ("none*.csv", "no such file"),
        ("a**.csv", "no such file|not a valid glob"),
        ("", "folder"),
        (".", "folder"),
        ("log.txt", r"ends in one of \.parquet"),
        ("bare", "ends in one of"),
        ("bare.gz", "ends in one of"),
        ([], "empty list"),
        (["a.csv", "*.csv"], "named twice"),
    ],
)
def test_logs_that_cannot_be_found_or_told(
    logs: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "log.txt", "bare", "bare.gz"):
        write(tmp_path / name, "")
    with pytest.raises(DataError, match=message):
        find_logs(logs)


@pytest.mark.parametrize(
    ("suffix", "compression", "share"),
    [
        (suffix, compression, share)
        for suffix in FORMATS
        for compression in COMPRESS
        for share in (0.0, 0.2, 0.6, 0.97)
        # Plain text that ends early is whole or ragged, see below.
        if compression or share == 0.0 or suffix not in (".csv", ".tsv")
    ],
)
def test_files_cut_short_are_refused(
    suffix: str, compression: str, share: float, tmp_path: Path
) -> None:
    data = COMPRESS[compression](content(pl.concat([FRAME] * 1000), suffix, tmp_path))
    path = write(tmp_path / f"log{suffix}{compression}", data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"log\."):
        read(path)


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_files_of_garbage_are_refused(suffix: str, compression: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"log{suffix}{compression}", b"\xff\xfe\x00private\x80" * 50)
    with pytest.raises(DataError, match=r"log\.") as caught:
        read(path)
    assert "private" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv.gz", ".parquet.gz"])
def test_a_changed_byte_is_refused_or_harmless_but_never_a_crash(
    suffix: str, tmp_path: Path
) -> None:
    inner, compression = (suffix[:-3], ".gz") if suffix.endswith(".gz") else (suffix, "")
    data = COMPRESS[compression](content(pl.concat([FRAME] * 50), inner, tmp_path))
    path = tmp_path / f"log{suffix}"
    refused = 0
    for place in range(0, len(data), max(1, len(data) // 300)):
        write(path, data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            read(path)
        except DataError:
            refused += 1
    assert refused > 0


def test_arrow_offsets_that_point_outside_are_refused(tmp_path: Path) -> None:
    table = pa.table({"y": [0, 1, 0], "x": [1.0] * 3, "c": ["abcd"] * 3, "d": ["e"] * 3})
    path = tmp_path / "log.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    good, bad = struct.pack("<4i", 0, 4, 8, 12), struct.pack("<4i", 0, 4, 2**24, 12)
    data = path.read_bytes()
    assert data.count(good) == 1
    path.write_bytes(data.replace(good, bad))
    with pytest.raises(DataError, match=r"log\.arrow.*damaged"):
        read(path)


RAGGED = {
    "short": "y,x,c,d\n0,1,a,b\n0,1,a\n0,1,a,b\n",
    "long": "y,x,c,d\n0,1,a,b\n0,1,a,b,e\n0,1,a,b\n",
    "short at the end": "y,x,c,d\n0,1,a,b\n0,1,a",
    "long at the end": "y,x,c,d\n0,1,a,b\n0,1,a,b,c",
    "empty line": "y,x,c,d\n0,1,a,b\n\n0,1,a,b\n",
    "empty line at the end": "y,x,c,d\n0,1,a,b\n\n",
    "open quote": 'y,x,c,d\n0,1,"a,b\n0,1,a,b\n',
    "one long, one short": "y,x,c,d\n0,1,a,b,c\n0,1,a\n",
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("case", RAGGED)
def test_ragged_lines_are_refused(case: str, compression: str, tmp_path: Path) -> None:
    data = COMPRESS[compression](RAGGED[case].encode())
    with pytest.raises(DataError, match=r"log\.csv.*4 fields in every line.*line [23]"):
        read(write(tmp_path / f"log.csv{compression}", data))


@given(
    rows=st.lists(
        st.tuples(st.text(st.characters(codec="utf-8")), st.text(alphabet='a,"\n\t ')),
        min_size=1,
        max_size=30,
    ),
    chunk=st.integers(1, 40),
)
def test_quoted_text_survives(rows: list[tuple[str, str]], chunk: int) -> None:
    import tempfile
    from unittest import mock

    clean = [(a.replace("\r", ""), b) for a, b in rows]
    frame = pl.DataFrame(
        {"y": [0] * len(clean), "x": 1.0, "c": [a for a, _ in clean], "d": [b for _, b in clean]}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        frame.write_csv(path, quote_style="non_numeric")
        with mock.patch("dpads.reading.CHUNK_BYTES", chunk):
            out = read(path)
    assert [v or "" for v in out["c"]] == [a for a, _ in clean]
    assert [v or "" for v in out["d"]] == [b for _, b in clean]


def test_line_ends_of_windows_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeffy,x,c,d\r\n0,1,a,b\r\n1,,,é\r\n"
    out = read(write(tmp_path / "log.csv", text))
    assert out.rows() == [(0.0, 1.0, "a", "b"), (1.0, None, None, "é")]


def test_a_byte_order_mark_without_header(tmp_path: Path) -> None:
    out = read(write(tmp_path / "log.tsv", "\ufeff0\t5\ta\tq\n1\t\tb\tq\n"), HEADLESS)
    assert out.rows() == [(0.0, 5.0, "a"), (1.0, None, "b")]


def test_text_where_the_schema_says_numbers(tmp_path: Path) -> None:
    for line in ("0,12secret,a,b", "secret,1,a,b", "true,1,a,b"):
        path = write(tmp_path / "log.csv", f"y,x,c,d\n0,1,a,b\n{line}\n")
        with pytest.raises(DataError, match=r'column "[xy]": expected numbers, got text') as caught:
            read(path)
        assert "secret" not in str(caught.value)


def test_numbers_may_have_spaces_and_be_empty(tmp_path: Path) -> None:
    out = read(write(tmp_path / "log.csv", 'y,x,c,d\n0, 1e2 ,a,b\n1,"",a,b\n1,  ,a,b\n'))
    assert out["x"].to_list() == [100.0, None, None]


def test_ids_keep_their_exact_text(tmp_path: Path) -> None:
    out = read(write(tmp_path / "log.csv", "y,x,c,d\n0,1,007,1.0\n0,1, a,NULL\n"))
    assert out["c"].to_list() == ["007", " a"]
    assert out["d"].to_list() == ["1.0", "NULL"]


@pytest.mark.parametrize(
    "text",
    [
        "0\t5\ta\tq\n1\t\tb\tq\n",
        "y\tx\tc\tspare\n0\t5\ta\tq\n1\t\tb\tq\n",
        "c\tx\ty\na\t5\t0\nb\t\t1\n",
        "extra\tc\tx\ty\n9\ta\t5\t0\n9\tb\t\t1\n",
    ],
)
def test_with_and_without_header(text: str, tmp_path: Path) -> None:
    out = read(write(tmp_path / "log.tsv", text), HEADLESS)
    assert out.rows() == [(0.0, 5.0, "a"), (1.0, None, "b")]


def test_a_first_row_is_never_taken_for_a_header(tmp_path: Path) -> None:
    out = read(write(tmp_path / "log.tsv", "0\t5\tc\tq\n1\t\tb\tq\n"), HEADLESS)
    assert out["c"].to_list() == ["c", "b"]


def test_a_misspelled_header_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "y,x,c,clck\n0,1,a,b\n")
    schema = FeatureSchema(task="ctr", label="click", numeric=["x"], categorical=["c"])
    with pytest.raises(DataError, match=r'"click".*Did you mean "clck"'):
        read(path, schema)


@pytest.mark.parametrize("text", ["1.5,a,z\n2,b,z\n", "0,1.5,a,z\n1,2,b,z\n", "x,c\n1.5,a\n2,b\n"])
def test_a_label_that_is_not_wanted_may_be_missing(tmp_path: Path, text: str) -> None:
    (file,) = find_logs(write(tmp_path / "log.csv", text))
    (batch,) = read_batches(file, HEADLESS, labelled=False)
    assert batch.to_pydict() == {"x": [1.5, 2.0], "c": ["a", "b"]}


def test_a_file_without_header_needs_as_many_fields_as_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "log.tsv", "0\t5\ta\n1\t\tb\n")
    with pytest.raises(DataError, match=r"4 columns.*got 3 fields in the first line"):
        read(path, HEADLESS)


def test_names_that_stand_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'one column "x", got 2'):
        read(write(tmp_path / "log.csv", "y,x,c,d,x\n0,1,a,b,2\n"))
    out = read(write(tmp_path / "log.csv", "y,x,c,d,z,z\n0,1,a,b,2,3\n"))
    assert out.rows() == [(0.0, 1.0, "a", "b")]


def test_a_missing_column_of_parquet_or_arrow(tmp_path: Path) -> None:
    for suffix in (".parquet", ".arrow"):
        frame = FRAME.rename({"x": "X1"})
        path = write(tmp_path / f"log{suffix}", content(frame, suffix, tmp_path))
        with pytest.raises(DataError, match=r'"x"'):
            read(path)


def test_order_is_kept_across_batches(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": range(300_000)}).select(
        y=pl.lit(0), x=pl.col("n"), c=pl.col("n").cast(pl.String), d=pl.lit("d")
    )
    for suffix in (".parquet", ".csv", ".arrow"):
        path = write(tmp_path / f"log{suffix}", content(frame, suffix, tmp_path))
        (file,) = find_logs(path)
        batches = list(read_batches(file, SCHEMA))
        assert max(batch.num_rows for batch in batches) <= 65_536
        assert pa.Table.from_batches(batches)["x"].to_pylist() == list(range(300_000))
