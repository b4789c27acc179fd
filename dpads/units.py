"""Privacy units of a store: one example each, or all capped examples of a user."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.mechanism import PrivacySpec
from dpads.batch import SparseBatch
from dpads.errors import ConfigError
from dpads.store import ExampleStore


@dataclass(frozen=True)
class Units:
    """Who the units are and which examples they have.

    Attributes:
        store: the examples.
        offsets: int64[units + 1], unit u has the examples offsets[u] to before offsets[u + 1]; None where
            every example is a unit.
    """

    store: ExampleStore
    offsets: NDArray[np.int64] | None

    @property
    def number(self) -> int:
        """How many units there are."""
        return self.store.num_examples if self.offsets is None else len(self.offsets) - 1

    def sizes(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many examples some units have, int64[k]."""
        if self.offsets is None:
            return np.ones(len(units), np.int64)
        return self.offsets[units + 1] - self.offsets[units]

    def read(self, units: NDArray[np.int64]) -> SparseBatch:
        """The examples of some units, unit by unit."""
        if self.offsets is None:
            return self.store.read(units)
        bounds = np.zeros(len(units) + 1, np.int64)
        np.cumsum(self.sizes(units), out=bounds[1:])
        # number i of a unit's examples stands i places after the unit's first
        shifts = np.repeat(self.offsets[units] - bounds[:-1], np.diff(bounds))
        return replace(self.store.read(np.arange(bounds[-1]) + shifts), unit_offsets=bounds)


def units_of(store: ExampleStore, privacy: PrivacySpec) -> Units:
    """The units of a promise.

    Args:
        store: the training rows, capped where the promise names a cap (`ExampleStore.capped`).
        privacy: the promise.

    Raises:
        SchemaError: a unit is a user, or users are capped, and the schema names no user column.
        ConfigError: a user has more examples than the promise allows.
    """
    cap = privacy.max_examples_per_unit
    if cap is None:
        return Units(store, None)
    store.num_users  # noqa: B018 (raises where the schema names no user)
    offsets = store.user_offsets
    assert offsets is not None
    if int(np.diff(offsets).max(initial=0)) > cap:
        raise ConfigError(
            f"Expected rows in which no user has more than max_examples_per_unit = {cap}, got others. "
            "Cap them first: store.capped(cap, seed=...)."
        )
    return Units(store, offsets if privacy.unit == "user" else None)
