"""From log files to record batches, in bounded memory.

Delimited files go through polars' streaming engine. Parquet and Arrow go through pyarrow, which
answers damage with an error: polars 2.1 panics, prints what it decoded, or aborts the process.
Every file is read by itself, so that files may order their columns differently.

Delimited files are read as text: ids keep their exact text, numbers are parsed strictly. Lines are
counted field by field first, because polars fills short lines with nulls. `.csv` is comma-separated
with double quotes (RFC 4180); `.tsv` is tab-separated and knows no quotes.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from dpads.encoding import check_columns, input_columns
from dpads.errors import DataError
from dpads.schema import FeatureSchema

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

Logs: TypeAlias = str | Path | Sequence[str | Path]

BATCH_ROWS = 65_536
CHUNK_BYTES = 1 << 22
BUFFER_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 24

_Kind: TypeAlias = Literal["parquet", "arrow", "delimited"]
_KINDS: dict[str, _Kind] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".csv": "delimited",
    ".tsv": "delimited",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_TEXT_FORM = {".csv": (",", '"'), ".tsv": ("\t", None)}


@dataclass(frozen=True)
class LogFile:
    """One file of a log.

    Attributes:
        path: where it is.
        suffix: what it holds, such as ".csv".
        compression: "gzip", "zstd" or None.
    """

    path: Path
    suffix: str
    compression: str | None

    @classmethod
    def at(cls, path: Path) -> LogFile:
        """Tells a file's format by its name.

        Raises:
            DataError: the name has no known ending.
        """
        suffixes = [suffix.lower() for suffix in path.suffixes]
        compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
        inner = suffixes[:-1] if compression else suffixes
        if not inner or inner[-1] not in _KINDS:
            known = " ".join(_KINDS)
            raise DataError(
                f"{path}: expected a file that ends in one of {known}, optionally with .gz or "
                ".zst. Rename it after its format."
            )
        return cls(path, inner[-1], compression)


def find_logs(logs: Logs) -> tuple[LogFile, ...]:
    """The files that paths and globs name, each glob's in alphabetical order.

    Args:
        logs: a path or glob ("**" crosses folders), or several.

    Raises:
        DataError: one of them matches no file, names a folder or a file of unknown format, or a
            file is named twice.
    """
    names = [logs] if isinstance(logs, str | Path) else list(logs)
    if not names:
        raise DataError("Expected at least one log file, got an empty list.")
    found: dict[Path, LogFile] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            raise DataError(f'{name}: expected a file, got a folder. Give "{name}/*.parquet".')
        matches = [path] if path.exists() else _glob(str(name))
        if not matches:
            raise DataError(f"{name}: no such file. Give a path or a glob that matches some.")
        for match in matches:
            key = match.resolve()
            if key in found:
                raise DataError(f"{match}: named twice. Name each log file once.")
            found[key] = LogFile.at(match)
    return tuple(found.values())


def read_batches(
    file: LogFile, schema: FeatureSchema, *, labelled: bool = True
) -> Iterator[pa.RecordBatch]:
    """Reads one file.

    Args:
        file: what `find_logs` returns.
        schema: names the columns to read; `schema.columns` names those of a file without header.
        labelled: whether to read the label; without, the log need not have it.

    Yields:
        Record batches of at most 65,536 rows, in the file's order, with the schema's columns.

    Raises:
        DataError: the file is damaged or ragged, lacks a column, or has text where the schema says
            numbers. The message names the file or the column and the remedy.

    Guarantees:
        - Memory does not grow with the file.
        - No row is dropped, split or padded.
    """
    kind = _KINDS[file.suffix]
    if kind == "delimited":
        yield from _read_delimited(file, schema, labelled)
    elif kind == "parquet":
        with _plain(file) as path:
            yield from _read_parquet(file, path, schema, labelled)
    else:
        with _plain(file) as path:
            yield from _read_arrow(file, path, schema, labelled)


def _glob(pattern: str) -> list[Path]:
    """Files that match, in alphabetical order."""
    path = Path(pattern)
    try:
        matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return sorted(match for match in matches if match.is_file())
    except ValueError as error:
        raise DataError(f"{pattern}: not a valid glob: {error}.") from None


def _damaged(file: LogFile, what: str) -> DataError:
    """The error for a file that cannot be read to its end."""
    return DataError(
        f"{file.path}: expected {what}, but it is damaged, cut short or of another format. "
        "Write or fetch the file again."
    )


@contextmanager
def _plain(file: LogFile) -> Iterator[Path]:
    """The path of the file's content without outer compression (a temporary copy if need be)."""
    if file.compression is None:
        yield file.path
        return
    with tempfile.NamedTemporaryFile(suffix=file.suffix) as copy:
        try:
            with _open(file) as stream:
                shutil.copyfileobj(stream, copy, CHUNK_BYTES)
        except OSError:
            raise _damaged(file, f"a {file.compression} file") from None
        copy.flush()
        yield Path(copy.name)


@contextmanager
def _open(file: LogFile) -> Iterator[IO[bytes]]:
    """The file's bytes, uncompressed."""
    import pyarrow as pa

    with pa.input_stream(str(file.path), compression=file.compression) as stream:
        yield stream


def _read_parquet(
    file: LogFile, path: Path, schema: FeatureSchema, labelled: bool
) -> Iterator[pa.RecordBatch]:
    """Batches of a Parquet file, page by page, checksums verified where the file has them."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True
        ) as source:
            _check_columns(file, source.schema_arrow.names, schema, labelled)
            names = input_columns(schema, labelled=labelled)
            batches = source.iter_batches(BATCH_ROWS, columns=names, use_threads=False)
            yield from _validated(batches, names)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        raise _damaged(file, "a Parquet file") from None


def _read_arrow(
    file: LogFile, path: Path, schema: FeatureSchema, labelled: bool
) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow IPC file (Feather) or stream, memory-mapped."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader: Any = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            _check_columns(file, reader.schema.names, schema, labelled)
            batches = (
                (reader.get_batch(i) for i in range(reader.num_record_batches))
                if is_file
                else reader
            )
            yield from _validated(batches, input_columns(schema, labelled=labelled))
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        raise _damaged(file, "an Arrow file or stream") from None


def _read_delimited(
    file: LogFile, schema: FeatureSchema, labelled: bool
) -> Iterator[pa.RecordBatch]:
    """Batches of a delimited file, by polars' streaming engine, after its lines were checked."""
    import polars as pl

    separator, quote = _TEXT_FORM[file.suffix]
    try:
        first = _first_line(file, separator, quote)
        names, has_header = _column_names(file, first, schema, labelled)
        _check_lines(file, separator, quote, len(names))
    except OSError:
        raise _damaged(file, f"a {file.compression or 'readable'} file") from None
    numbers = [*(n.column for n in schema.numeric), *([schema.label] if labelled else [])]
    numbers += [name for name in (schema.weight, schema.exposure) if name]
    try:
        frame = pl.scan_csv(
            file.path,
            has_header=False,
            skip_lines=int(has_header),
            separator=separator,
            quote_char=quote,
            schema=dict.fromkeys(names, pl.String),
            glob=False,
        )
        for part in _stream(frame.select(input_columns(schema, labelled=labelled))):
            parsed = part.with_columns(_parse(part[name], file) for name in numbers)
            yield from _slices(parsed.to_arrow().to_batches())
    except (pl.exceptions.PolarsError, OSError):
        raise _damaged(file, "delimited UTF-8 text") from None


def _stream(frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """The frame's batches in order, by polars' streaming engine."""
    yield from frame.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming")


def _validated(batches: Any, names: list[str]) -> Iterator[pa.RecordBatch]:
    """The named columns, cut to size, after a look at every offset and every text."""
    import pyarrow as pa

    for batch in _slices(batches):
        # Without the file's metadata, which may be damaged too and which nothing validates.
        part = pa.RecordBatch.from_arrays([batch.column(name) for name in names], names=names)
        part.validate(full=True)
        yield part


def _slices(batches: Any) -> Iterator[pa.RecordBatch]:
    """Batches cut to at most 65,536 rows."""
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _parse(text: pl.Series, file: LogFile) -> pl.Series:
    """A text column as numbers, empty text as null."""
    import polars as pl

    trimmed = text.str.strip_chars()
    numbers = trimmed.cast(pl.Float64, strict=False)
    given = trimmed.is_not_null() & (trimmed != "")
    if (given & numbers.is_null()).any():
        raise DataError(
            f'{file.path}: column "{text.name}": expected numbers, got text. '
            "Mend the column, or declare it categorical."
        )
    return numbers


def _first_line(file: LogFile, separator: str, quote: str | None) -> list[str]:
    """The fields of the first line."""
    with _open(file) as stream:
        head = b""
        while b"\n" not in head and len(head) < MAX_HEADER_BYTES:
            chunk = stream.read(CHUNK_BYTES)
            if not chunk:
                break
            head += chunk
    try:
        line = head.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError:
        raise _damaged(file, "delimited UTF-8 text") from None
    if not line:
        raise DataError(f"{file.path}: expected rows, got an empty file or first line. Remove it.")
    style: dict[str, Any] = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    try:
        return next(csv.reader([line], delimiter=separator, strict=True, **style))
    except csv.Error:
        raise _damaged(file, "delimited UTF-8 text") from None


def _column_names(
    file: LogFile, first: list[str], schema: FeatureSchema, labelled: bool
) -> tuple[list[str], bool]:
    """Names of a delimited file's columns, and whether its first line gives them.

    Without `schema.columns` every file has a header. With it, the first line is one when at least
    half of its fields are names of the schema, so that no odd value passes for a header. Where no
    label is wanted, a file without header may lack that column.
    """
    known = {*schema.columns, *schema.input_columns}
    has_header = not schema.columns or 2 * sum(name in known for name in first) >= len(first)
    names = first if has_header else list(schema.columns)
    if not (labelled or has_header) and len(first) == len(names) - 1:
        names.remove(schema.label)
    if len(names) != len(first):
        raise DataError(
            f"{file.path}: expected a header, or the {len(names)} columns that the schema's "
            f"`columns` lists, got {len(first)} fields in the first line. Mend `columns`, or add a "
            "header line."
        )
    _check_columns(file, names, schema, labelled)
    seen: set[str] = set()
    for place, name in enumerate(names):
        if name in seen:  # a column that the schema does not use
            names[place] = f"{name} ({place})"
        seen.add(names[place])
    return names, has_header


def _check_columns(file: LogFile, names: list[str], schema: FeatureSchema, labelled: bool) -> None:
    """As `check_columns`, naming the file."""
    try:
        check_columns(names, schema, labelled=labelled)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from None


def _check_lines(file: LogFile, separator: str, quote: str | None, width: int) -> None:
    """Counts the fields of every line; separators and line ends inside quotes do not count."""
    inside = 0  # 1 while a quote is open
    carried = 0  # separators of the line that the last chunk cut
    line = 1
    last = b"\n"
    with _open(file) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            data = np.frombuffer(chunk, np.uint8)
            separators, ends = data == ord(separator), data == ord("\n")
            if quote and (inside or quote.encode() in chunk):
                open_quotes = (np.cumsum(data == ord(quote)) + inside) & 1
                separators &= open_quotes == 0
                ends &= open_quotes == 0
                inside = int(open_quotes[-1])
            counts = np.searchsorted(np.flatnonzero(separators), np.flatnonzero(ends))
            total = int(np.count_nonzero(separators))
            if len(counts):
                per_line = np.diff(counts, prepend=-carried)
                wrong = np.flatnonzero(per_line != width - 1)
                if len(wrong):
                    raise _ragged(file, line + int(wrong[0]), width)
                line += len(counts)
                carried = total - int(counts[-1])
            else:
                carried += total
            last = chunk[-1:]
    if inside or (last != b"\n" and carried != width - 1):
        raise _ragged(file, line, width)


def _ragged(file: LogFile, line: int, width: int) -> DataError:
    """The error for a line of another number of fields."""
    return DataError(
        f"{file.path}: expected {width} fields in every line, got another number in line {line} "
        "(or a quote that is not closed). Mend the line, or remove it if it is empty."
    )
