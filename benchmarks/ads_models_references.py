"""The other side of ads_models.py: models without privacy, of well-known libraries, on the same rows.

    python benchmarks/ads_models_references.py        # into ads_models/references.csv

scikit-learn's logistic and Poisson regression on one-hot columns, and deepctr-torch's DeepFM. Every one reads
the ids that dpads hashed and the split that dpads drew, and is judged by dpads' metrics; penalties and
epochs are the best of those tried, by the mean over the splits.
"""

from __future__ import annotations

import itertools
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import scipy.sparse
from ads_models_tasks import TASKS, base_of
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, PoissonRegressor

import dpads
from dpads.config import parse_config
from dpads.evaluation import Metrics, metrics

HERE: Final = Path(__file__).parent
SPLITS: Final = (1, 2, 3)
PENALTIES: Final = (0.03, 0.1, 0.3, 1.0)
ALPHAS: Final = (1e-6, 1e-5, 1e-4)
DEEP: Final = [(epochs, 1e-3) for epochs in (2, 4)]
KEPT: Final = (
    "auc",
    "auc_loss",
    "pr_auc",
    "log_loss",
    "normalized_entropy",
    "calibration",
    "poisson_log_loss",
)


@dataclass(frozen=True)
class Rows:
    """Rows in memory: ids int32[n, F] (-1 padding), numbers float32[n, K], labels, exposure."""

    ids: NDArray[np.int32]
    dense: NDArray[np.float32]
    labels: NDArray[np.float32]
    exposure: NDArray[np.float32] | None

    def one_hot(self, sizes: list[int]) -> Any:
        """Sparse one-hot columns beside the numbers."""
        bases = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        n, fields = self.ids.shape
        columns = (self.ids + bases).reshape(-1)
        rows = np.repeat(np.arange(n), fields)
        shape = (n, sum(sizes))
        hot = scipy.sparse.csr_matrix(
            (np.ones(len(rows), np.float32), (rows, columns)), shape=shape
        )
        return scipy.sparse.hstack([hot, self.dense]).tocsr()


def rows_of(store: Any) -> Rows:
    """All rows of a store."""
    batches = list(store.scan(65_536))
    exposure = None
    if batches[0].exposure is not None:
        exposure = np.concatenate([batch.exposure for batch in batches])
    return Rows(
        np.concatenate([batch.scalar_ids for batch in batches]),
        np.concatenate([batch.dense for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
        exposure,
    )


def regressions(
    task: str, train: Rows, test: Rows, sizes: list[int]
) -> Iterator[tuple[str, float, Any]]:
    """scikit-learn's regression at several penalties: name, penalty, predictions."""
    x, y = train.one_hot(sizes), train.labels
    seen = test.one_hot(sizes)
    if task == "claims":
        assert train.exposure is not None
        assert test.exposure is not None
        for alpha in ALPHAS:
            model = PoissonRegressor(alpha=alpha, max_iter=300)
            model.fit(x, y / train.exposure, sample_weight=train.exposure)
            yield "scikit-learn Poisson regression", alpha, model.predict(seen) * test.exposure
        return
    for penalty in PENALTIES:
        fitted = LogisticRegression(C=penalty, max_iter=1000).fit(x, y)
        yield "scikit-learn logistic regression", penalty, fitted.predict_proba(seen)[:, 1]


def deepfm(
    train: Rows, test: Rows, sizes: list[int], seed: int
) -> Iterator[tuple[str, float, Any]]:
    """deepctr-torch's DeepFM after several epochs at several rates: name, setting, predictions."""
    # Importing deepctr-torch asks a package index for its newest version; without `requests` it gives up.
    sys.modules.setdefault("requests", types.ModuleType("requests"))
    import torch
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import DeepFM

    def columns(rows: Rows) -> dict[str, Any]:
        found: dict[str, Any] = {f"c{i}": rows.ids[:, i] for i in range(rows.ids.shape[1])}
        return found | {f"n{i}": rows.dense[:, i] for i in range(rows.dense.shape[1])}

    features: list[Any] = [SparseFeat(f"c{i}", n, embedding_dim=8) for i, n in enumerate(sizes)]
    features += [DenseFeat(f"n{i}", 1) for i in range(train.dense.shape[1])]
    for epochs, rate in DEEP:
        model = DeepFM(
            features, features, dnn_hidden_units=(64, 32), seed=seed, l2_reg_embedding=1e-5
        )
        model.compile(torch.optim.Adam(model.parameters(), lr=rate), "binary_crossentropy")
        model.fit(columns(train), train.labels, batch_size=1024, epochs=epochs, verbose=0)
        predicted = model.predict(columns(test), 8192).reshape(-1)
        yield "deepctr-torch DeepFM", epochs + rate, np.clip(predicted, 0.0, 1.0)


def references(task: str, folder: Path) -> pl.DataFrame:
    """Every reference of a task, setting and split."""
    config = parse_config(base_of(task, folder), base=HERE)
    out = folder / f"store-{task}"
    store = (
        dpads.ExampleStore.open(out)
        if out.is_dir()
        else dpads.prepare(list(config.data.train), config.schema, out=out)
    )
    sizes = [config.schema.table_rows[field.table] for field in config.schema.fields]
    found: list[Mapping[str, Any]] = []
    for seed in SPLITS:
        train, test = (rows_of(part) for part in store.split(0.2, seed=seed))
        tried = regressions(task, train, test, sizes)
        if task != "claims":
            tried = itertools.chain(tried, deepfm(train, test, sizes, seed))
        for name, setting, predictions in tried:
            result: Metrics = metrics(config.schema.task, test.labels, predictions)
            found.append(
                {"task": task, "reference": name, "setting": setting, "split": seed}
                | {metric: result.get(metric) for metric in KEPT}
            )
            print(
                task,
                name,
                setting,
                seed,
                result.get("auc"),
                result.get("log_loss"),
                result.get("poisson_log_loss"),
                flush=True,
            )
    return pl.DataFrame(found)


def main() -> None:
    """Trains all references and writes them."""
    warnings.filterwarnings("ignore", category=UserWarning)
    folder = Path("sweeps/ads_models-logs")
    table = pl.concat(
        [references(task, folder) for task in sys.argv[1:] or TASKS], how="diagonal_relaxed"
    )
    (HERE / "ads_models").mkdir(exist_ok=True)
    path = HERE / "ads_models" / "references.csv"
    if path.exists():  # of tasks that are not asked for now
        kept = pl.read_csv(path).filter(~pl.col("task").is_in(table["task"].unique().to_list()))
        table = pl.concat([kept, table], how="diagonal_relaxed")
    table.write_csv(path, float_precision=6)


if __name__ == "__main__":
    main()
