"""FeatureSchema: the public description of a log's columns.

Everything in it is fixed before the data is seen: numbers of buckets, transforms and their
constants, which columns share a table. Nothing in it may come from private rows.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from dpads._validate import nearest
from dpads.errors import SchemaError
from dpads.schema_columns import (
    DEFAULT_BUCKETS,
    Bag,
    Field,
    Numeric,
    as_buckets,
    as_column,
    as_mapping,
    as_name,
    as_names,
    as_sequence,
    as_share,
)

__all__ = [
    "DEFAULT_BUCKETS",
    "PRESETS",
    "Bag",
    "FeatureSchema",
    "Field",
    "Numeric",
    "Task",
    "preset",
]

Task = Literal["ctr", "cvr", "count"]


@dataclass(frozen=True, kw_only=True)
class FeatureSchema:
    """The columns of a log and what each becomes: the [schema] table of a configuration.

    Attributes:
        task: "ctr" or "cvr" (binary labels), or "count".
        label: the label's column.
        numeric: numeric columns, by name or as `Numeric`.
        categorical: scalar categorical columns.
        bags: list-valued categorical columns, by name or as `Bag`.
        tables: tables shared by several columns: {table: [columns]}; other columns have their own.
        buckets: rows per table, one number or {table or column: rows}; row 0 stands for missing,
            an id goes to row 1 + hash mod (buckets - 1).
        weight: column of non-negative loss weights.
        exposure: column of positive exposures, for counts.
        user: column that identifies the user.
        columns: the order of columns in delimited files that have no header.
        negatives_kept: the share of negative examples that was kept when the log was down-sampled, in
            (0, 1]; binary tasks. Predictions and metrics are about what it was taken from.

    Raises:
        SchemaError: a column is used twice, a table names an unknown column, a bucket count is out
            of range, or the task is unknown.

    Examples:
        >>> schema = FeatureSchema(task="ctr", label="click", categorical=["C1"], bags=["tags"],
        ...                        tables={"word": ["C1", "tags"]}, buckets=1000)
        >>> [(f.name, f.table) for f in schema.fields], schema.table_rows
        ([('C1', 'word'), ('tags', 'word')], {'word': 1000})
    """

    task: Task
    label: str
    numeric: tuple[Numeric, ...] = ()
    categorical: tuple[str, ...] = ()
    bags: tuple[Bag, ...] = ()
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: int | Mapping[str, int] = DEFAULT_BUCKETS
    weight: str | None = None
    exposure: str | None = None
    user: str | None = None
    columns: tuple[str, ...] = ()
    negatives_kept: float = 1.0

    def __init__(
        self,
        *,
        task: Task,
        label: str,
        numeric: Iterable[str | Numeric | Mapping[str, Any]] = (),
        categorical: Iterable[str] = (),
        bags: Iterable[str | Bag | Mapping[str, Any]] = (),
        tables: Mapping[str, Iterable[str]] | None = None,
        buckets: int | Mapping[str, int] = DEFAULT_BUCKETS,
        weight: str | None = None,
        exposure: str | None = None,
        user: str | None = None,
        columns: Iterable[str] = (),
        negatives_kept: float = 1.0,
    ) -> None:
        shared = as_mapping(tables or {}, "tables")
        values: dict[str, Any] = {
            "task": task,
            "label": as_name(label, "label"),
            "numeric": tuple(
                as_column(n, Numeric, "numeric") for n in as_sequence(numeric, "numeric")
            ),
            "categorical": as_names(categorical, "categorical"),
            "bags": tuple(as_column(b, Bag, "bags") for b in as_sequence(bags, "bags")),
            "tables": {
                name: as_names(members, f"tables.{name}") for name, members in shared.items()
            },
            "buckets": as_buckets(buckets),
            "weight": None if weight is None else as_name(weight, "weight"),
            "exposure": None if exposure is None else as_name(exposure, "exposure"),
            "user": None if user is None else as_name(user, "user"),
            "columns": as_names(columns, "columns"),
            "negatives_kept": as_share(negatives_kept, "negatives_kept"),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if self.task not in get_args(Task):
            raise SchemaError(
                f'Expected task "ctr", "cvr" or "count", got "{self.task}".'
                + nearest(str(self.task), get_args(Task))
            )
        if self.task == "count" and self.negatives_kept != 1.0:
            raise SchemaError(
                "negatives_kept is about binary tasks: counts have no negatives. Leave it out, and give "
                "rows that stand for several a weight."
            )
        used: dict[str, str] = {}
        for role, names in self._roles():
            for name in names:
                if name in used:
                    raise SchemaError(
                        f'Column "{name}" is both {used[name]} and {role}. Give each column one role.'
                    )
                used[name] = role
        names = [*self.categorical, *(b.column for b in self.bags)]
        owner: dict[str, str] = {}
        for table, members in self.tables.items():
            for member in members:
                if member not in names:
                    raise SchemaError(
                        f'Table "{table}" names column "{member}", which is neither categorical '
                        "nor a bag." + nearest(member, names)
                    )
                if member in owner:
                    raise SchemaError(
                        f'Column "{member}" is in tables "{owner[member]}" and "{table}". '
                        "A column looks up one table."
                    )
                owner[member] = table
            if table in names and table not in members:
                raise SchemaError(
                    f'Table "{table}" has the name of a column that is not in it. Rename the table.'
                )
        _ = self.table_rows  # raises where columns that share a table disagree
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise SchemaError(f'columns lists "{name}" twice. Name each column once.')
        for name in self.input_columns if self.columns else ():
            if name not in self.columns:
                raise SchemaError(
                    f'columns lacks "{name}", which is {used[name]}.'
                    + nearest(name, self.columns)
                    + " Add it, or set columns = [] where every log has a header."
                )

    def _roles(self) -> list[tuple[str, list[str]]]:
        """Every column with its role."""
        return [
            ("the label", [self.label]),
            ("numeric", [n.column for n in self.numeric]),
            ("categorical", list(self.categorical)),
            ("a bag", [b.column for b in self.bags]),
            ("weights of a bag", [b.weights for b in self.bags if b.weights]),
            ("the weight", [self.weight] if self.weight else []),
            ("the exposure", [self.exposure] if self.exposure else []),
            ("the user", [self.user] if self.user else []),
        ]

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Every column that a log must have."""
        return tuple(name for _, names in self._roles() for name in names)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Categorical fields, scalar ones first, each with its table."""
        owner = {member: table for table, members in self.tables.items() for member in members}
        scalars = [Field(name, owner.get(name, name), False) for name in self.categorical]
        bags = [
            Field(b.column, owner.get(b.column, b.column), True, b.pooling, b.weights)
            for b in self.bags
        ]
        return (*scalars, *bags)

    @property
    def table_rows(self) -> dict[str, int]:
        """Rows of each table, in order of first use."""
        rows: dict[str, int] = {}
        for item in self.fields:
            number = self._buckets_of(item)
            if rows.setdefault(item.table, number) != number:
                raise SchemaError(
                    f'Columns that share table "{item.table}" have different buckets. '
                    f"Give one number under the table's name: buckets = {{ {item.table} = ... }}."
                )
        if isinstance(self.buckets, Mapping):
            known = {*rows, *(f.name for f in self.fields)}
            for name in self.buckets:
                if name not in known:
                    raise SchemaError(
                        f'buckets names "{name}", which is no field.' + nearest(name, known)
                    )
        return rows

    def _buckets_of(self, item: Field) -> int:
        """Configured number of rows of a field's table."""
        if not isinstance(self.buckets, Mapping):
            return self.buckets
        for key in (item.table, item.name):
            if key in self.buckets:
                return self.buckets[key]
        members = self.tables.get(item.table, ())
        shared = [self.buckets[m] for m in members if m in self.buckets]
        return shared[0] if shared else DEFAULT_BUCKETS

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain data; `from_dict` reads it back."""
        return {
            "task": self.task,
            "label": self.label,
            "numeric": [
                {
                    "column": n.column,
                    "transform": n.transform,
                    "clip": None if n.clip is None else list(n.clip),
                    "missing": n.missing,
                }
                for n in self.numeric
            ],
            "categorical": list(self.categorical),
            "bags": [
                {"column": b.column, "pooling": b.pooling, "weights": b.weights} for b in self.bags
            ],
            "tables": {name: list(members) for name, members in self.tables.items()},
            "buckets": dict(self.buckets) if isinstance(self.buckets, Mapping) else self.buckets,
            "weight": self.weight,
            "exposure": self.exposure,
            "user": self.user,
            "columns": list(self.columns),
            # stores and ledgers written before it existed keep their fingerprints
            **({} if self.negatives_kept == 1.0 else {"negatives_kept": self.negatives_kept}),
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> FeatureSchema:
        """Reads the [schema] table of a configuration, or what `to_dict` wrote.

        Args:
            table: keys as the attributes, and optionally `preset`, whose values the others override.

        Raises:
            SchemaError: an unknown key or preset (the nearest known one is named), or a value
                that contradicts another.
        """
        values = {key: value for key, value in table.items() if key != "preset"}
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise SchemaError(
                    f'Unknown key "{key}" in [schema].' + nearest(key, [*known, "preset"])
                )
        if "preset" in table:
            values = {**preset(str(table["preset"])), **values}
        for key in ("task", "label"):
            if key not in values:
                raise SchemaError(f'[schema] needs "{key}".')
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | Path) -> FeatureSchema:
        """Reads the [schema] table of a TOML file.

        Raises:
            SchemaError: the file is missing, is no TOML, has no [schema] table, or the table is wrong.
        """
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SchemaError(
                f"{path}: no such file. Give a TOML file with a [schema] table."
            ) from None
        except OSError:
            raise SchemaError(f"{path}: no file that can be read. Give a TOML file.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SchemaError(f"{path}: not valid TOML: {error}.") from None
        if not isinstance(document.get("schema"), dict):
            raise SchemaError(f"{path}: expected a [schema] table; found none.")
        return cls.from_dict(document["schema"])

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the canonical JSON of the schema."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


_AVAZU = (
    "id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id",
    "app_domain", "app_category", "device_id", "device_ip", "device_model", "device_type",
    "device_conn_type", *(f"C{i}" for i in range(14, 22)),
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    # The tab-separated original of the Criteo display-advertising logs: label, 13 integers, 26 categories.
    "criteo-display": {
        "task": "ctr",
        "label": "label",
        "numeric": tuple(f"I{i}" for i in range(1, 14)),
        "categorical": tuple(f"C{i}" for i in range(1, 27)),
        "columns": ("label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))),
    },
    # train.csv of Kaggle's Avazu contest (2014): ten days of mobile ads, all columns anonymous ids. `hour` is
    # YYMMDDHH: of a day that nobody trained on its row says nothing. `id` is the impression's own: unused.
    # Clicks and non-clicks were down-sampled at rates that were not published, so negatives_kept is not set.
    "avazu": {
        "task": "ctr",
        "label": "click",
        "categorical": tuple(name for name in _AVAZU if name not in ("id", "click")),
        "columns": _AVAZU,
    },
}


def preset(name: str) -> dict[str, Any]:
    """The [schema] table of a named preset.

    Raises:
        SchemaError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise SchemaError(f'Unknown preset "{name}".' + nearest(name, PRESETS))
    return dict(PRESETS[name])
