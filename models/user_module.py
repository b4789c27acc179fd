"""The user's own torch module as a model of dpads.

Its `nn.Embedding` and `nn.EmbeddingBag` layers become tables under the sparse kernels; its other parameters
get per-example gradients, layer by layer. Nothing is trusted: the module is taken apart on made-up rows, and
the result is compared with autograd on the module itself, one example at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dpads.errors import MissingDependencyError
from dpads.models.base import Model
from dpads.models.layout import Layout, TableGroup
from dpads.models.users_model import UsersModel
from dpads.schema import FeatureSchema

if TYPE_CHECKING:
    from torch import nn

    from dpads.models.torch_converted import Converted
    from dpads.models.torch_fields import FieldTensors


@dataclass(frozen=True)
class TorchModule(UsersModel):
    """A user's torch module, by what identifies it; `from_torch` makes one that can be trained.

    Attributes:
        module: the module's class.
        structure: SHA-256 of its layers, shapes, constants and of what its embeddings read.
        code: SHA-256 of the code of its classes, and of functions that its layers hold; helper functions
            that these call are not in it: whoever vouches for the module vouches for them too.
        initial: SHA-256 of its initial parameters.
    """

    name: ClassVar[str] = "torch"
    kind: ClassVar[str] = "torch module"
    made_by: ClassVar[str] = "dpads.models.from_torch(module, schema)"
    backend: ClassVar[str] = "torch"
    other: ClassVar[str] = "a function in JAX: dpads.models.from_jax"

    module: str
    structure: str
    code: str
    initial: str

    @property
    def code_name(self) -> str:
        """The module's class."""
        return self.module

    @property
    def fit(self) -> tuple[Any, ...]:
        """The same class and structure."""
        return self.module, self.structure

    def layout(self, schema: FeatureSchema) -> Layout:
        """Tables, and what the embeddings' calls read.

        Raises:
            ConfigError: the description comes from a file, or the schema is another one.
        """
        return self._converted(schema).layout

    def table_stddev(self, group: TableGroup) -> float:
        """Zero: tables start as the module's own."""
        return 0.0

    def torch_tower(self, layout: Layout) -> Any:
        """The module as a function of the feature matrix."""
        return self._converted(None).feature_module()

    def init(
        self,
        schema: FeatureSchema,
        *,
        seed: int = 0,
        backend: str = "torch",
        on_rows: Callable[[int, int], None] | None = None,
    ) -> Model:
        """Makes the model with the module's own parameters, as they were when it was converted.

        Args:
            schema: the one that the module was converted for.
            seed: changes nothing: nothing is drawn.
            backend: "torch".
            on_rows: called with the rows of tables copied so far and in all.

        Raises:
            ConfigError: the description comes from a file, the schema is another one, or the backend.
        """
        self.check_backend(backend)
        return self._converted(schema).model(self, on_rows)

    def to_torch(self, model: Model) -> nn.Module:
        """The user's module with the parameters of a model; rows of padding are zero.

        Its logit lacks what the model adds: offset, calibration, negatives that were left out.

        Args:
            model: made of this description; if it was trained, at its end.
        """
        return self._converted(model.schema).to_torch(model)

    def reader(self, model: Model) -> nn.Module:
        """A torch module from tensors by column to the tower's logits, tables included; for export.

        Args:
            model: made of this description.

        Returns:
            A module over one mapping: categorical fields int64[n], bags int64[n, positions], -1 where there
            is no id, a weighted bag's factors float32[n, positions], numeric columns float32[n] after
            their transforms. It returns float32[n].
        """
        return self._converted(model.schema).reader(model)

    def _converted(self, schema: FeatureSchema | None) -> Converted:
        """The conversion; a `ConfigError` where there is none, or for another schema."""
        converted: Converted = self.checked(schema)
        return converted


def from_torch(
    module: nn.Module,
    schema: FeatureSchema,
    *,
    inputs: Callable[[FieldTensors], Any] | None = None,
    lengths: Mapping[str, int] | None = None,
    padding: int = 0,
) -> TorchModule:
    """Turns a torch module into a model that dpads trains.

    The module returns one logit an example (of counts: the logarithm of the expected count, without the
    exposure), [B] or [B, 1]. It is copied; its present parameters are where training starts, so that they
    must hold nothing of the rows it will be trained on. Trained are the parameters that require gradients.

    Args:
        module: float32, on the CPU.
        schema: the columns. Every call of an embedding must read ids of its columns as they are, and the
            embedding must have a row for each.
        inputs: from a mapping to what forward takes; a tuple is several arguments. The mapping holds
            int64[B] for categorical fields, float32[B] for numeric ones (after their transforms) and a
            `RaggedBag(values, offsets, weights)` for bags. None: forward takes the mapping.
        lengths: {bag: positions} of bags that are int64[B, positions] in the mapping, and
            float32[B, positions] under the name of their weights; ids beyond are left out.
        padding: the id at positions that a list does not fill; an embedding that has it as padding_idx
            reads nothing there.

    Returns:
        A description for `dpads.train(store, model=...)`.

    Raises:
        ConfigError: the module cannot be trained privately or exactly; the message names the layer, and the
            remedy.
        MissingDependencyError: torch is not installed.

    Guarantees:
        - Per-example gradients of every parameter are those of autograd on the module itself, tried one
          example at a time on made-up rows.
        - Rows of padding_idx read nothing, get no gradient, and are zero in `to_torch`.

    Examples:
        >>> import dpads, torch
        >>> class Linear(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.site = torch.nn.Embedding(100, 1)
        ...         self.number = torch.nn.Linear(1, 1)
        ...     def forward(self, columns):
        ...         return self.site(columns["site"]) + self.number(columns["price"][:, None])
        >>> schema = dpads.FeatureSchema(
        ...     task="ctr", label="click", numeric=["price"], categorical=["site"], buckets=100)
        >>> model = dpads.models.from_torch(Linear(), schema).init(schema)
        >>> model.tables["site"].shape, sorted(model.dense)
        ((100, 1), ['number.bias', 'number.weight'])
    """
    try:
        from dpads.models.torch_converted import convert
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"from_torch needs the package {error.name}. Install it: pip install torch"
        ) from error
    converted = convert(module, schema, inputs, dict(lengths or {}), padding)
    description = TorchModule(
        module=converted.class_name,
        structure=converted.structure,
        code=converted.code,
        initial=converted.initial,
    )
    object.__setattr__(description, "converted", converted)
    return description
