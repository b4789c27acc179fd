"""Which pairs of data sets a guarantee compares."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dp_accounting import NeighboringRelation


class Relation(StrEnum):
    """Which pairs of data sets a guarantee compares."""

    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    ZERO_OUT = "zero_out"
    REPLACE_ONE = "replace_one"


def neighboring_relation(relation: Relation) -> NeighboringRelation:
    """dp-accounting's name of a relation."""
    from dp_accounting import NeighboringRelation

    return {
        Relation.ADD_OR_REMOVE_ONE: NeighboringRelation.ADD_OR_REMOVE_ONE,
        Relation.ZERO_OUT: NeighboringRelation.REPLACE_SPECIAL,
        Relation.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    }[relation]
