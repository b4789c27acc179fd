"""The demonstration: a synthetic log whose truth is known, so that the models can be judged."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from dpads import synthetic
from dpads.accounting.statement import GuaranteeStatement
from dpads.evaluation import metrics
from dpads.models import Logistic
from dpads.optimizers import Adam, Sgd
from dpads.plan import PrivacySpec
from dpads.preparing import prepare
from dpads.run_job import RunProgress
from dpads.run_training import train

EXAMPLES: Final = 250_000
TRAINED_ON: Final = 200_000
SEED: Final = 2026
FACTS: Final = {
    "model_name": "dpads demo",
    "intended_use": "a demonstration",
    "unit_definition": "one made-up ad impression",
    "upstream": "nothing: the log is synthetic",
    "tuning": "public_data",
}


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration shows.

    Attributes:
        metrics: of the private model, with the reference's under "reference".
        truth: of the true click probabilities, which no model can beat but by luck.
        statement: what is guaranteed about the private model.
    """

    metrics: Mapping[str, Any]
    truth: Mapping[str, Any]
    statement: GuaranteeStatement


def run_demo(on_progress: Callable[[RunProgress], None]) -> Demonstration:
    """Makes a log, trains with and without privacy, and computes metrics of both and of the truth."""
    log = synthetic.click_log(EXAMPLES, seed=SEED)
    with tempfile.TemporaryDirectory(prefix="dpads-demo-") as name:
        folder = Path(name)
        parts = {"train": log.table[:TRAINED_ON], "test": log.table[TRAINED_ON:]}
        stores = {}
        for part, table in parts.items():
            pq.write_table(table, folder / f"{part}.parquet")
            stores[part] = prepare(folder / f"{part}.parquet", log.schema, out=folder / part)
        run = train(
            stores["train"],
            model=Logistic(),
            privacy=PrivacySpec(epsilon=3.0, dataset_size=TRAINED_ON),
            expected_batch_size=4096,
            epochs=10,
            l2_clip_norm=6.0,
            table_optimizer=Sgd(learning_rate=5.0),
            tower_optimizer=Adam(learning_rate=0.02),
            test=stores["test"],
            reference=True,
            statement=FACTS,
            on_progress=on_progress,
        )
        labels = parts["test"][log.schema.label].to_numpy()
        truth = metrics("ctr", labels, log.probabilities[TRAINED_ON:])
        return Demonstration(run.metrics, truth.to_dict(), run.statement())
