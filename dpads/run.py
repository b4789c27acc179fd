"""Runs: a model together with everything that says how it came about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from dpads import run_files as files
from dpads.accounting.ledger import Ledger
from dpads.config import Config, load_config
from dpads.config_toml import to_toml
from dpads.errors import ConfigError
from dpads.evaluation import Metrics, evaluate_model, read_predictions
from dpads.exporting import ONNX, check_exportable, export_model, model_inputs
from dpads.models.base import Description, Model
from dpads.plan import Plan
from dpads.predicting import predict_frame
from dpads.record import (
    ModelMissingError,
    RunRecord,
    describe_model,
    load_model,
    load_statement,
    parameters_of,
)
from dpads.store import ExampleStore

if TYPE_CHECKING:
    import polars as pl
    from torch import nn

    from dpads.accounting.statement import GuaranteeStatement
    from dpads.models.torch_exported import ExportedModel


class Run:
    """A trained model with everything that says how it came about.

    `train` and `Run.load` make runs.

    Attributes:
        plan: the mechanism, resolved.
        record: how the run came about.
        config: how to run it again.
        ledger: every access to private rows.
        metrics: what metrics.json holds: test metrics, and the reference's where one was trained.
        path: the run's folder, or None while it is only in memory.
    """

    def __init__(
        self,
        *,
        model: Model | ModelMissingError,
        plan: Plan,
        record: RunRecord,
        config: Config,
        ledger: Ledger,
        metrics: Mapping[str, Any],
        path: Path | None = None,
    ) -> None:
        self._model = model
        self.plan = plan
        self.record = record
        self.config = config
        self.ledger = ledger
        self.metrics = dict(metrics)
        self.path = path
        self._statement: GuaranteeStatement | None = None

    def __repr__(self) -> str:
        """What it is, without a number from private rows."""
        return f"Run({self.config.model!r}, path={self.path and str(self.path)!r})"

    @property
    def model(self) -> Model:
        """The parameters.

        Raises:
            ConfigError: the model is the user's own, and `load` was not given it.
        """
        if isinstance(self._model, ModelMissingError):
            raise self._model
        return self._model

    @overload
    def predict(self, data: ExampleStore) -> NDArray[np.float32]: ...

    @overload
    def predict(self, data: pl.DataFrame) -> pl.DataFrame: ...

    @overload
    def predict(self, data: pl.LazyFrame) -> pl.LazyFrame: ...

    @overload
    def predict(self, data: Any) -> Any: ...

    def predict(self, data: Any) -> Any:
        """Predicted probabilities, or expected counts (exposure included), in input order.

        Args:
            data: a store of the run's schema; or an Arrow table, record batch or record batch reader, a
                polars frame or lazy frame, or what else speaks Arrow's stream interface, as pandas'
                frames do; with the schema's columns. No label is needed: a store
                prepared with labelled=False will do, and frames need no weight and no user either.

        Returns:
            Of a store, float32[n], one per row of the log, in the log's order. Of anything else the same
            kind, a table in place of pandas' frames, with a column `prediction` appended; readers and
            lazy frames compute when they are read.

        Raises:
            StoreError: the store has another schema.
            ConfigError: the data are of another kind.
            DataError: a column is missing, or a value is outside the schema.

        Guarantees:
            - The rows of a frame are encoded as `prepare` encodes them.
            - Memory does not grow with what a reader or a lazy frame streams.
        """
        if not isinstance(data, ExampleStore):
            return predict_frame(self.model, data)
        data.check_schema(self.model.schema)
        predictions, _, _ = read_predictions(self.model, data)
        # A split's input rows have gaps: what counts is their order.
        result = np.empty_like(predictions)
        result[np.argsort(np.argsort(data.input_rows, kind="stable"))] = predictions
        return result

    def to_torch(self) -> nn.Module:
        """The user's own torch module with the trained parameters; rows of padding are zero.

        Its logit lacks what the model adds: offset, calibration, negatives that were left out.
        `export_torch` has them.

        Raises:
            ConfigError: the model is not a user's torch module.
        """
        from dpads.models import TorchModule

        description = self.model.description
        if not isinstance(description, TorchModule):
            check_exportable(description)
            raise ConfigError(
                f"Expected a run whose model dpads.models.from_torch made, got {description!r}. "
                "export_torch gives any model as a torch module."
            )
        return description.to_torch(self.model)

    def export_torch(self) -> ExportedModel:
        """The model as one torch module that needs nothing of dpads to run.

        Returns:
            A module whose forward takes the columns of a log by name, as `export_inputs` gives them in
            NumPy, and returns what `predict` does, float32[B].

        Raises:
            ConfigError: the model is a function in JAX.
        """
        from dpads.models.torch_exported import ExportedModel

        check_exportable(self.model.description)
        return ExportedModel(self.model)

    def export_onnx(self, path: str | Path) -> Path:
        """Writes the model as an ONNX file, which must not exist; see `dpads export`.

        Raises:
            ConfigError: the file exists, its folder does not, its name does not end with .onnx, or the model
                is a function in JAX.
            MissingDependencyError: ONNX's packages are not installed: `pip install 'dpads[onnx]'`.
            RunError: the tower does something that ONNX does not know.

        Guarantees:
            - The file appears whole or not at all.
        """
        return export_model(self.model, path, ONNX)

    def export_inputs(self, data: Any) -> dict[str, NDArray[Any]]:
        """What an exported model takes for some rows: ids hashed into rows of tables, lists filled up.

        Args:
            data: an Arrow table or record batch, or a polars frame, with the schema's columns.

        Returns:
            Arrays by column, in the order of the model's inputs.

        Raises:
            ConfigError: the data are of another kind.
            DataError: a column is missing, or a value is outside the schema.
        """
        return model_inputs(self.model, data)

    def evaluate(self, data: ExampleStore) -> Metrics:
        """Exact metrics on the rows of a store, weighted by the schema's weight column.

        The rows are read without noise: the ledger gets an entry that says so before they are, and
        the statement in the run's folder is renewed.

        Args:
            data: a store of the run's schema.

        Returns:
            Every metric of the task by name.

        Raises:
            StoreError: the store has another schema, or no labels.

        Guarantees:
            - The ledger's entry is durable before the first row is read.
        """
        expect_store("data", data)
        data.check_schema(self.model.schema)
        data.check_labels()
        known = {
            self.record.test_fingerprint: self._test_rows,
            self.record.train_fingerprint: "train",
        }
        # Rows that this run did not hold out may be rows it was trained on: nothing tells them apart.
        self.announce_evaluation(known.get(data.fingerprint, "train_and_test"))
        return evaluate_model(self.model, data)

    def announce_evaluation(self, rows: str) -> None:
        """Says that rows are about to be read without noise: on the ledger, and in the folder's statement.

        Args:
            rows: which, in the ledger's words.
        """
        note_evaluation(self.ledger, rows)
        if self.path is not None:
            self._write_statement(self.path)

    @property
    def _test_rows(self) -> str:
        """What the ledger calls the run's own test rows."""
        rows = {entry.rows for entry in self.ledger.entries if entry.kind == "evaluation"}
        return "declared_test" if "declared_test" in rows else "test"

    def statement(
        self, on_progress: Callable[[int, int], None] | None = None
    ) -> GuaranteeStatement:
        """What is guaranteed about the model, on which assumptions, and what is not covered.

        Args:
            on_progress: called with how much of a guarantee for users is computed, and of how much: where
                users are capped and the unit is an example, that takes tens of seconds.

        Guarantees:
            - It covers every entry that the ledger has when it is made.
        """
        from dpads.report import build_statement

        self.renew_ledger()
        kept = self._statement
        if kept is None or kept.heads != (self.ledger.head,):
            kept = build_statement(
                self.plan, self.record, self.ledger, created_at=files.now(), on_progress=on_progress
            )
            self._statement = kept
        return kept

    def renew_ledger(self) -> None:
        """Reads the ledger in the run's folder again: somebody else may have read rows, and said so."""
        if self.path is not None:
            self.ledger = Ledger.load(self.path / files.LEDGER)

    def save(self, path: str | Path) -> Path:
        """Writes the run's folder: aside first, then renamed when whole.

        A run that was only in memory is from then on the one in the folder: its further accesses
        go on the ledger there. A run that has a folder already keeps that one; this is a copy.

        Args:
            path: a folder that does not exist.

        Returns:
            The folder.

        Raises:
            ConfigError: the path exists.
        """
        out = Path(path)
        partial, made = files.start_partial(out)
        try:
            self.write(partial)
        except BaseException:
            files.drop_partial(partial, made)
            raise
        files.finish_partial(partial, out)
        if self.path is None:  # from now on the folder says what happens to the run
            self.path, self.ledger = out, Ledger.load(out / files.LEDGER)
        return out

    def write(self, folder: Path, on_statement: Callable[[int, int], None] | None = None) -> None:
        """Writes every file of a run into a folder that exists; `save` makes one, whole or not."""
        files.write_bytes(folder / files.PARAMETERS, *parameters_of(self.model))
        files.write_text(folder / files.MODEL, describe_model(self.model))
        if not (folder / files.LEDGER).exists():
            self.ledger.save(folder / files.LEDGER)
        files.write_text(folder / files.METRICS, files.to_json(self.metrics))
        files.write_text(folder / files.CONFIG, to_toml(self.config))
        self._write_statement(folder, on_statement)
        # Last: where it is, the run is whole.
        files.write_text(folder / files.RUN, files.to_json(self.record.to_dict()))

    def _write_statement(
        self, folder: Path, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Writes the statement in both forms."""
        statement = self.statement(on_progress)
        files.write_text(folder / files.STATEMENT_JSON, statement.to_json())
        files.write_text(folder / files.STATEMENT_MD, statement.to_markdown())

    @classmethod
    def load(cls, path: str | Path, *, model: Description | None = None) -> Run:
        """Reads a run's folder.

        Args:
            path: the folder.
            model: where the run's model is the user's own, what `dpads.models.from_torch` makes of the same
                module, or `from_jax` of the same function: files do not hold that. Without it the run has
                its statement, ledger and metrics, but no model.

        Raises:
            ConfigError: the path is no run, or its model is another one.
            RunError: a file of it is missing or damaged, or a newer version wrote it.
        """
        folder = Path(path)
        if not files.is_run(folder):
            raise ConfigError(
                f"{path}: expected the folder of a run, with {files.RUN} in it. "
                "`dpads train CONFIG.toml --out RUN` makes one." + files.hint_of(folder)
            )
        record = RunRecord.from_dict(files.read_json(folder / files.RUN))
        try:
            own: Model | ModelMissingError = load_model(folder, model)
        except ModelMissingError as error:  # its statement and ledger are there all the same
            own = error
        run = cls(
            model=own,
            plan=Plan.from_dict(record.plan),
            record=record,
            config=load_config(folder / files.CONFIG),
            ledger=Ledger.load(folder / files.LEDGER),
            metrics=files.read_json(folder / files.METRICS),
            path=folder,
        )
        run._statement = load_statement(folder)
        return run


def expect_store(name: str, value: object) -> None:
    """Refuses a path where a store is expected.

    Raises:
        ConfigError: the value is no `ExampleStore`.
    """
    if not isinstance(value, ExampleStore):
        raise ConfigError(
            f"Expected {name} to be an ExampleStore, got {type(value).__name__}. "
            "dpads.prepare(logs, schema, out=...) makes one, dpads.ExampleStore.open(path) opens one."
        )


_WORDS = {
    "train": "training rows",
    "test": "test rows",
    "declared_test": "test rows",
    "train_and_test": "rows that may be training rows",
}


def note_evaluation(ledger: Ledger, rows: str) -> None:
    """Puts an exact read of rows on the ledger, before it happens."""
    ledger.append(
        kind="evaluation",
        description=f"Exact metrics of the model on {_WORDS[rows]}",
        rows=rows,
        treatment="not_covered",
    )
