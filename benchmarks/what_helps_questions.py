"""The questions of what_helps.py: arms that differ in some settings of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Settings = Mapping[str, Any]
SCHEDULE: Final = "training.table_optimizer.schedule"
CLIP: Final = "privacy.l2_clip_norm"
BATCH: Final = "training.expected_batch_size"
EPOCHS: Final = "training.epochs"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        words: what is asked.
        arms: {what it is called: settings by dotted key}; the others are compared with the first.
        tasks: asked of which labels of AdKDD 2021.
        rates: learning rates of the tables that every arm is tried at.
        base: settings of all arms.
        schema: {arm: keys of [schema]}, of arms that read another store.
    """

    words: str
    arms: Mapping[str, Settings]
    tasks: tuple[str, ...] = ("click",)
    rates: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: {"click": (0.5, 1.0, 2.0), "sale": (4.0, 8.0, 16.0)}
    )
    base: Settings = field(default_factory=dict)
    schema: Mapping[str, Settings] = field(default_factory=dict)


def mlp(dim: int, hidden: list[int]) -> Settings:
    """A small network; the tower's rate goes with it."""
    return {"model": {"name": "mlp", "embedding_dim": dim, "hidden": hidden}}


NETWORK: Final[Settings] = {
    "training.tower_optimizer": {"name": "adam", "learning_rate": 0.003},
    EPOCHS: 20,
}
# A factor before a table's rows scales their gradients, and their steps by its square.
SCALES: Final = (1.0, 0.5, 2.0)
QUESTIONS: Final[Mapping[str, Question]] = {
    "clip": Question(
        "How long may one example's gradient be?",
        {f"clip norm {norm:g}": {CLIP: norm} for norm in (1.0, 0.5, 2.0, 4.0)},
        tasks=("click", "sale"),
        rates={"click": (0.5, 1.0, 2.0, 4.0), "sale": (1.0, 2.0, 4.0, 8.0, 16.0)},
    ),
    "schedule": Question(
        "Should the tables' rate fall, or their rows decay?",
        {
            "constant": {},
            "linear": {SCHEDULE: "linear"},
            "cosine": {SCHEDULE: "cosine"},
            "decay 1e-3": {"training.table_optimizer.weight_decay": 1e-3},
        },
    ),
    "steps": Question(
        "How large should batches be, and how many passes?",
        {
            f"batches of {batch:,}, {epochs} epochs": {BATCH: batch, EPOCHS: epochs}
            for batch, epochs in (
                (4096, 40),
                (4096, 10),
                (4096, 20),
                (4096, 80),
                (1024, 10),
                (1024, 40),
                (16_384, 40),
                (16_384, 160),
            )
        },
        rates={"click": (0.25, 0.5, 1.0, 2.0, 4.0)},
    ),
    "rows": Question(
        "Do fewer rows, merged by hashing, help?",
        {
            "a table per column, near its cardinality": {},
            "an eighth of the rows": {},
            "at most 256 rows": {},
            "one table of 4,096 rows": {},
        },
        schema={
            "an eighth of the rows": {"divide": 8},
            "at most 256 rows": {"most": 256},
            "one table of 4,096 rows": {"one": 4096},
        },
    ),
    "rates": Question(
        "Should large tables learn at another rate? (Splits differ from arm to arm.)",
        {f"tables of 512 rows and more: {s * s:g} times": {} for s in SCALES},
        rates={"click": (0.5, 1.0, 2.0)},
        schema={
            f"tables of 512 rows and more: {s * s:g} times": {"least_rows": 512, "scaled": s}
            for s in SCALES
        },
    ),
    "split": Question(
        "Should tables have more or less of the clip norm? (Splits differ from arm to arm.)",
        {f"tables' gradients {s:g} times": mlp(8, [64]) for s in SCALES},
        base=NETWORK,
        rates={"click": (1.0, 2.0, 4.0)},
        schema={f"tables' gradients {s:g} times": {"least_rows": 1, "scaled": s} for s in SCALES},
    ),
    "prior": Question(
        "Where should the output start?",
        {
            "at one half": {},
            "at a public rate": {"prior": {"kind": "public", "rate": 0.1}},
            "at a noisy count": {"prior": {"kind": "dp_count"}},
        },
        tasks=("click", "sale"),
    ),
    "recalibration": Question(
        "What does recalibration win, at which share of the budget?",
        {
            "none": {"recalibration": {"kind": "none"}},
            "scale and bias, 1 %": {"recalibration": {"kind": "scale_and_bias", "share": 0.01}},
            "scale and bias, 5 %": {"recalibration": {"kind": "scale_and_bias", "share": 0.05}},
            "buckets, 1 %": {"recalibration": {"kind": "buckets", "share": 0.01}},
            "buckets, 5 %": {"recalibration": {"kind": "buckets", "share": 0.05}},
        },
        tasks=("click", "sale"),
    ),
    "selection": Question(
        "Should rows that few examples read be left out, by a noisy count?",
        {
            "all rows": {},
            **{
                f"share {share:g}, threshold {threshold}": {
                    "selection": {"kind": "noisy_count", "share": share, "threshold": threshold}
                }
                for share, threshold in ((0.05, 100), (0.1, 25), (0.1, 50), (0.1, 100), (0.1, 200))
            },
        },
    ),
    "weights": Question(
        "Should positives weigh more inside the loss?",
        {
            "alike": {},
            "positives 3 times": {"training.positive_weight": 3.0},
            "negatives a third": {"training.negative_weight": 0.33},
        },
        tasks=("sale",),
    ),
    "width": Question(
        "How wide should embeddings be, and the network on them?",
        {
            "width 8, hidden 64": mlp(8, [64]),
            "width 2, hidden 64": mlp(2, [64]),
            "width 4, hidden 64": mlp(4, [64]),
            "width 16, hidden 64": mlp(16, [64]),
            "width 8, hidden 64 and 32": mlp(8, [64, 32]),
        },
        base=NETWORK,
        rates={"click": (1.0, 2.0, 4.0)},
    ),
    "tower": Question(
        "Which optimizer for the tower?",
        {
            "adam, 0.003": {"training.tower_optimizer": {"name": "adam", "learning_rate": 0.003}},
            "adam, 0.01": {"training.tower_optimizer": {"name": "adam", "learning_rate": 0.01}},
            "adambc, 0.003": {
                "training.tower_optimizer": {"name": "adambc", "learning_rate": 0.003}
            },
            "adambc, 0.01": {"training.tower_optimizer": {"name": "adambc", "learning_rate": 0.01}},
            "sgd, 0.3": {"training.tower_optimizer": {"name": "sgd", "learning_rate": 0.3}},
        },
        base={**mlp(8, [64]), EPOCHS: 20},
        rates={"click": (1.0, 2.0, 4.0)},
    ),
    "adambc": Question(
        "Does DP-AdamBC win at smaller rates?",
        {
            "adam, 0.003": {"training.tower_optimizer": {"name": "adam", "learning_rate": 0.003}},
            **{
                f"adambc, {rate:g}": {
                    "training.tower_optimizer": {"name": "adambc", "learning_rate": rate}
                }
                for rate in (0.001, 0.0003)
            },
        },
        base={**mlp(8, [64]), EPOCHS: 20},
        rates={"click": (1.0, 2.0)},
    ),
}
