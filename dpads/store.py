"""ExampleStore: encoded examples on disk, memory-mapped, read by row.

    STORE/
      data.arrow    Arrow IPC, record batches of exactly 65,536 rows; its metadata holds the schema
      store.json    format and fingerprint
      key           0600; the fingerprint is the HMAC-SHA256 of data.arrow under this key

Columns are those of `encoding.encoded_schema` and `input_row`, the row's number in the logs. With
`schema.user` the rows are grouped by user; without, they keep the logs' order. The fingerprint is
keyed because a plain digest of a private file would let anyone test a guess of its content; it is
checked whenever a store is opened, and so is proof against damage, not against forgery.

`store_shards` opens a store that was cut into shards, or those of one process, as one of these.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.errors import SchemaError, StoreError
from dpads.schema import FeatureSchema
from dpads.store_keys import (
    content_keys,
    in_stored_order,
    ordinals,
    smallest_of_each,
    user_unit_keys,
    with_ordinals,
)
from dpads.store_mapping import ORDINAL, MappedStore, Rows
from dpads.store_shards import Border, open_mapped

SCAN_ROWS = 1 << 18


class ExampleStore:
    """Encoded examples, or a part of them after a split.

    Positions of examples run from 0 to `num_examples - 1` in stored order; where the schema has a
    user, each user's examples stand together.

    Attributes:
        path: the store's folder.
        schema: what it was prepared with.
        fingerprint: keyed digest of the content (and of the split), in hexadecimal. All parts of a store
            that was cut into shards have that of the whole.
        part: (i, n) where these are the shards of process i of n; (0, 1) where they are all.

    Examples:
        >>> import dpads, tempfile
        >>> log = dpads.synthetic.click_log(1000, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = log.write(f"{folder}/log.parquet")
        ...     store = dpads.prepare(path, log.schema, out=f"{folder}/store")
        >>> train, test = store.split(0.2, seed=7)
        >>> store.num_examples, len(train) + len(test), store.read([3, 3, 0]).num_examples
        (1000, 1000, 3)
    """

    def __init__(self, mapped: MappedStore, index: Rows | None, fingerprint: str) -> None:
        self._mapped = mapped
        self._index = index
        self.path = mapped.path
        self.schema = mapped.schema
        self.fingerprint = fingerprint
        self.part = mapped.part

    @classmethod
    def open(cls, path: str | Path, *, part: tuple[int, int] = (0, 1)) -> ExampleStore:
        """Opens a store and checks that it is undamaged.

        Args:
            path: the folder that `prepare` made.
            part: (i, n) opens what process i of n trains on: of K shards, those from number i*K//n to before
                (i+1)*K//n. Only their folders and shards.json need to be on this machine.

        Raises:
            StoreError: there is no store, it is damaged, or it has another format; a shard is missing or not
                of this store; there are more processes than shards; a user has rows in two shards.
        """
        mapped = open_mapped(Path(path), part)
        return cls(mapped, None, mapped.fingerprint)

    @property
    def whole_fingerprint(self) -> str:
        """The fingerprint of the store that this is a part of, or all of."""
        return self._mapped.fingerprint

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return self._mapped.num_rows if self._index is None else len(self._index)

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        return f"ExampleStore({str(self.path)!r}, num_examples={self.num_examples})"

    @property
    def num_users(self) -> int:
        """Number of users.

        Raises:
            SchemaError: the schema names no user column.
        """
        if self.user_offsets is None:
            raise SchemaError('Expected `user = "<column>"` in the schema to count users.')
        return len(self.user_offsets) - 1

    def num_units(self, unit: str) -> int:
        """Number of privacy units.

        Args:
            unit: "example" or "user".

        Raises:
            SchemaError: the unit is "user" and the schema names no user column.
        """
        return self.num_examples if unit == "example" else self.num_users

    @cached_property
    def user_offsets(self) -> Rows | None:
        """int64[users + 1]: user u owns positions [offsets[u], offsets[u + 1]); None without users."""
        if self.schema.user is None:
            return None
        return np.concatenate([*self.user_starts(), np.array([self.num_examples], np.int64)])

    def user_starts(self) -> Iterator[Rows]:
        """Positions of the users' first examples, some at a time.

        Raises:
            StoreError: a user's examples do not stand together.
        """
        size = self.num_examples
        yield np.zeros(min(size, 1), np.int64)
        for begin in range(0, size, SCAN_ROWS):
            keys = self._user_keys(np.arange(begin, min(begin + SCAN_ROWS + 1, size)))
            high = in_stored_order(keys)[:, 0]
            if (high[1:] < high[:-1]).any():
                raise StoreError(f"{self.path}: a user's rows stand apart. Prepare the logs again.")
            yield begin + 1 + np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1))

    def border_users(self) -> Border | None:
        """Keys of the first and the last user, for `store_shards.first_straddling`.

        Returns:
            uint64[2] each; None where the schema names no user, or there is no example.
        """
        if self.schema.user is None or not self.num_examples:
            return None
        first, last = in_stored_order(self._user_keys(np.array([0, self.num_examples - 1])))
        return first, last

    @cached_property
    def input_rows(self) -> Rows:
        """int64[num_examples]: each example's row number in the logs, files one after another."""
        return self._scanned("input_row", np.int64)

    def check_schema(self, schema: FeatureSchema) -> None:
        """Checks that the store was prepared with this schema.

        Args:
            schema: the schema wanted; `columns` may differ, for it only says how to read logs.

        Raises:
            StoreError: something differs; the message names the first difference.
        """
        stored, wanted = self.schema.to_dict(), schema.to_dict()
        for name in stored:
            if name != "columns" and stored[name] != wanted[name]:
                raise StoreError(
                    f"{self.path}: the store was prepared with another schema: {name} is "
                    f"{json.dumps(stored[name])} there and {json.dumps(wanted[name])} here. "
                    "Prepare the logs again, or use the store's schema."
                )

    def check_labels(self) -> None:
        """Checks that the store has labels.

        Raises:
            StoreError: it was prepared without, so that every label in it is zero.
        """
        if not self._mapped.labelled:
            raise StoreError(
                f"{self.path}: the store was prepared without labels, for predictions alone. "
                "Prepare logs with the label column."
            )

    def split_from(self, other: ExampleStore) -> bool:
        """Whether both are parts of one store that have no example in common."""
        same = self._mapped.fingerprint == other._mapped.fingerprint
        return same and not self.shares_examples(other)

    def shares_examples(self, other: ExampleStore) -> bool:
        """Whether an example of this store (or of the same store copied) is in the other one too."""
        if self._mapped.fingerprint != other._mapped.fingerprint:
            return False
        if self.part != other.part:  # positions of other shards are others
            return bool(np.isin(self.input_rows, other.input_rows).any())
        if self._index is None or other._index is None:
            return bool(len(self) and len(other))
        return bool(np.isin(self._index, other._index).any())

    def read(self, rows: NDArray[np.int64] | list[int]) -> SparseBatch:
        """Reads examples.

        Args:
            rows: int64[n], positions in any order; repeats are fine, and so are none.

        Returns:
            n examples in the order of `rows`, each its own unit.

        Raises:
            StoreError: a position is outside the store.
        """
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        size = self.num_examples
        if wanted.size and (int(wanted.min()) < 0 or int(wanted.max()) >= size):
            raise StoreError("Expected positions from 0 to num_examples - 1, got others.")
        stored = wanted if self._index is None else self._index[wanted]
        columns, count = self._mapped.columns, len(wanted)
        scalars = tuple(item.name for item in self.schema.fields if not item.is_bag)

        def take(name: str) -> NDArray[Any] | None:
            if name not in columns:
                return None
            values = columns[name].take(stored)
            self._mapped.residency.limit()
            return values

        ids, dense = take("ids"), take("dense")
        labels = columns["label"].take(stored)
        return SparseBatch(
            field_names=scalars,
            scalar_ids=(
                np.empty((count, 0), np.int32) if ids is None else ids.reshape(count, len(scalars))
            ),
            bags={name: bag.take(stored) for name, bag in self._mapped.bags.items()},
            dense=np.empty((count, 0), np.float32)
            if dense is None
            else dense.reshape(count, len(self.schema.numeric)),
            labels=labels,
            weights=take("weight"),
            exposure=take("exposure"),
        )

    def scan(self, batch_size: int) -> Iterator[SparseBatch]:
        """Reads all examples in stored order.

        Args:
            batch_size: examples per batch; the last may have fewer.
        """
        for begin in range(0, self.num_examples, batch_size):
            yield self.read(np.arange(begin, min(begin + batch_size, self.num_examples)))

    def content_keys(
        self, seed: int, first: int = 0, last: int | None = None
    ) -> NDArray[np.uint64]:
        """A pseudo-random key per example, by which rows are split and capped.

        Args:
            seed: public.
            first: position of the first example.
            last: position after the last one; None for all.

        Returns:
            uint64[last - first], from (seed, user, content) alone: identical examples have equal keys.
        """
        last = self.num_examples if last is None else last
        keys = np.empty(last - first, np.uint64)
        for begin in range(first, last, SCAN_ROWS):
            rows = np.arange(begin, min(begin + SCAN_ROWS, last))
            users = self._user_keys(rows) if self.schema.user else None
            keys[rows - first] = content_keys(self.read(rows), users, seed)
        return keys

    def capped(self, max_examples_per_user: int, *, seed: int) -> ExampleStore:
        """The store with at most so many examples of every user.

        Args:
            max_examples_per_user: at least 1.
            seed: public; it decides which examples stay.

        Returns:
            A view of this store. Where nobody has more it is the store, unless it was cut into shards: then
            its name must not depend on which of them are opened.

        Raises:
            SchemaError: the schema names no user column.
            StoreError: the cap is not a positive number.

        Guarantees:
            - Which of a user's examples stay depends on that user's examples alone: adding a row or a user
              changes nobody else's.
        """
        if isinstance(max_examples_per_user, bool) or max_examples_per_user < 1:
            raise StoreError(
                f"Expected max_examples_per_user to be at least 1, got {max_examples_per_user!r}."
            )
        self.num_users  # noqa: B018 (raises where the schema names no user)
        offsets = self.user_offsets
        assert offsets is not None
        over = int(np.diff(offsets).max(initial=0)) > max_examples_per_user
        if not over and not self._mapped.sharded:
            return self
        kept = np.ones(self.num_examples, np.bool_)
        first = 0
        while over and first < len(offsets) - 1:  # whole users, about SCAN_ROWS examples at a time
            fits = int(np.searchsorted(offsets, offsets[first] + SCAN_ROWS, side="right")) - 1
            last = max(fits, first + 1)
            begin, end = int(offsets[first]), int(offsets[last])
            bounds = offsets[first : last + 1] - begin
            if int(np.diff(bounds).max()) > max_examples_per_user:
                keys = self.content_keys(seed, begin, end)
                kept[begin:end] = smallest_of_each(keys, bounds, max_examples_per_user)
            first = last
        return self._view(kept, f"capped {max_examples_per_user} {seed}")

    def split(self, fraction: float, seed: int) -> tuple[ExampleStore, ExampleStore]:
        """Splits by user where the schema has one, else by example.

        Args:
            fraction: expected share of units on the second side, in (0, 1).
            seed: public.

        Returns:
            The larger side for training and the second for testing; views of this store. Those of one part
            of several may be empty, for the other parts' need not be.

        Raises:
            StoreError: the fraction is out of range, or a side of the whole store is empty.

        Guarantees:
            - Adding a user (or an example, without users) changes nobody else's side.
            - A user is on one side.
            - However many shards a store is cut into and whoever opens them, its examples are on the sides
              that they are on in the store in one piece.
        """
        if not 0 < fraction < 1:
            raise StoreError(f"Expected a fraction in (0, 1) for the test rows, got {fraction}.")
        bound = np.uint64(int(fraction * 2**64))
        if self.user_offsets is None:
            keys = self.content_keys(seed)
            if ORDINAL in self._mapped.columns:  # equal rows may be in shards that are not opened
                places = self._scanned(ORDINAL, np.uint64)
            else:
                secret = self.content_keys(int.from_bytes(self._mapped.key, "little"))
                places = ordinals(secret, keys)
            second = with_ordinals(keys, places) < bound
        else:
            firsts = self._user_keys(self.user_offsets[:-1])
            sides = user_unit_keys(firsts, seed) < bound
            second = np.repeat(sides, np.diff(self.user_offsets))
        if self.part[1] == 1 and (second.all() or not second.any()):
            raise StoreError("The split leaves one side empty. Use more rows or another fraction.")
        return self._view(~second, f"train {fraction!r} {seed}"), self._view(
            second, f"test {fraction!r} {seed}"
        )

    def _view(self, mask: NDArray[np.bool_], what: str) -> ExampleStore:
        """The examples where the mask is true."""
        rows = np.flatnonzero(mask)
        index = rows if self._index is None else self._index[rows]
        name = f"{self.fingerprint} {what}".encode()
        return ExampleStore(
            self._mapped, index, hmac.digest(self._mapped.key, name, "sha256").hex()
        )

    def _scanned(self, column: str, kind: type[Any]) -> NDArray[Any]:
        """A whole column."""
        values = np.empty(self.num_examples, kind)
        for begin in range(0, self.num_examples, SCAN_ROWS):
            end = min(begin + SCAN_ROWS, self.num_examples)
            values[begin:end] = self._take(column, np.arange(begin, end))
        return values

    def _take(self, column: str, rows: Rows) -> NDArray[Any]:
        """One column at some positions."""
        values = self._mapped.columns[column].take(
            rows if self._index is None else self._index[rows]
        )
        self._mapped.residency.limit()
        return values

    def _user_keys(self, rows: Rows) -> NDArray[np.uint64]:
        """The users' keys at some positions, uint64[n, 2]."""
        return self._take("user", rows)
