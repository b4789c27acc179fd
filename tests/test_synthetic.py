from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dpads.errors import ConfigError
from dpads.preparing import prepare
from dpads.synthetic import SyntheticLog, click_log


@pytest.fixture(scope="module")
def log() -> SyntheticLog:
    return click_log(200_000, seed=0)


def digest(log: SyntheticLog) -> str:
    text = json.dumps([log.table.to_pydict(), log.probabilities.tolist()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def test_one_seed_gives_one_log_everywhere() -> None:
    # Committed: it must not change with the machine or the versions of libraries.
    assert digest(click_log(3000, seed=5)) == (
        "9ff1e7182e3f3e3350c8648bb526cc475f303aeab1b675be4af046bab02fbd3a"
    )
    assert digest(click_log(3000, seed=6)) != digest(click_log(3000, seed=5))


def test_clicks_are_about_three_percent_and_follow_the_truth(log: SyntheticLog) -> None:
    clicks = log.table["click"].to_numpy()
    p = log.probabilities
    assert 0.025 < p.mean() < 0.035
    # The number of clicks is a sum of independent Bernoulli variables.
    assert abs(clicks.sum() - p.sum()) < 5 * np.sqrt((p * (1 - p)).sum())
    for low, high in ((0.0, 0.01), (0.01, 0.05), (0.05, 0.2), (0.2, 1.0)):
        part = (p >= low) & (p < high)
        deviation = np.sqrt((p * (1 - p))[part].sum())
        assert abs(clicks[part].sum() - p[part].sum()) < 5 * deviation
    assert 0.79 < roc_auc_score(clicks, p) < 0.83


def test_vocabularies_are_long_tailed(log: SyntheticLog) -> None:
    for name in ("site", "campaign"):
        counts = np.sort(np.unique(log.table[name].to_numpy(), return_counts=True)[1])[::-1]
        assert counts[:20].sum() > 0.2 * counts.sum()
        assert len(counts) > 2900
        assert np.median(counts) < counts.mean() / 2


def test_lists_repeat_ids_and_may_be_empty(log: SyntheticLog) -> None:
    lists = log.table["interests"].to_pylist()[:20_000]
    assert any(len(set(items)) < len(items) for items in lists)
    assert any(not items for items in lists)
    assert max(map(len, lists)) == 6


def test_a_logistic_model_without_privacy_comes_near_the_truth(tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    log = click_log(120_000, seed=1)
    store = prepare(log.write(tmp_path / "log.parquet"), log.schema, out=tmp_path / "store")
    batch = store.read(np.arange(len(store)))
    count, buckets = batch.num_examples, 10_000
    blocks = [
        sparse.csr_matrix((np.ones(count), ids, np.arange(count + 1)), (count, buckets))
        for ids in batch.scalar_ids.T
    ]
    bag = batch.bags["interests"]
    ones = np.ones(len(bag.values))
    blocks.append(sparse.csr_matrix((ones, bag.values, bag.offsets), (count, buckets)))
    features = sparse.hstack([*blocks, batch.dense]).tocsr()
    train, test = slice(0, 100_000), slice(100_000, count)
    model = LogisticRegression(C=0.1, max_iter=300).fit(features[train], batch.labels[train])
    reached = roc_auc_score(batch.labels[test], model.decision_function(features[test]))
    truth = roc_auc_score(batch.labels[test], log.probabilities[test])
    assert truth - 0.03 < reached < truth + 0.005


def test_counts_alone_carry_most_of_the_signal(log: SyntheticLog) -> None:
    names = ["past_clicks", "past_views", "page_depth"]
    values = np.stack([log.table[name].fill_null(0).to_numpy() for name in names], axis=1)
    clicks = log.table["click"].to_numpy()
    model = LogisticRegression().fit(np.log1p(values[:100_000]), clicks[:100_000])
    scores = model.decision_function(np.log1p(values[100_000:]))
    assert roc_auc_score(clicks[100_000:], scores) > 0.70


def test_a_user_column_for_user_level_privacy(log: SyntheticLog) -> None:
    counts = np.unique(log.table["user"].to_numpy(), return_counts=True)[1]
    assert len(counts) > 20_000
    assert counts.max() > 20


@pytest.mark.parametrize(("rows", "seed"), [(0, 0), (-5, 0), (10, -1)])
def test_sizes_and_seeds_out_of_range(rows: int, seed: int) -> None:
    with pytest.raises(ConfigError):
        click_log(rows, seed=seed)


def test_one_example() -> None:
    assert click_log(1, seed=0).table.num_rows == 1
