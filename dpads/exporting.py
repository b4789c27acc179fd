"""Export: a trained model as files that other programs run, without dpads.

`.onnx` is for ONNX runtimes, `.pt2` for `torch.export.load`. Both take the columns of a log by name (see
`dpads.models.torch_exported`), ids as rows of tables: what hashes them is described in the file, under
"dpads". Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

import dpads
from dpads.batch import PADDING
from dpads.encoding import check_columns, encode, numbers
from dpads.errors import ConfigError, MissingDependencyError, RunError
from dpads.hashing import table_seed
from dpads.models import Description, JaxFunction, Model
from dpads.predicting import batch_of, record_batch, without_outcome
from dpads.run_files import new_file
from dpads.schema import FeatureSchema

if TYPE_CHECKING:
    import torch

ONNX: Final = ".onnx"
TORCH: Final = ".pt2"
METADATA: Final = "dpads"
OUTPUT: Final = "prediction"
ONE_FILE: Final = 1 << 30  # bytes of parameters; protobuf ends at 2 GiB
SAMPLE_ROWS: Final = 5


def model_inputs(model: Model, data: Any) -> dict[str, NDArray[Any]]:
    """What an exported model takes for some rows of a log.

    Args:
        model: the model that was exported; its schema says how ids are hashed.
        data: an Arrow table or record batch, or a polars frame, with the schema's columns; no label,
            weight or user is needed.

    Returns:
        Arrays by column, as `dpads.models.torch_exported` describes them.

    Raises:
        ConfigError: the data are of another kind.
        DataError: a column is missing or of a wrong type, or a value is outside the schema.
    """
    schema = without_outcome(model.schema)
    raw = record_batch(data)
    check_columns(raw.schema.names, schema, labelled=False)
    batch = batch_of(encode(raw, schema, labelled=False), schema)
    inputs: dict[str, NDArray[Any]] = {}
    for place, name in enumerate(batch.field_names):
        inputs[name] = batch.scalar_ids[:, place].astype(np.int64)
    for item in schema.fields:
        if item.is_bag:
            bag = batch.bags[item.name]
            lengths = np.diff(bag.offsets)
            shape = (batch.num_examples, max(int(lengths.max(initial=1)), 1))
            inside = np.arange(shape[1]) < lengths[:, None]
            ids = np.full(shape, PADDING, np.int64)
            ids[inside] = bag.values
            inputs[item.name] = ids
            if item.weights is not None:
                factors = np.zeros(shape, np.float32)
                factors[inside] = bag.weights
                inputs[item.weights] = factors
    for numeric in schema.numeric:
        column = raw.column(numeric.column)
        inputs[numeric.column] = np.array(numbers(column, numeric.column, "features"))
    if schema.exposure is not None:
        inputs[schema.exposure] = np.array(batch.exposure)
    return inputs


def describe_inputs(schema: FeatureSchema) -> list[dict[str, Any]]:
    """The inputs of an exported model, in order, as plain data."""
    rows, described = schema.table_rows, []
    for item in schema.fields:
        table = {"table": item.table, "rows": rows[item.table], "seed": table_seed(item.table)}
        shape = ["B", "L"] if item.is_bag else ["B"]
        described.append({"name": item.name, "type": "int64", "shape": shape, **table})
        if item.weights is not None:
            described.append({"name": item.weights, "type": "float32", "shape": ["B", "L"]})
    described += [
        {"name": numeric.column, "type": "float64", "shape": ["B"]} for numeric in schema.numeric
    ]
    if schema.exposure is not None:
        described.append({"name": schema.exposure, "type": "float32", "shape": ["B"]})
    return described


def describe(model: Model) -> str:
    """What a file says about itself, as JSON."""
    return json.dumps(
        {
            "dpads": dpads.__version__,
            "task": model.schema.task,
            "model": model.description.to_dict(),
            "inputs": describe_inputs(model.schema),
            "ids": "row 0 for what is missing; else 1 + xxh3_64(UTF-8 text, seed) mod (rows - 1), integers "
            "as decimal text; -1 is padding",
            "output": OUTPUT,
        }
    )


def check_exportable(description: Description) -> None:
    """Refuses models that only JAX can run.

    Raises:
        ConfigError: it is a function in JAX.
    """
    if isinstance(description, JaxFunction):
        raise ConfigError(
            f"Expected a model that torch can run, got the JAX function {description.function}, which no "
            "export holds. Predict with Run.predict, or serve the function with the parameters in "
            "run.model.dense and the rows in run.model.tables."
        )


def export_model(model: Model, path: str | Path, suffix: str) -> Path:
    """Writes a model for other programs.

    Args:
        model: whose parameters.
        path: a file that does not exist. Parameters beyond 1 GB of an ONNX model stand beside it, in a
            file whose name has .data after it.
        suffix: how the file's name must end, which says the format: ".onnx" or ".pt2".

    Returns:
        The path.

    Raises:
        ConfigError: the file exists, its folder does not, its name ends otherwise, or the model is a
            function in JAX.
        MissingDependencyError: ONNX's packages are not installed.
        RunError: the tower does something that the format does not know.

    Guarantees:
        - The files appear whole or not at all.
        - Nothing is pickled.
    """
    out = Path(path)
    check_exportable(model.description)
    new_file(out, suffix=suffix)
    new_file(_beside(out))
    if suffix == ONNX:
        check_onnx()
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        aside = Path(name) / out.name
        try:
            with _quietly():
                (_write_onnx if suffix == ONNX else _write_torch)(model, aside)
        except (MissingDependencyError, OSError):
            raise
        except Exception as error:
            raise RunError(f"The model does not export to {suffix}: {_reason(error)}") from error
        if _beside(aside).exists():
            _beside(aside).replace(_beside(out))
        aside.replace(out)
    return out


def _reason(error: Exception) -> str:
    """What an exporter met, and what to do about it."""
    text = str(error).strip()
    if "specialized" in text:
        return (
            "its forward makes the number of rows a constant, as len(x) and int(x.shape[0]) do. Write "
            "x.shape[0], or reshape by the other dimensions."
        )
    first = text.partition("\n")[0][:200]
    return (
        f"{first} Use layers that torch.export knows, without control flow that depends on values."
    )


def check_onnx() -> None:
    """Checks that ONNX models can be written.

    Raises:
        MissingDependencyError: a package is not installed.
    """
    import importlib.util

    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"ONNX models need the package {package}. Install it: pip install 'dpads[onnx]'"
            )


def _beside(path: Path) -> Path:
    """Where parameters go that do not fit into an ONNX file."""
    return path.with_name(path.name + ".data")


def _sample(schema: FeatureSchema) -> dict[str, torch.Tensor]:
    """Made-up inputs to trace with; nothing of them stays in the file."""
    import torch

    kinds = {"int64": torch.int64, "float32": torch.float32, "float64": torch.float64}
    sample = {}
    for item in describe_inputs(schema):
        shape = [SAMPLE_ROWS, 3][: len(item["shape"])]
        sample[item["name"]] = torch.ones(shape, dtype=kinds[item["type"]])
    return sample


def _shapes(sample: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Which dimensions may differ: all of the inputs."""
    import torch

    free = torch.export.Dim.DYNAMIC
    return {"inputs": {name: dict.fromkeys(range(t.dim()), free) for name, t in sample.items()}}


def _program(model: Model) -> torch.export.ExportedProgram:
    """The model as a graph, for any number of rows."""
    import torch

    from dpads.models.torch_exported import ExportedModel

    sample = _sample(model.schema)
    with torch.no_grad():
        return torch.export.export(
            ExportedModel(model), (), {"inputs": sample}, dynamic_shapes=_shapes(sample)
        )


def _write_torch(model: Model, path: Path) -> None:
    """Writes a program of torch.export."""
    import torch

    program = _program(model)
    program.example_inputs = None  # they alone would be pickled
    torch.export.save(program, path, extra_files={METADATA: describe(model)})


def _write_onnx(model: Model, path: Path) -> None:
    """Writes an ONNX model."""
    import torch

    # A graph first: given a module, the exporter would rather fix the number of rows than fail.
    graph = _program(model)
    program = torch.onnx.export(
        graph,
        (),
        None,
        input_names=[item["name"] for item in describe_inputs(model.schema)],
        output_names=[OUTPUT],
        dynamo=True,
        verbose=False,
        # onnxscript's optimizer drops nodes that clamps still use; runtimes have optimizers of their own.
        optimize=False,
    )
    assert program is not None
    program.model.metadata_props[METADATA] = describe(model)
    size = sum(value.nbytes for value in graph.state_dict.values())
    program.save(path, external_data=size > ONE_FILE)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' remarks about packages that this model does not need."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
