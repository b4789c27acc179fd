"""TalkingData, a real log whose ip stands for a user: trains, states a guarantee for users, verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpads

pytestmark = pytest.mark.slow

BUCKETS = {"app": 500, "device": 200, "os": 200, "channel": 200}
CAP = 4


@pytest.fixture(scope="module")
def store(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dpads.ExampleStore:
    schema = dpads.FeatureSchema(
        task="cvr", label="is_attributed", categorical=list(BUCKETS), buckets=BUCKETS, user="ip"
    )
    out = tmp_path_factory.mktemp("talkingdata") / "store"
    return dpads.prepare(real_data / "talkingdata.parquet", schema, out=out)


def train(store: dpads.ExampleStore, out: Path, **privacy: Any) -> dpads.Run:
    return dpads.train(
        store,
        model=dpads.models.Logistic(),
        privacy=dpads.PrivacySpec(max_examples_per_unit=CAP, **privacy),
        expected_batch_size=1024,
        epochs=5,
        test=0.2,
        table_optimizer=dpads.Sgd(learning_rate=30.0),
        statement={"tuning": "none", "asserted_by": "Ann Example, lead"},
        out=out,
    )


def test_users_by_ip_train_and_their_guarantee_verifies(
    store: dpads.ExampleStore, tmp_path: Path
) -> None:
    run = train(store, tmp_path / "run", epsilon=3.0, unit="user")
    train_rows, _ = store.split(0.2, seed=7)
    assert run.plan.dataset_size == train_rows.num_users
    assert np.diff(train_rows.capped(CAP, seed=7).user_offsets).max() == CAP
    statement = run.statement()
    assert "for one user (at most 4 rows" in statement.headline
    assert statement.epsilon == 3.0
    # 40 installs in the test rows leave an AUC uncertain by 0.03
    assert run.metrics["auc"] > 0.9
    assert dpads.verify(tmp_path / "run").ok


def test_rows_capped_by_ip_train_and_users_are_a_group(
    store: dpads.ExampleStore, tmp_path: Path
) -> None:
    run = train(store, tmp_path / "run", epsilon=3.0)
    example, user = (
        next(g for g in run.statement().data["guarantees"] if g["id"] == name)
        for name in ("G1", "G2")
    )
    assert (example["unit"], user["unit"], user["group_size"]) == ("example", "user", CAP)
    assert 3.0 == example["value"]["epsilon"] < user["value"]["epsilon"] < 20.0
    assert dpads.verify(tmp_path / "run").ok
