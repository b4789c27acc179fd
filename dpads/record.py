"""The record of how a run came about, and the model that its folder holds."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dpads
from dpads import run_files as files
from dpads.accounting.canonical import digest
from dpads.errors import ConfigError, RunError, SchemaError, VerificationError
from dpads.tensor_files import Buffer, map_tensors, tensor_parts

if TYPE_CHECKING:
    from dpads.accounting.statement import GuaranteeStatement
    from dpads.models.base import Description, Model

FORMAT: Final = 2
# The packages whose versions decide what the numbers are.
PACKAGES: Final = ("dp-accounting", "numba", "numpy", "polars", "scipy", "torch")
PACKAGES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "torch": (),
    "jax": ("jax", "jaxlib", "optax"),
}
"""Likewise of a backend alone."""
PLATFORM: Final = "jax platform"
"""What is kept among versions too: "cpu", "gpu" or "tpu"."""


DIGEST = re.compile("[0-9a-f]{64}")
NOTHING = "0" * 64


class ModelMissingError(ConfigError):
    """A run's model is the user's own, which files do not hold."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """How a run came about, as plain data.

    Attributes:
        created_at: when training ended, UTC, ISO 8601.
        plan: the resolved mechanism and promise (`Plan.to_json`).
        settings: optimizers, table noise, seeds.
        performance: threads and memory.
        model: the model's description.
        schema: the columns.
        train_fingerprint: keyed hash of the training rows; only the key's holder can check it.
        train_store: likewise of the whole store that they are a part of; None where nobody kept it.
        test_fingerprint: likewise of the test rows, if the run held them out; else None.
        executed: iterations that ran.
        replayed: iterations that were run again, to the bit, after an interruption. None of a run that
            was selected privately: it would say which of the runs was selected.
        reference: whether a reference was trained without noise on the same rows.
        artifacts: SHA-256 of the released files by name.
        statement: facts that people supplied for the statement.
        versions: of Python, dpads and the packages that decide the numbers; where JAX trained, what it found.
        format: of the run folder.
    """

    created_at: str
    plan: Mapping[str, Any]
    settings: Mapping[str, Any]
    performance: Mapping[str, Any]
    model: Mapping[str, Any]
    schema: Mapping[str, Any]
    train_fingerprint: str
    test_fingerprint: str | None
    executed: int
    replayed: int | None
    reference: bool
    artifacts: Mapping[str, str]
    statement: Mapping[str, str]
    versions: Mapping[str, str]
    train_store: str | None = None
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Plain data and its digest, which shows damage; `from_dict` reads it back."""
        data = dataclasses.asdict(self)
        return {**data, "digest": digest(data)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunRecord:
        """Reads what `to_dict` wrote.

        Raises:
            RunError: a key is missing or unknown, a value is not the one written, or another format wrote
                it.
        """
        check_format(files.RUN, data)
        data = dict(data)
        seal = data.pop("digest", None)
        names = {item.name for item in dataclasses.fields(cls)}
        if not names - {"train_store"} <= set(data) <= names:
            raise RunError(
                f"{files.RUN}: damaged: keys are missing or unknown. Restore it from a copy."
            )
        for name in ("train_fingerprint", "test_fingerprint", "train_store"):
            if not DIGEST.fullmatch(str(data.get(name) or NOTHING)):
                raise RunError(
                    f"{files.RUN}: damaged: {name} is no digest. Restore it from a copy."
                )
        if seal != digest(data):
            raise RunError(f"{files.RUN}: damaged: its digest is another. Restore it from a copy.")
        return cls(**data)


def check_format(name: str | Path, data: Any) -> None:
    """Checks that this version of dpads wrote a file of a run, or one of the same format did.

    Args:
        name: the file, for the message.
        data: what it holds.

    Raises:
        RunError: another format wrote it; the message names the version to install.
    """
    facts = data if isinstance(data, dict) else {}
    found = facts.get("format")
    if found == FORMAT:
        return
    writer = facts.get("dpads") or dict(facts.get("versions") or {}).get("dpads")
    by = f" by dpads {writer}" if writer else ""
    known = f"this is dpads {dpads.__version__}, which reads format {FORMAT}"
    if not isinstance(found, int):
        raise RunError(
            f"{name}: expected a file in format {FORMAT}, got none. Restore it from a copy."
        )
    if found > FORMAT:
        raise RunError(
            f"{name}: written in format {found}{by}, a newer version; {known}. Install a newer dpads to "
            "load it."
        )
    raise RunError(
        f"{name}: written in format {found}{by}, an older version; {known}. Load it with the version that "
        "wrote it, or train anew."
    )


def versions(backend: str) -> dict[str, str]:
    """Versions of what decides the numbers of a run.

    Args:
        backend: that trained it.
    """
    packages = (*PACKAGES, *PACKAGES_OF[backend])
    found = {
        "python": platform.python_version(),
        "dpads": dpads.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }
    if backend == "jax":
        from dpads.jax_devices import found_devices

        kinds = found_devices()
        found[PLATFORM] = kinds[0].platform
        found["jax devices"] = ", ".join(f"{kind.number} {kind.kind}" for kind in kinds)
    return found


def parameters_of(model: Model) -> list[Buffer]:
    """All parameters of a model as a safetensors file, in parts; equal parameters give equal bytes."""
    arrays = {
        **{f"tables.{name}": array for name, array in model.tables.items()},
        **{f"dense.{name}": array for name, array in model.dense.items()},
    }
    return tensor_parts(arrays, {"format": "dpads"})


def describe_model(model: Model) -> str:
    """model.json: what the parameters belong to."""
    return files.to_json(
        {
            "format": FORMAT,
            "model": model.description.to_dict(),
            "schema": model.schema.to_dict(),
            "output": model.output.to_dict(),
            "dpads": dpads.__version__,
        }
    )


def load_model(folder: Path, description: Description | None = None) -> Model:
    """Reads model.json and model.safetensors.

    Args:
        folder: of the run.
        description: of the model, where it is the user's own: files do not hold that.

    Raises:
        RunError: a file is missing or damaged, a newer version wrote it, or the two do not belong
            together.
        ModelMissingError: the model is the user's own, and nobody gave it.
        ConfigError: the run's model is another one than the description's.
    """
    import safetensors

    from dpads.models import UsersModel, describe
    from dpads.models.output import Output
    from dpads.schema import FeatureSchema

    facts = files.read_json(folder / files.MODEL)
    check_format(folder / files.MODEL, facts)
    path = folder / files.PARAMETERS
    try:
        stored = describe(facts["model"])
        schema = FeatureSchema.from_dict(facts["schema"])
    except (KeyError, TypeError, ConfigError, SchemaError) as error:
        raise RunError(
            f"{folder / files.MODEL}: {error} It was written by dpads {facts.get('dpads')}, and this is "
            f"{dpads.__version__}: load it with that version, or restore it from a copy."
        ) from None
    if isinstance(stored, UsersModel):
        if description is None:
            raise ModelMissingError(
                f"{folder}: the model is a {stored.kind}, which no file holds. Make it again and pass it: "
                f"dpads.Run.load(path, model={stored.made_by})."
            )
        if not stored.matches(description):
            raise ConfigError(
                f"The run's model is the {stored.kind} {stored.code_name}, and model= is another, or its "
                f"layers or columns differ. Make it as it was: {stored.made_by}."
            )
        own = description.init(schema, backend=stored.backend)
    elif description not in (None, stored):
        raise ConfigError(
            f"{folder}: the run's model is {stored!r}, and model= is another. Leave it out: only models of "
            "your own have to be given."
        )
    try:
        model = own if isinstance(stored, UsersModel) else stored.init(schema)
        model.load_state(map_tensors(path))
        model.output = Output.from_dict(facts["output"])
    except FileNotFoundError:
        raise RunError(f"{path}: missing. The folder is no whole run.") from None
    except safetensors.SafetensorError:
        raise RunError(f"{path}: damaged. Restore it from a copy.") from None
    except (KeyError, ConfigError) as error:
        raise RunError(
            f"{folder}: {files.MODEL} and {files.PARAMETERS} disagree: {error}"
        ) from None
    return model


def load_statement(folder: Path) -> GuaranteeStatement:
    """Reads statement.json.

    Raises:
        RunError: it is missing, damaged or altered.
    """
    from dpads.accounting.statement import GuaranteeStatement

    path = folder / files.STATEMENT_JSON
    try:
        return GuaranteeStatement.from_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: missing. The folder is no whole run.") from None
    except VerificationError as error:
        raise VerificationError(f"{path}: {error}") from None
