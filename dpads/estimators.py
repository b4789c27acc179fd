"""Estimators for scikit-learn: `dpads.train` and `Run.predict` behind fit and predict, and nothing else.

Every `fit` trains one model under the whole promise of `privacy`, and so spends it. What tries several
models on the same rows (GridSearchCV, cross_val_score, learning_curve) fits many, chooses by exact
scores, and sums up nothing: the chosen model is NOT private at the epsilon that was asked for. Use
`dpads.tune`, which accounts for the choice, or `dpads.sweep`, which states what all models reveal together.
Steps of a Pipeline that learn from rows (scalers, encoders, vocabularies) are not covered either: what a
column becomes belongs into the schema, whose constants are public.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from dpads._validate import expect_kind
from dpads.errors import ConfigError, DataError
from dpads.models.base import Description
from dpads.optimizers import Adam, Optimizer, Sgd
from dpads.plan import PrivacySpec
from dpads.predicting import COLUMN
from dpads.preparing import prepare
from dpads.private_sums_config import PriorConfig, RecalibrationConfig, SelectionConfig
from dpads.run import Run
from dpads.run_training import train
from dpads.schema import FeatureSchema
from dpads.training import Performance


class _Estimator(BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """What both estimators share: parameters, fitting, predicting."""

    def __init__(
        self,
        schema: FeatureSchema | None = None,
        model: Description | None = None,
        privacy: PrivacySpec | None = None,
        *,
        l2_clip_norm: float = 1.0,
        expected_batch_size: int = 1024,
        epochs: float = 5,
        backend: Literal["torch", "jax"] = "torch",
        table_noise: Literal["lazy", "dense"] = "lazy",
        table_optimizer: Optimizer = Sgd(),  # noqa: B008 (frozen)
        tower_optimizer: Optimizer = Adam(),  # noqa: B008 (frozen)
        init_seed: int = 7,
        noise_seed: int | None = None,
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
        prior: PriorConfig = PriorConfig(),  # noqa: B008 (frozen)
        recalibration: RecalibrationConfig = RecalibrationConfig(),  # noqa: B008 (frozen)
        selection: SelectionConfig = SelectionConfig(),  # noqa: B008 (frozen)
        performance: Performance = Performance(),  # noqa: B008 (frozen)
        out: str | Path | None = None,
    ) -> None:
        self.schema = schema
        self.model = model
        self.privacy = privacy
        self.l2_clip_norm = l2_clip_norm
        self.expected_batch_size = expected_batch_size
        self.epochs = epochs
        self.backend = backend
        self.table_noise = table_noise
        self.table_optimizer = table_optimizer
        self.tower_optimizer = tower_optimizer
        self.init_seed = init_seed
        self.noise_seed = noise_seed
        self.positive_weight = positive_weight
        self.negative_weight = negative_weight
        self.prior = prior
        self.recalibration = recalibration
        self.selection = selection
        self.performance = performance
        self.out = out

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:  # noqa: N803
        """Trains one model, and spends the promise.

        Args:
            X: an Arrow table, a polars frame (or another that speaks Arrow, as pandas' do), or a matrix whose
                columns are called x0, x1, ...; with the schema's columns but the label.
            y: the label, one per row.
            sample_weight: factors of the rows' losses; the schema must name a weight.

        Returns:
            The estimator, with the run in `run_`.

        Raises:
            ConfigError: a parameter is missing or out of range.
            DataError: a column is missing, or a value is outside the schema.
        """
        import pyarrow as pa

        schema, model, privacy = self._checked()
        table = self._labelled(as_table(X), schema, y, sample_weight)
        names = [name for name in table.column_names if name not in (schema.label, schema.weight)]
        # A store is what training reads; it is private and gone afterwards.
        with tempfile.TemporaryDirectory(prefix="dpads-") as name:
            log = Path(name) / "rows.arrow"
            with pa.ipc.new_stream(str(log), table.schema) as stream:
                stream.write_table(table)
            del table
            try:
                store = prepare(log, schema, out=Path(name) / "store")
            except DataError as error:  # of a file that nobody knows of
                raise DataError(str(error).replace(str(log), "X")) from None
            log.unlink()
            self.run_: Run = train(
                store,
                model=model,
                privacy=privacy,
                l2_clip_norm=self.l2_clip_norm,
                expected_batch_size=self.expected_batch_size,
                epochs=self.epochs,
                backend=self.backend,
                table_noise=self.table_noise,
                table_optimizer=self.table_optimizer,
                tower_optimizer=self.tower_optimizer,
                init_seed=self.init_seed,
                noise_seed=self.noise_seed,
                positive_weight=self.positive_weight,
                negative_weight=self.negative_weight,
                prior=self.prior,
                recalibration=self.recalibration,
                selection=self.selection,
                performance=self.performance,
                out=self.out,
            )
        self.n_features_in_ = len(names)
        if not isinstance(X, np.ndarray):  # a matrix has no names
            self.feature_names_in_ = np.array(names, dtype=object)
        return self

    def _checked(self) -> tuple[FeatureSchema, Description, PrivacySpec]:
        """The parameters that have no default."""
        for name, kind, example in (
            ("schema", FeatureSchema, 'dpads.FeatureSchema(task="ctr", label="click", ...)'),
            ("model", Description, "dpads.models.Logistic()"),
            ("privacy", PrivacySpec, "dpads.PrivacySpec(epsilon=3.0)"),
        ):
            expect_kind(name, getattr(self, name), kind, example)
        schema = cast("FeatureSchema", self.schema)
        wanted = ("count",) if isinstance(self, RegressorMixin) else ("ctr", "cvr")
        if schema.task not in wanted:
            raise ConfigError(
                f'Expected a schema of task {" or ".join(wanted)}, got "{schema.task}". '
                "DPClassifier is for clicks and conversions, DPCountRegressor for counts."
            )
        return schema, cast("Description", self.model), cast("PrivacySpec", self.privacy)

    def _labelled(
        self, table: Any, schema: FeatureSchema, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> Any:
        """The rows with their labels, and their weights where they are given."""
        if y is None:
            raise DataError(
                "This estimator requires y to be passed, but the target y is None: give one label for "
                "each row of X."
            )
        columns = {schema.label: np.asarray(y)}
        if sample_weight is not None:
            if schema.weight is None:
                raise ConfigError(
                    "sample_weight is given, and the schema names no weight. Add weight = "
                    '"sample_weight" to the schema: weights enter the loss before it is clipped.'
                )
            columns[schema.weight] = np.asarray(sample_weight)
        for name, values in columns.items():
            if values.ndim == 2 and values.shape[1] == 1:
                values = values[:, 0]
            if values.shape != (table.num_rows,):
                raise DataError(
                    f'"{name}": expected {table.num_rows} values, one per row of X, got shape '
                    f"{list(values.shape)}."
                )
            if name in table.column_names:
                table = table.drop_columns(name)
            table = table.append_column(name, [_array(values, name)])
        return table

    def _predictions(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Predicted probabilities, or expected counts, float32[n]."""
        check_is_fitted(self, "run_")
        return cast("NDArray[np.float32]", self.run_.predict(as_table(X))[COLUMN].to_numpy())

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: two classes, noise in every fit."""
        tags = super().__sklearn_tags__()
        tags.non_deterministic = True
        tags.input_tags.allow_nan = False
        if tags.classifier_tags is not None:
            tags.classifier_tags.multi_class = False
        return tags

    def _note_score(self) -> None:
        """Puts an exact read of labels on the ledger: rows to score may be rows that were trained on."""
        check_is_fitted(self, "run_")
        self.run_.renew_ledger()
        self.run_.announce_evaluation("train_and_test")


class DPClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc] # scikit-learn ships no types
    """A classifier of clicks or conversions for scikit-learn, trained under differential privacy.

    Every `fit` spends the whole promise: see the warning about searches in `dpads.estimators`.

    Args:
        schema: what each column becomes; its label names what `y` stands for.
        model: what to train, such as `dpads.models.Logistic()`.
        privacy: the promise of one fit.
        l2_clip_norm: this and all others are those of `dpads.train`.

    Attributes:
        run_: the run: model, statement, ledger.
        classes_: 0 and 1, whatever labels there were.

    Examples:
        >>> import dpads
        >>> log = dpads.synthetic.click_log(2000, seed=0)
        >>> model = dpads.DPClassifier(
        ...     log.schema, dpads.models.Logistic(), dpads.PrivacySpec(epsilon=3.0), epochs=1
        ... )
        >>> X, y = log.table.drop_columns("click"), log.table["click"].to_numpy()
        >>> model.fit(X, y).predict_proba(X[:3]).shape
        (3, 2)
        >>> model.run_.statement().epsilon <= 3.0
        True
    """

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:  # noqa: N803
        """Trains one model, and spends the promise; see `_Estimator.fit`.

        Args:
            X: an Arrow table, a polars frame (or another that speaks Arrow, as pandas' do), or a matrix whose
                columns are called x0, x1, ...; with the schema's columns but the label.
            y: 0 or 1, one per row.
            sample_weight: factors of the rows' losses; the schema must name a weight.
        """
        super().fit(X, y, sample_weight)
        # Public: which classes there are is never read off the rows.
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Probabilities of no click and of a click, float64[n, 2]."""
        p = self._predictions(X).astype(np.float64)
        return np.stack([1.0 - p, p], axis=1)

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Logits, float64[n]."""
        p = self._predictions(X).astype(np.float64)
        tiny = float(np.finfo(np.float32).tiny)
        return np.log(np.maximum(p, tiny)) - np.log(np.maximum(1.0 - p, tiny))

    def predict(self, X: Any) -> NDArray[np.int64]:  # noqa: N803
        """The likelier class, int64[n]; of rare clicks that is hardly ever 1: use `predict_proba`."""
        check_is_fitted(self, "run_")
        return self.classes_[(self._predictions(X) > 0.5).astype(np.int64)]

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:  # noqa: N803
        """Area under the ROC curve, as a share of 1: an exact read of `y`, which the ledger then says.

        Accuracy, which classifiers of scikit-learn score by, says nothing where clicks are rare.
        """
        from sklearn.metrics import roc_auc_score

        self._note_score()
        p = self._predictions(X)
        return float(roc_auc_score(np.asarray(y), p, sample_weight=sample_weight))


class DPCountRegressor(RegressorMixin, _Estimator):  # type: ignore[misc] # scikit-learn ships no types
    """A Poisson regressor of counts for scikit-learn, trained under differential privacy.

    Every `fit` spends the whole promise: see the warning about searches in `dpads.estimators`.

    Args:
        schema: what each column becomes; its label names what `y` stands for, its exposure a column of X.
        model: what to train, such as `dpads.models.Logistic()`.
        privacy: the promise of one fit.
        l2_clip_norm: this and all others are those of `dpads.train`.

    Attributes:
        run_: the run: model, statement, ledger.
    """

    def predict(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Expected counts over each row's exposure, float64[n]."""
        return self._predictions(X).astype(np.float64)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:  # noqa: N803
        """Share of the Poisson deviance that is explained: an exact read of `y`, which the ledger then says.

        1 is perfect, 0 as good as the rows' mean; what scikit-learn's PoissonRegressor scores by.
        """
        from sklearn.metrics import d2_tweedie_score

        self._note_score()
        means = np.maximum(self.predict(X), float(np.finfo(np.float32).tiny))
        return float(d2_tweedie_score(np.asarray(y), means, sample_weight=sample_weight, power=1))


def as_table(data: Any) -> Any:
    """Rows as an Arrow table.

    Args:
        data: an Arrow table or record batch, a polars frame, anything that speaks Arrow's stream interface,
            or a matrix of numbers, whose columns are called x0, x1, ...

    Raises:
        ConfigError: the data are of another kind.
    """
    import polars as pl
    import pyarrow as pa

    if isinstance(data, pl.LazyFrame):
        data = data.collect()
    if isinstance(data, pl.DataFrame):
        return data.to_arrow()
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    if isinstance(data, np.ndarray) and data.ndim == 2:
        columns = {f"x{k}": _array(data[:, k], f"x{k}") for k in range(data.shape[1])}
        return pa.table(columns)
    raise ConfigError(
        f"Expected rows as an Arrow table, a frame of polars or pandas, or a matrix, got "
        f"{type(data).__name__}. polars.read_parquet(path) reads a file."
    )


def _array(values: NDArray[Any], name: str) -> Any:
    """A column of a NumPy array."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError):
        raise DataError(f'"{name}": expected numbers or text, got {values.dtype}.') from None
