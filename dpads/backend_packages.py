"""What a backend needs to be installed: told before a run reads or writes anything."""

from __future__ import annotations

from dpads.config import Config
from dpads.errors import MissingDependencyError
from dpads.models.base import INSTALL_JAX


def load_backend(config: Config) -> None:
    """Loads the packages that a configuration is trained with.

    Args:
        config: whose model and backend.

    Raises:
        ConfigError: the model is the user's own and comes from a file, or is for another schema.
        MissingDependencyError: a package is not installed; the message has the line that installs it.
    """
    backend = config.training.backend
    config.model.load_backend(config.schema, backend)
    if backend == "jax":
        try:
            import dpads.jax_backend  # noqa: F401 (optax is not among what the model needs)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f'backend = "jax" needs the package {error.name}. Install it: {INSTALL_JAX}'
            ) from error
