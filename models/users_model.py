"""What the models that users bring have in common: files name them, and do not hold them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from dpads.errors import ConfigError
from dpads.models.base import Description, check_backend
from dpads.schema import FeatureSchema


class UsersModel(Description):
    """A model whose code is the user's, by what identifies it; a `from_...` function makes one to train.

    Attributes:
        kind: what it is, in words.
        made_by: the call that makes it again.
        backend: the one that trains it.
        other: what another backend would train, and what makes it.
        converted: what was taken apart and checked, with the `schema` that this was done for; None where the
            description comes from a file.
    """

    in_files: ClassVar[bool] = False
    kind: ClassVar[str]
    made_by: ClassVar[str]
    backend: ClassVar[str]
    other: ClassVar[str]
    converted: ClassVar[Any] = None

    @property
    @abstractmethod
    def code_name(self) -> str:
        """What the user's code is called."""

    @property
    @abstractmethod
    def fit(self) -> tuple[Any, ...]:
        """What two of them must agree in, so that parameters of one fit the other."""

    def matches(self, other: Description) -> bool:
        """Whether parameters of one fit the other."""
        return type(other) is type(self) and self.fit == other.fit

    def check_backend(self, backend: str) -> None:
        """Refuses all backends but one.

        Raises:
            ConfigError: it is another one.
        """
        if check_backend(backend) != self.backend:
            raise ConfigError(
                f'Expected backend "{self.backend}" for a {self.kind}, got "{backend}". Train it with '
                f'backend = "{self.backend}", or give {self.other}.'
            )

    def load_backend(self, schema: FeatureSchema, backend: str) -> None:
        """Nothing is left to load: what made the model needed the backend.

        Raises:
            ConfigError: the backend is another one, the description comes from a file, or the schema is
                another one.
        """
        self.check_backend(backend)
        self.checked(schema)

    def checked(self, schema: FeatureSchema | None) -> Any:
        """What was taken apart and checked.

        Args:
            schema: the one that it must be for; None for any.

        Raises:
            ConfigError: nothing was, or it is for another schema.
        """
        if self.converted is None:
            raise ConfigError(
                f"The model is the {self.kind} {self.code_name}, which no file holds. Make it again and pass "
                f"it: {self.made_by}, as the model= of dpads.train and of dpads.Run.load."
            )
        if schema is not None and schema != self.converted.schema:
            raise ConfigError(
                f"The {self.kind} was taken for another schema. Make the model for this one: {self.made_by}."
            )
        return self.converted
