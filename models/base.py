"""What every model is: a description, tables, a tower, per-example losses, and factors for clipping."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dpads._validate import nearest
from dpads.batch import SparseBatch, Targets
from dpads.errors import ConfigError, DataError, MissingDependencyError
from dpads.kernels.keys import derive_key
from dpads.kernels.lookup import Places
from dpads.models.gradients import ChunkGradients
from dpads.models.layout import Layout, TableGroup, check_ids
from dpads.models.output import Output
from dpads.schema import FeatureSchema, Task

REGISTRY: dict[str, type[Description]] = {}
BACKENDS = ("torch", "jax")
INSTALL_JAX = "pip install 'jax>=0.10,<0.11' 'optax>=0.2.5,<0.3'"  # the ranges of pyproject.toml
POOLED_AT_A_TIME = 1024  # examples
ROWS_AT_A_TIME = 1 << 20


class Tower(ABC):
    """A backend's dense part: parameters and per-example losses over the feature matrix.

    Attributes:
        module: the backend's definition of it: features, [B, width], to logits, [B].
        examples_at_a_time: that `gradients` should get, for the sake of memory.
        positions: vectors that an example passes through one layer, at most.
    """

    module: Any
    examples_at_a_time: int = 1024
    positions: int = 1

    @property
    @abstractmethod
    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Views of the parameters by name; writing to them moves the tower."""

    @abstractmethod
    def logits(self, features: NDArray[Any]) -> NDArray[Any]:
        """Logits, [B], in the precision of `features`."""

    @abstractmethod
    def losses(self, features: NDArray[Any], targets: Targets) -> NDArray[Any]:
        """Losses, [B], weights included, in the precision of `features`."""

    @abstractmethod
    def gradients(
        self,
        features: NDArray[np.float32],
        targets: Targets,
        feature_grads: NDArray[np.float32],
    ) -> ChunkGradients:
        """One forward and one backward pass; several threads may call it at a time.

        Args:
            features: float32[n, width].
            targets: of the n examples.
            feature_grads: float32[n, width], written: gradients of the losses by the features.

        Returns:
            The gradients by the parameters; the same thread's next call may use their memory again.
        """


class Description(ABC):
    """The public description of a model: frozen plain data, no parameters.

    Subclasses are frozen dataclasses that set `name`; defining one registers it.

    Attributes:
        name: of the kind of model.
        in_files: whether a file can describe the whole model.
    """

    name: ClassVar[str]
    in_files: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "name"):
            REGISTRY[cls.name] = cls

    @abstractmethod
    def layout(self, schema: FeatureSchema) -> Layout:
        """Tables and feature columns."""

    @abstractmethod
    def table_stddev(self, group: TableGroup) -> float:
        """Standard deviation of a group's initial rows; 0 starts at zero."""

    @abstractmethod
    def torch_tower(self, layout: Layout) -> Any:
        """The tower as a torch module from float[B, width] to logits float[B]."""

    def jax_tower(self, layout: Layout, task: Task) -> Any:
        """The tower as a `jax_towers.JaxTower`.

        Raises:
            ConfigError: the model has none.
        """
        raise _not_in_jax(self)

    def check_backend(self, backend: str) -> None:
        """Refuses a backend that the model has no tower for; nothing is loaded.

        Args:
            backend: "torch" or "jax".

        Raises:
            ConfigError: the backend is unknown, or not one of the model's.
        """
        if check_backend(backend) == "jax" and type(self).jax_tower is Description.jax_tower:
            raise _not_in_jax(self)

    def load_backend(self, schema: FeatureSchema, backend: str) -> None:
        """Loads the packages that the model needs to be trained, so that a missing one is told first.

        Args:
            schema: the columns.
            backend: "torch" or "jax".

        Raises:
            ConfigError: the backend is unknown, or not one of the model's.
            MissingDependencyError: a package is not installed.
        """
        self.check_backend(backend)
        if backend == "jax":
            try:
                self.jax_tower(self.layout(schema), schema.task)
            except ModuleNotFoundError as error:
                raise MissingDependencyError(
                    f'backend = "jax" needs the package {error.name}. Install it: {INSTALL_JAX}'
                ) from error
        try:  # on the host the tower is torch's, whatever it is trained in
            import dpads.models.torch_tower  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"Models need the package {error.name}. Install it: pip install torch"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `describe` reads back."""
        values = asdict(self)  # type: ignore[call-overload]
        return {
            "name": self.name,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
        }

    def init(
        self,
        schema: FeatureSchema,
        *,
        seed: int = 0,
        backend: str = "torch",
        on_rows: Callable[[int, int], None] | None = None,
    ) -> Model:
        """Makes the model with its initial parameters.

        Args:
            schema: the columns.
            seed: public; the same seed gives the same parameters on every machine.
            backend: "torch" or "jax": where the model will be trained. It is evaluated the same way.
            on_rows: called with the rows of tables drawn so far and in all.

        Raises:
            ConfigError: the backend is unknown, or the model has no tower there.
            MissingDependencyError: the backend's package is not installed.
        """
        self.load_backend(schema, backend)
        from dpads.models.torch_tower import build_tower

        layout = self.layout(schema)
        master = hashlib.sha256(f"dpads.init.v1:{seed}".encode()).digest()
        tower = build_tower(self.torch_tower(layout), schema.task, layout.width, master)
        return Model(self, schema, layout, tower, init_tables(self, layout, master, on_rows))


def check_backend(name: str) -> str:
    """The name of a backend.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in BACKENDS:
        raise ConfigError(f'Unknown backend "{name}".' + nearest(str(name), BACKENDS))
    return name


def _not_in_jax(description: Description) -> ConfigError:
    """The refusal of a model without a tower in JAX."""
    kinds = (kind for kind in REGISTRY.values() if kind.in_files)
    others = sorted(k.name for k in kinds if k.jax_tower is not Description.jax_tower)
    return ConfigError(
        f'Expected a model with a tower in JAX for backend "jax" ({", ".join(others)}), got '
        f'"{description.name}". Train it with backend = "torch".'
    )


def init_tables(
    description: Description,
    layout: Layout,
    master: bytes,
    on_rows: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Initial arrays of every group, each row drawn at the address of its table."""
    from dpads.kernels.gaussian import fill_normals

    arrays, done = {}, 0
    total = sum(group.num_rows for group in layout.groups)
    for group in layout.groups:
        array = np.zeros((group.num_rows, group.dim), np.float32)
        stddev = description.table_stddev(group)
        for name, base in group.bases.items() if stddev > 0 else ():
            key = derive_key(master, "table", name)
            for first in range(0, group.rows[name], ROWS_AT_A_TIME):
                rows = np.arange(first, min(first + ROWS_AT_A_TIME, group.rows[name]))
                part = array[base + first : base + first + len(rows)]
                fill_normals(key, rows, 0, part, stddev)
                done += len(rows)
                if on_rows is not None:
                    on_rows(done, total)
        arrays[group.name] = array
    return arrays


class Model:
    """A model with parameters.

    Attributes:
        description: what it is.
        schema: the columns it reads.
        layout: tables and feature columns.
        tower: the dense part.
        arrays: {group: float32[rows, dim]}, the tables of each group in one array.
        output: what becomes of the tower's logits.
    """

    def __init__(
        self,
        description: Description,
        schema: FeatureSchema,
        layout: Layout,
        tower: Tower,
        arrays: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.description = description
        self.schema = schema
        self.layout = layout
        self.tower = tower
        self.arrays = dict(arrays)
        self.output = Output(negatives_kept=schema.negatives_kept)

    @property
    def tables(self) -> dict[str, NDArray[np.float32]]:
        """{table: float32[rows, dim]}, views: writing to them changes the model."""
        return {
            name: self.arrays[group.name][base : base + group.rows[name]]
            for group in self.layout.groups
            for name, base in group.bases.items()
        }

    @property
    def dense(self) -> dict[str, NDArray[np.float32]]:
        """{name: float32 array}, views of the tower's parameters."""
        return self.tower.parameters

    def check_batch(self, batch: SparseBatch) -> None:
        """Checks that a batch which did not come from a store fits the model.

        Raises:
            DataError: a field is missing, an id is not a row of its table, or `dense` has another width.
        """
        for group in self.layout.groups:
            check_ids(group, batch)
        if batch.dense.shape[1] != self.layout.num_numeric:
            raise DataError(
                f"dense: expected {self.layout.num_numeric} numeric features, got {batch.dense.shape[1]}."
            )

    def features(
        self, batch: SparseBatch, dtype: type[np.floating[Any]] = np.float32
    ) -> NDArray[Any]:
        """The feature matrix, [B, width]: pooled rows of every field, then the numeric features."""
        from dpads.kernels import lookup, reference
        from dpads.kernels.workers import over

        matrix = np.zeros((batch.num_examples, self.layout.width), dtype)
        pool = lookup.pool if dtype is np.float32 else reference.pool
        self.check_batch(batch)
        for group in self.layout.groups:
            array, places = self.arrays[group.name], group.places(batch)
            over(len(matrix), POOLED_AT_A_TIME, partial(_pool, pool, array, places, matrix))
        matrix[:, self.layout.embedded :] = self.layout.numbers(batch)
        return matrix

    def losses(self, batch: SparseBatch) -> NDArray[np.float64]:
        """Per-example losses, weights included, computed in float64.

        Binary tasks: logistic loss. Counts: the negative Poisson log-likelihood m - y log m with
        m = exposure * exp(logit), its term log y! left out. Weights of rows and of classes are factors.

        Returns:
            float64[B]. A unit's loss is the sum over its rows.
        """
        return self.tower.losses(self.features(batch, np.float64), self.output.targets(batch))

    def predict(self, batch: SparseBatch) -> NDArray[np.float32]:
        """Predicted probabilities, or expected counts (exposure included), float32[B]."""
        logits = self.tower.logits(self.features(batch)).astype(np.float64)
        return self.output.predict(self.schema.task, logits, batch.exposure)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Copies of all parameters: "tables.<name>" and "dense.<name>"."""
        return {
            **{f"tables.{name}": array.copy() for name, array in self.tables.items()},
            **{f"dense.{name}": array.copy() for name, array in self.dense.items()},
        }

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Overwrites all parameters with what `state` returned.

        Raises:
            ConfigError: a parameter is missing, unknown or of another shape.
        """
        own = {
            **{f"tables.{name}": array for name, array in self.tables.items()},
            **{f"dense.{name}": array for name, array in self.dense.items()},
        }
        if set(own) != set(state):
            odd = sorted(set(own) ^ set(state))
            raise ConfigError(
                f"The parameters are not those of this model; they differ in {', '.join(odd)}."
            )
        for name, array in own.items():
            if array.shape != state[name].shape:
                raise ConfigError(
                    f'Parameter "{name}": expected shape {list(array.shape)}, '
                    f"got {list(state[name].shape)}."
                )
            array[...] = state[name]


def _pool(
    pool: Callable[..., None],
    array: NDArray[np.float32],
    places: Places,
    matrix: NDArray[Any],
    first: int,
    last: int,
) -> None:
    """Pools examples first:last."""
    pool(array, places, first, matrix[first:last])


def describe(table: Mapping[str, Any]) -> Description:
    """Reads the [model] table of a configuration, or what `Description.to_dict` wrote.

    Raises:
        ConfigError: the name or a key is unknown, or a value is out of range.

    Examples:
        >>> describe({"name": "mlp", "embedding_dim": 8, "hidden": [32]})
        Mlp(embedding_dim=8, hidden=(32,), wide=False)
    """
    values = dict(table)
    name = str(values.pop("name", ""))
    if name not in REGISTRY:
        raise ConfigError(f'Unknown model "{name}".' + nearest(name, REGISTRY))
    kind = REGISTRY[name]
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f'Unknown key "{key}" of model "{name}".' + nearest(key, known))
    return kind(
        **{
            k: tuple(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
            for k, v in values.items()
        }
    )
