"""The user's own tower as a pure function in JAX.

    import jax.numpy as jnp
    from dpads.models import from_jax
    from dpads.models.jax_layers import linear

    def apply(params, embedded, dense):          # of ONE example: JAX maps it over the batch
        x = jnp.concatenate([embedded["site"], embedded["ad"], dense])
        x = jnp.tanh(linear(params, "hidden", x))
        return linear(params, "output", x) + params["scale"] * dense.sum()

Every field has a table; `linear` keeps the gradients of a layer in factors, and any other use of parameters
costs their gradients for a chunk of examples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dpads.errors import ConfigError, MissingDependencyError
from dpads.models.base import INSTALL_JAX, Model, init_tables
from dpads.models.fields import EmbeddingDim, check_dim, lay_out
from dpads.models.layout import Layout, TableGroup
from dpads.models.users_model import UsersModel
from dpads.schema import FeatureSchema, Task

if TYPE_CHECKING:
    from dpads.models.jax_user_tower import UserFunction, UserTower


@dataclass(frozen=True)
class FunctionTower:
    """A function that was traced and checked.

    Attributes:
        schema: the one that it was checked for.
        tower: the function.
        parameters: float32, by name; where training starts.
    """

    schema: FeatureSchema
    tower: UserTower
    parameters: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class JaxFunction(UsersModel):
    """A user's function in JAX, by what identifies it; `from_jax` makes one that can be trained.

    Attributes:
        function: the function's name.
        embedding_dim: width of every table, or "auto" for int(2 * buckets^0.25) per table.
        structure: SHA-256 of the parameters' names and shapes, of what is a layer, and of the columns.
        code: SHA-256 of the function's program, whatever it calls included, as JAX traced it.
        initial: SHA-256 of its initial parameters.
    """

    name: ClassVar[str] = "jax"
    kind: ClassVar[str] = "JAX function"
    made_by: ClassVar[str] = "dpads.models.from_jax(apply, params, schema)"
    backend: ClassVar[str] = "jax"
    other: ClassVar[str] = "a torch module: dpads.models.from_torch"

    function: str
    embedding_dim: EmbeddingDim
    structure: str
    code: str
    initial: str

    @property
    def code_name(self) -> str:
        """The function's name."""
        return self.function

    @property
    def fit(self) -> tuple[Any, ...]:
        """The same name, tables and structure."""
        return self.function, self.embedding_dim, self.structure

    def layout(self, schema: FeatureSchema) -> Layout:
        """One table per field or shared name; tables of equal width share an array."""
        return lay_out(schema, self.embedding_dim, linear=False)

    def table_stddev(self, group: TableGroup) -> float:
        """0.05, as those of `Mlp`."""
        return 0.05

    def torch_tower(self, layout: Layout) -> Any:
        """There is none.

        Raises:
            ConfigError: always.
        """
        self.check_backend("torch")

    def jax_tower(self, layout: Layout, task: Task) -> UserTower:
        """The function, mapped over examples."""
        return self._converted(None).tower

    def init(
        self,
        schema: FeatureSchema,
        *,
        seed: int = 0,
        backend: str = "jax",
        on_rows: Callable[[int, int], None] | None = None,
    ) -> Model:
        """Makes the model: the function's own parameters, as they were, and tables that are drawn.

        Args:
            schema: the one that the function was checked for.
            seed: public; of the tables.
            backend: "jax".
            on_rows: called with the rows of tables drawn so far and in all.

        Raises:
            ConfigError: the description comes from a file, the schema is another one, or the backend.
        """
        self.check_backend(backend)
        from dpads.models.jax_host_tower import HostTower

        found = self._converted(schema)
        layout = self.layout(schema)
        master = hashlib.sha256(f"dpads.init.v1:{seed}".encode()).digest()
        tower = HostTower(found.tower, found.parameters)
        return Model(self, schema, layout, tower, init_tables(self, layout, master, on_rows))

    def _converted(self, schema: FeatureSchema | None) -> FunctionTower:
        """What was checked; a `ConfigError` where nothing was, or for another schema."""
        found: FunctionTower = self.checked(schema)
        return found


def from_jax(
    apply: UserFunction,
    params: Mapping[str, Any],
    schema: FeatureSchema,
    *,
    embedding_dim: EmbeddingDim = 16,
) -> JaxFunction:
    """Turns a function in JAX into a model that dpads trains, with backend = "jax".

    The function returns the logit of one example (of counts: the logarithm of the expected count, without the
    exposure). Training starts from `params`, which must hold nothing of the rows it will be trained on.

    Args:
        apply: (params, embedded, dense) -> one number. `embedded` maps each field to its vector,
            float32[embedding_dim], bags pooled as the schema says; `dense` is float32[K], the numeric columns
            after their transforms.
        params: {name: float32 array}; all are trained. `jax_layers.linear(params, name, x)` reads
            "<name>.weight", [out, in], and "<name>.bias", where there is one.
        schema: the columns.
        embedding_dim: width of every table, or "auto" for int(2 * buckets^0.25) per table.

    Returns:
        A description for `dpads.train(store, model=..., backend="jax")`.

    Raises:
        ConfigError: the function cannot be trained privately or exactly; the message says why.
        MissingDependencyError: JAX is not installed.

    Guarantees:
        - The function is given one example and sees no other; what it runs is in its program.
        - Per-example gradients of every parameter are those of `jax.grad`, tried one example at a time.

    Examples:
        >>> import dpads, numpy as np
        >>> from dpads.models.jax_layers import linear
        >>> def apply(params, embedded, dense):
        ...     return linear(params, "layer", dense) + embedded["site"].sum() * params["scale"]
        >>> schema = dpads.FeatureSchema(
        ...     task="ctr", label="click", numeric=["price"], categorical=["site"], buckets=100)
        >>> params = {"layer.weight": np.zeros((1, 1)), "layer.bias": np.zeros(1), "scale": np.ones(())}
        >>> model = from_jax(apply, params, schema, embedding_dim=4).init(schema)
        >>> model.tables["site"].shape, sorted(model.dense)
        ((100, 4), ['layer.bias', 'layer.weight', 'scale'])
    """
    if not callable(apply):
        raise ConfigError(f"Expected apply to be a function, got {type(apply).__name__}.")
    if not isinstance(schema, FeatureSchema):
        raise ConfigError(f"Expected schema to be a FeatureSchema, got {type(schema).__name__}.")
    check_dim(embedding_dim)
    try:
        from dpads.models.jax_user_checks import (
            check_function,
            check_program,
            digest_of,
            gradients_of,
        )
        from dpads.models.jax_user_tower import user_tower
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"from_jax needs the package {error.name}. Install it: {INSTALL_JAX}"
        ) from error
    values = _checked(params)
    layout = lay_out(schema, embedding_dim, linear=False)
    tower = user_tower(apply, layout, schema.task, values)
    check_program(tower, values, layout.width)
    check_function(tower, values, layout.width)
    program = gradients_of(tower, values, layout.width)
    facts = {
        "parameters": [[name, list(value.shape)] for name, value in values.items()],
        "layers": [[layer.name, layer.positions] for layer in tower.linears],
        "schema": schema.fingerprint(),
    }
    description = JaxFunction(
        function=f"{apply.__module__}.{getattr(apply, '__qualname__', type(apply).__name__)}",
        embedding_dim=embedding_dim,
        structure=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
        code=digest_of(program),
        initial=_digest(values),
    )
    object.__setattr__(description, "converted", FunctionTower(schema, tower, values))
    return description


def _checked(params: Any) -> dict[str, NDArray[np.float32]]:
    """Copies of the parameters in float32.

    Raises:
        ConfigError: they are not arrays of finite numbers by name.
    """
    if not isinstance(params, Mapping) or not params:
        raise ConfigError(
            f"Expected params to map names to arrays, got {type(params).__name__}. Flatten nested ones, such "
            'as with flax.traverse_util.flatten_dict(params, sep="."), and unflatten them in apply.'
        )
    values = {}
    for name, value in params.items():
        array = None if isinstance(value, Mapping) else np.asarray(value)
        if not isinstance(name, str) or array is None or array.dtype.kind != "f":
            raise ConfigError(
                f'Expected params["{name}"] to be an array of floating-point numbers under a name, got '
                f"{type(value).__name__}. Flatten nested parameters; keep others out of params."
            )
        values[name] = np.array(array, np.float32)
        if not (array.size and np.isfinite(values[name]).all()):
            raise ConfigError(f'Expected params["{name}"] to hold finite numbers, at least one.')
    return values


def _digest(values: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 of names and numbers."""
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
