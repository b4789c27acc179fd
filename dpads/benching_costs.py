"""What a configuration takes of this machine's time, from short measurements on made-up batches."""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import numpy as np

from dpads.benching_trainer import TimedTrainer, made_up_batches, step_medians
from dpads.models.base import Description
from dpads.schema import FeatureSchema
from dpads.training import Performance, TrainingSettings

LARGEST_SAMPLE: Final = 2**28  # bytes of tables beyond which smaller ones stand in for them
FINISHED_SAMPLE: Final = 2**26  # likewise where rows are made and finished
FINISHED_BATCH: Final = 64  # examples in the batches of tables that are made and finished
WRITTEN_AT_A_TIME: Final = 2**24  # bytes
MOST_WRITTEN: Final = 2**31


def private_step_seconds(
    description: Description,
    schema: FeatureSchema,
    settings: TrainingSettings,
    *,
    expected_batch_size: int,
    num_examples: int,
    noise_multiplier: float,
    l2_clip_norm: float,
    seconds: float,
) -> float | None:
    """The median time of a private step; large tables are measured by smaller ones.

    Args:
        description: the model.
        schema: the columns.
        settings: optimizers and table noise.
        expected_batch_size: examples in a batch.
        num_examples: how many a batch is drawn from.
        noise_multiplier: of the plan.
        l2_clip_norm: of the plan.
        seconds: how long to measure, beside building the model.

    Returns:
        Seconds, or None where no smaller tables can stand in: under dense noise the size decides, and
        embedding_dim = "auto" makes smaller tables narrower.
    """
    sample = sampled_schema(description, schema)
    if sample is None or (sample is not schema and settings.table_noise != "lazy"):
        return None
    begin = time.monotonic()
    trainer = TimedTrainer(
        description,
        sample,
        settings,
        expected_batch_size=expected_batch_size,
        num_examples=num_examples,
        noise_multiplier=noise_multiplier,
        l2_clip_norm=l2_clip_norm,
    )
    batches = made_up_batches(sample, expected_batch_size)
    return step_medians({"private": trainer}, batches, begin + seconds)["private"]


def table_seconds(
    description: Description, schema: FeatureSchema, settings: TrainingSettings
) -> float | None:
    """The time in which all rows are made before the first step and finished after the last one.

    It is measured once and grows with the tables: large ones are measured by smaller ones.

    Args:
        description: the model.
        schema: the columns.
        settings: optimizers and table noise.

    Returns:
        Seconds, or None where no smaller tables can stand in, as for `private_step_seconds`.
    """
    sample = sampled_schema(description, schema, most=FINISHED_SAMPLE)
    if sample is None:
        sample = sampled_schema(description, schema)
    if sample is None:
        return None

    def made_and_finished(at: FeatureSchema) -> float:
        begin = time.perf_counter()
        trainer = TimedTrainer(
            description,
            at,
            settings,
            expected_batch_size=FINISHED_BATCH,
            num_examples=2 * FINISHED_BATCH,
            noise_multiplier=1.0,
        )
        making = time.perf_counter() - begin
        trainer.seconds(list(islice(made_up_batches(at, FINISHED_BATCH), 2)))
        begin = time.perf_counter()
        trainer.finish()
        return making + time.perf_counter() - begin

    # Small tables first: they load the kernels.
    smallest = made_and_finished(replace(schema, buckets=dict.fromkeys(schema.table_rows, 2)))
    larger = table_bytes(description, schema) / table_bytes(description, sample)
    found = made_and_finished(sample)
    if settings.backend == "jax":  # each model compiles programs, however large its tables are
        return smallest + larger * max(found - smallest, 0.0)
    return larger * found


@dataclass(frozen=True, kw_only=True)
class DiskRates:
    """How fast files of a run are written.

    Attributes:
        write: seconds a byte, until it has reached the disk.
        checksum: seconds a byte.
    """

    write: float
    checksum: float

    def seconds(self, model: int, state: int, training: float) -> float:
        """The time in which a run's model is written, with its checksum, and checkpoints before it.

        Args:
            model: bytes of the model.
            state: bytes of a checkpoint.
            training: seconds that all steps take, during which checkpoints are written too.
        """
        checkpoints = 1 + int(training // Performance().checkpoint_seconds)
        return model * (self.checksum + self.write) + checkpoints * state * self.write


def disk_rates(description: Description, schema: FeatureSchema, *, seconds: float) -> DiskRates:
    """Measures the disk of the present folder, where runs go, with no more bytes than the model has.

    Args:
        description: the model.
        schema: the columns.
        seconds: how long to measure.
    """
    most = min(table_bytes(description, schema), MOST_WRITTEN)
    block = np.random.default_rng(0).bytes(min(WRITTEN_AT_A_TIME, most))
    begin = time.perf_counter()
    hashlib.sha256(block)
    checksum = (time.perf_counter() - begin) / len(block)
    # Where nothing can be written to the present folder, the run will go elsewhere.
    folder = "." if os.access(".", os.W_OK) else None
    times: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        while not times or (len(times) * len(block) < most and sum(times) < seconds):
            begin = time.perf_counter()
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begin)
    # The first part often goes faster than the disk, and is left out.
    return DiskRates(
        write=statistics.mean(times[len(times) // 2 :]) / len(block), checksum=checksum
    )


def table_bytes(description: Description, schema: FeatureSchema) -> int:
    """What all rows of all tables take."""
    return sum(4 * group.num_rows * group.dim for group in description.layout(schema).groups)


def sampled_schema(
    description: Description, schema: FeatureSchema, *, most: int = LARGEST_SAMPLE
) -> FeatureSchema | None:
    """The schema, its buckets scaled down to `most` bytes of tables; None where that changes the tower."""
    whole = table_bytes(description, schema)
    if whole <= most:
        return schema
    scaled = {
        name: max(min(rows, 1000), rows * most // whole) for name, rows in schema.table_rows.items()
    }
    smaller = replace(schema, buckets=scaled)
    same_tower = description.layout(smaller).width == description.layout(schema).width
    return smaller if same_tower else None
