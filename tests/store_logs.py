"""Logs and stores that the store's tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dpads.batch import SparseBatch
from dpads.encoding import encode
from dpads.preparing import prepare
from dpads.schema import Bag, FeatureSchema
from dpads.store import ExampleStore

FULL = FeatureSchema(
    task="ctr",
    label="y",
    numeric=["x1", "x2"],
    categorical=["c1", "c2", "c3"],
    bags=[Bag("tags", weights="w"), "plain"],
    weight="factor",
    exposure="seconds",
    buckets=1000,
)
WITH_USER = FeatureSchema.from_dict({**FULL.to_dict(), "user": "uid"})


def log(rows: int, seed: int = 0, users: int = 7) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, rows)
    return pl.DataFrame(
        {
            "y": rng.integers(0, 2, rows),
            "x1": rng.integers(0, 50, rows),
            "x2": rng.normal(size=rows),
            **{f"c{i}": rng.integers(0, 30, rows) for i in (1, 2, 3)},
            "tags": [rng.integers(0, 9, n).tolist() for n in lengths],
            "w": [rng.random(n).tolist() for n in lengths],
            "plain": [["a", "b", "a"][: n % 4] for n in lengths],
            "factor": rng.random(rows),
            "seconds": rng.random(rows) + 0.5,
            "uid": rng.integers(0, users, rows),
        },
        schema_overrides={"tags": pl.List(pl.Int64), "w": pl.List(pl.Float64)},
    )


def make(frame: pl.DataFrame, schema: FeatureSchema, folder: Path, name: str = "s") -> ExampleStore:
    path = folder / f"{name}.parquet"
    frame.write_parquet(path)
    return prepare(path, schema, out=folder / name)


def rows_of(batch: SparseBatch) -> list[tuple[Any, ...]]:
    """Each example as plain data."""
    return [
        (
            tuple(batch.scalar_ids[i].tolist()),
            tuple(batch.dense[i].tolist()),
            float(batch.labels[i]),
            None if batch.weights is None else float(batch.weights[i]),
            None if batch.exposure is None else float(batch.exposure[i]),
            *(
                (
                    tuple(bag.values[bag.offsets[i] : bag.offsets[i + 1]].tolist()),
                    None
                    if bag.weights is None
                    else tuple(bag.weights[bag.offsets[i] : bag.offsets[i + 1]].tolist()),
                )
                for bag in batch.bags.values()
            ),
        )
        for i in range(batch.num_examples)
    ]


def expected(frame: pl.DataFrame, schema: FeatureSchema) -> list[tuple[Any, ...]]:
    """Each row of a log as `rows_of` shows it, straight from the encoder."""
    table = encode(frame.to_arrow().combine_chunks().to_batches()[0], schema).to_pydict()
    return [
        (
            tuple(table["ids"][i]),
            tuple(table["dense"][i]),
            table["label"][i],
            table["weight"][i],
            table["exposure"][i],
            (tuple(table["bag:tags"][i]), tuple(table["bag_weights:tags"][i])),
            (tuple(table["bag:plain"][i]), None),
        )
        for i in range(frame.height)
    ]


def few_values(rows: int, seed: int = 0) -> pl.DataFrame:
    """A log of very few different rows, so that equal ones are in all shards."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.integers(0, 3, rows) for name in ("c1", "c2", "c3", "x1", "uid")}
    frame = pl.DataFrame(columns).with_columns(
        y=pl.col("c1") % 2, x2=pl.lit(0.5), factor=pl.lit(1.0), seconds=pl.lit(1.0)
    )
    lists = {"tags": pl.lit([1]), "w": pl.lit([0.5]), "plain": pl.lit(["a"])}
    return frame.with_columns(**lists)


def parts_of(path: Path, processes: int) -> list[ExampleStore]:
    return [ExampleStore.open(path, part=(i, processes)) for i in range(processes)]


def equal(one: ExampleStore, other: ExampleStore) -> bool:
    """Whether both have the same examples in the same order."""
    if one.num_examples != other.num_examples or (one.input_rows != other.input_rows).any():
        return False
    whole = np.arange(one.num_examples)
    return rows_of(one.read(whole)) == rows_of(other.read(whole))
