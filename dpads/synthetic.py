"""A synthetic ads log with a known truth, for demonstrations and tests.

Clicks follow a logistic model: a bias, an effect per categorical value and per interest, and slopes
in log(1 + x) of the numeric columns. Vocabularies are long-tailed: value k is drawn with probability
proportional to 1 / (k + shift). About 3 % of the examples are clicks.

Everything is integer arithmetic on the raw output of PCG64, up to three small tables of rounded
logarithms and probabilities, so that one seed gives one log on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpads.errors import ConfigError
from dpads.schema import Bag, FeatureSchema, Numeric

if TYPE_CHECKING:
    import pyarrow as pa

Integers = NDArray[np.int64]

ONE = 1024  # logits are integers in units of 1 / 1024
BIAS = -3650
MAX_LOGIT = 12 * ONE
MAX_INTERESTS = 6
EXAMPLES_PER_USER = 8
NULL_SHARE = 0.1  # of page_depth


@dataclass(frozen=True)
class _Vocabulary:
    """A categorical column: how many values, how flat its head, and the spread of their effects."""

    name: str
    size: int
    shift: int
    spread: float


@dataclass(frozen=True)
class _Count:
    """A numeric column of counts and its slope in log(1 + count)."""

    name: str
    size: int
    shift: int
    slope: float


# Most of the signal sits in counts and in frequent values, where a private model can reach it, and
# some in the tails of `site` and `campaign`, where only more data or less noise does.
_CATEGORICAL = (
    _Vocabulary("device", 8, 1, 0.35),
    _Vocabulary("hour", 24, 40, 0.20),
    _Vocabulary("region", 60, 4, 0.30),
    _Vocabulary("site", 3_000, 2, 0.38),
    _Vocabulary("campaign", 20_000, 2, 0.38),
)
_INTERESTS = _Vocabulary("interests", 500, 3, 0.16)
_COUNTS = (
    _Count("past_clicks", 64, 1, 0.58),
    _Count("past_views", 4_096, 8, -0.18),
    _Count("page_depth", 32, 2, -0.35),
)


@dataclass(frozen=True)
class SyntheticLog:
    """A log and the truth behind it.

    Attributes:
        table: the columns of `schema`, and `user`, which a schema may name as the privacy unit.
        probabilities: float64[num_examples], the true probability of a click.
        schema: describes the table for a click model.
    """

    table: pa.Table
    probabilities: NDArray[np.float64]
    schema: FeatureSchema

    def write(self, path: str | Path) -> Path:
        """Writes the table as a Parquet file and returns its path."""
        import pyarrow.parquet as parquet

        parquet.write_table(self.table, str(path))
        return Path(path)


def click_log(num_examples: int, *, seed: int, buckets: int = 10_000) -> SyntheticLog:
    """Draws a log.

    Args:
        num_examples: number of rows, at least 1.
        seed: a non-negative integer; it fixes the log and the truth's effects do not depend on it,
            so that logs of two seeds are two samples of one population.
        buckets: rows per table in the schema that is returned.

    Returns:
        The log, its true probabilities and its schema.

    Raises:
        ConfigError: `num_examples` or `seed` is out of range.

    Guarantees:
        - One seed gives one log on every machine.

    Examples:
        >>> log = click_log(2000, seed=0)
        >>> log.table.num_rows, log.schema.label, round(float(log.probabilities.mean()), 2)
        (2000, 'click', 0.03)
    """
    import pyarrow as pa

    if num_examples < 1:
        raise ConfigError(f"Expected num_examples of at least 1, got {num_examples}.")
    if seed < 0:
        raise ConfigError(f"Expected a seed of at least 0, got {seed}.")
    streams = _Streams(seed)
    columns: dict[str, pa.Array] = {}
    users = max(1, num_examples // EXAMPLES_PER_USER)
    owner = _zipf(streams.next(num_examples), users, 1 + users // 8)
    columns["user"] = pa.array((_scatter(owner, 0) >> np.uint64(12)).astype(np.int64))
    logits = np.full(num_examples, BIAS, np.int64)
    for salt, vocabulary in enumerate(_CATEGORICAL, start=1):
        values = _zipf(streams.next(num_examples), vocabulary.size, vocabulary.shift)
        logits += _effects(vocabulary, salt)[values]
        columns[vocabulary.name] = _text(vocabulary.name, values)
    columns["interests"] = _interests(streams, logits)
    for count in _COUNTS:
        values = _zipf(streams.next(num_examples), count.size, count.shift)
        slopes = np.rint(count.slope * ONE * np.log1p(np.arange(count.size))).astype(np.int64)
        missing = np.zeros(num_examples, np.bool_)
        if count.name == "page_depth":
            missing = streams.next(num_examples) < np.uint64(NULL_SHARE * 2**64)
        logits += np.where(missing, 0, slopes[values])
        columns[count.name] = pa.array(values, mask=missing)
    logits = np.clip(logits, -MAX_LOGIT, MAX_LOGIT)
    levels = 1 / (1 + np.exp(-np.arange(-MAX_LOGIT, MAX_LOGIT + 1) / ONE))
    thresholds = np.rint(levels * 2**32).astype(np.uint64)
    place = logits + MAX_LOGIT
    clicks = (streams.next(num_examples) >> np.uint64(32)) < thresholds[place]
    columns["click"] = pa.array(clicks.astype(np.int8))
    return SyntheticLog(pa.table(columns), thresholds[place] / 2**32, _schema(buckets))


def _schema(buckets: int) -> FeatureSchema:
    """The schema of a synthetic log."""
    return FeatureSchema(
        task="ctr",
        label="click",
        numeric=[Numeric(count.name) for count in _COUNTS],
        categorical=[vocabulary.name for vocabulary in _CATEGORICAL],
        bags=[Bag(_INTERESTS.name)],
        buckets=buckets,
    )


class _Streams:
    """Independent streams of raw 64-bit words, one after another."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0

    def next(self, size: int) -> NDArray[np.uint64]:
        """The first words of the next stream."""
        self._count += 1
        generator = np.random.PCG64(np.random.SeedSequence([self._seed, self._count]))
        return generator.random_raw(size)


def _zipf(words: NDArray[np.uint64], size: int, shift: int) -> Integers:
    """Values from 0 to size - 1, value k with probability proportional to 1 / (k + shift)."""
    # Weights and their sum stay below 2^31, so that the product with 32 bits does not overflow.
    total = np.cumsum((1 << 26) // (np.arange(size, dtype=np.int64) + shift))
    point = ((words >> np.uint64(32)) * np.uint64(total[-1])) >> np.uint64(32)
    return np.searchsorted(total, point.astype(np.int64), side="right")


def _scatter(values: Integers, salt: int) -> NDArray[np.uint64]:
    """Fixed pseudo-random words per value (SplitMix64)."""
    words = values.astype(np.uint64) + np.uint64(salt << 40)
    words = (words + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _effects(vocabulary: _Vocabulary, salt: int) -> Integers:
    """An effect per value, about normal: the sum of four 16-bit parts of its words."""
    words = _scatter(np.arange(vocabulary.size), salt)
    parts = sum(
        ((words >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.int64) for s in (0, 16, 32, 48)
    )
    centred = np.asarray(parts) - 2 * 0xFFFF
    deviation = 37_837  # of the sum: 2^16 * sqrt(4 / 12)
    return centred * round(vocabulary.spread * ONE) // deviation


def _text(name: str, values: Integers) -> pa.Array:
    """Values as text, `name` and a number."""
    import pyarrow as pa

    known = pa.array([f"{name}{i}" for i in range(int(values.max(initial=0)) + 1)])
    return pa.DictionaryArray.from_arrays(pa.array(values), known).cast(pa.string())


def _interests(streams: _Streams, logits: Integers) -> pa.Array:
    """Lists of up to six interests, repeats allowed; adds their effects to the logits."""
    import pyarrow as pa

    size = len(logits)
    lengths = _zipf(streams.next(size), MAX_INTERESTS + 1, 1)
    offsets = np.zeros(size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values = _zipf(streams.next(int(offsets[-1])), _INTERESTS.size, _INTERESTS.shift)
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(_effects(_INTERESTS, 99)[values], out=total[1:])
    logits += total[offsets[1:]] - total[offsets[:-1]]
    return pa.LargeListArray.from_arrays(pa.array(offsets), _text("topic", values))
