"""What training takes of a machine's memory, computed before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dpads.errors import ConfigError
from dpads.kernels.workers import available_cores
from dpads.schema import FeatureSchema

if TYPE_CHECKING:
    from dpads.models.base import Description
    from dpads.models.layout import Layout, TableGroup

GIGABYTE: Final = 1e9
# What a process holds that has loaded torch, numba, polars, the kernels and the accountant; measured. The
# first run on a machine compiles the kernels and needs some 0.4 GB more for that.
IMPORTS: Final = 600_000_000
IDS_PER_BAG: Final = 10  # how many ids a list holds is private, so it is assumed
CHUNK: Final = 1024  # examples that a thread takes through the tower at a time
SPARE: Final = 9 / 8  # arrays kept between steps are larger than asked for, as Poisson batches vary

# Bytes of one place where an example reads a row: where it is (20), sorted by row (20), for this batch and
# the next; and what sorting needs meanwhile (32).
PLACE: Final = 2 * (20 + 20) + 32
COUNTED_ROW: Final = 8 + 8 + 1  # bytes: a row's count, the same with noise, whether it is selected
PARAMETER: Final = 4 + 8 + 4  # bytes: its value, two moments, its noisy gradient
PARAMETER_SUMS: Final = 8 + 4  # bytes a thread: the sum in float64, a chunk's product in float32

# Of JAX, measured: its libraries, and the programs that it compiles.
JAX_IMPORTS: Final = 550_000_000
DEVICE_TABLES: Final = (
    2  # the tables on the device, and once more where they are laid out or rounded
)
DEVICE_PLACE: Final = 100  # bytes of a place: what it reads, and which rows and pairs it belongs to
DEVICE_WIDTH: Final = 5  # float32 arrays of the features: themselves, their gradients, sums by row
DEVICE_SPARE: Final = 3 / 2  # sizes are powers of two, or one and a half times them
DEVICE_PARAMETER: Final = 4 + 8 + 8 + 4  # bytes: value, two moments, sum and noisy gradient


@dataclass(frozen=True, kw_only=True)
class MemoryWords:
    """How a refusal speaks: in the words of the command or the call that was refused.

    Attributes:
        wanted: what was expected to fit.
        got: what came instead, up to the number of gigabytes.
        tables: what to change where tables take most.
        batch: what to change where the batch takes most.
    """

    wanted: str
    got: str
    tables: str
    batch: str


TRAINING_WORDS: Final = MemoryWords(
    wanted="a model that fits",
    got="one that needs",
    tables="Use fewer buckets or a smaller embedding_dim.",
    batch="Use a smaller expected_batch_size, or a smaller physical_batch_size: an option of "
    "`dpads train`, and of dpads.Performance in Python.",
)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that training takes at its peak, by part.

    Attributes:
        tables: rows of all tables.
        history: when each row last received noise.
        optimizer: the tower's parameters, moments and gradient.
        device: what JAX holds beside, in this memory or a GPU's: its own tables, and its copy of the batch.
        batch: what is proportional to the batch, and the threads' working memory.
        checkpoint: what exists only while one is written, or while rows of tables are counted.
        imports: the libraries.
    """

    tables: int
    history: int
    optimizer: int
    batch: int
    checkpoint: int
    imports: int
    device: int = 0

    @property
    def total(self) -> int:
        """All parts."""
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, int]:
        """Plain data, the total among it."""
        return {**asdict(self), "total": self.total}


def estimate_memory(
    description: Description,
    schema: FeatureSchema,
    *,
    expected_batch_size: int,
    physical_batch_size: int | None = None,
    table_noise: str = "lazy",
    backend: str = "torch",
    counted: bool = False,
) -> MemoryEstimate:
    """What training a model takes at its peak, from sizes alone.

    Args:
        description: the model.
        schema: the columns.
        expected_batch_size: units in a batch on average.
        physical_batch_size: examples in memory at a time; None for the whole batch.
        table_noise: "lazy" or "dense".
        backend: "torch" or "jax".
        counted: whether rows of tables are counted before training, to select some.

    Returns:
        The estimate. Lists are taken to hold ten ids.

    Raises:
        ConfigError: the model is for another backend.
        MissingDependencyError: the backend is not installed.

    Guarantees:
        - Nothing of the model's size is allocated.

    Examples:
        >>> import dpads
        >>> schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["C1"], buckets=10**9)
        >>> model = dpads.models.Mlp(embedding_dim=16, hidden=(64,))
        >>> estimate_memory(model, schema, expected_batch_size=1024).tables
        64000000000
    """
    description.load_backend(schema, backend)
    layout = description.layout(schema)
    rows = sum(group.num_rows for group in layout.groups)
    in_jax = backend == "jax"
    sizes = _jax_sizes if in_jax else _torch_sizes
    parameters, widths = sizes(description, layout, schema)
    tables = sum(4 * group.num_rows * group.dim for group in layout.groups)
    examples = _largest(expected_batch_size, physical_batch_size)
    return MemoryEstimate(
        tables=tables,
        history=4 * rows if table_noise == "lazy" else 0,
        optimizer=PARAMETER * parameters,
        batch=_batch_bytes(schema, layout, expected_batch_size, physical_batch_size)
        + (0 if in_jax else available_cores() * _thread_bytes(layout, parameters, widths)),
        # Under dense noise the history is the same number for every row, and made for the file.
        checkpoint=max(
            0 if table_noise == "lazy" else 4 * rows,
            COUNTED_ROW * sum(schema.table_rows.values()) if counted else 0,
        ),
        imports=IMPORTS + (JAX_IMPORTS if in_jax else 0),
        device=_device_bytes(layout, examples, tables, parameters, widths) if in_jax else 0,
    )


def _torch_sizes(
    description: Description, layout: Layout, schema: FeatureSchema
) -> tuple[int, list[int]]:
    """The number of the tower's parameters and the widths of its layers; nothing is allocated."""
    import torch

    with torch.device("meta"):
        module = description.torch_tower(layout)
    widths = [m.out_features for m in module.modules() if isinstance(m, torch.nn.Linear)]
    return sum(value.numel() for value in module.parameters()), widths


def _jax_sizes(
    description: Description, layout: Layout, schema: FeatureSchema
) -> tuple[int, list[int]]:
    """Likewise of the tower in JAX; a layer that several vectors pass through counts as wide as all."""
    tower = description.jax_tower(layout, schema.task)
    widths = [layer.positions * layer.width_out for layer in tower.linears]
    return sum(math.prod(shape) for shape in tower.shapes.values()), widths


def _largest(expected: int, physical: int | None = None) -> float:
    """Examples of a large Poisson batch that are in memory at a time."""
    largest = expected + 5.0 * math.sqrt(expected)
    return largest if physical is None else min(largest, float(physical))


def _device_bytes(
    layout: Layout, examples: float, tables: int, parameters: int, widths: list[int]
) -> int:
    """What JAX holds."""
    reads = sum(_read_by(group) for group in layout.groups)
    numbers = DEVICE_WIDTH * layout.width + 2 * sum(widths) + layout.width
    batch = DEVICE_SPARE * examples * (DEVICE_PLACE * reads + 4 * numbers)
    return math.ceil(DEVICE_TABLES * tables + DEVICE_PARAMETER * parameters + batch)


def _read_by(group: TableGroup) -> int:
    """How many rows of a group an example reads."""
    return sum(IDS_PER_BAG if slot.field.is_bag else 1 for slot in group.slots)


def _batch_bytes(schema: FeatureSchema, layout: Layout, expected: int, physical: int | None) -> int:
    """Memory that grows with the batch, for a large Poisson batch."""
    largest, examples = _largest(expected), _largest(expected, physical)
    ids = sum(IDS_PER_BAG if field.is_bag else 1 for field in schema.fields)
    # The examples themselves, ids, numbers and targets, for this batch and the next.
    total = examples * 2 * (8 * ids + 4 * layout.num_numeric + 24)
    total += examples * 4 * layout.width * SPARE
    for group in layout.groups:
        read = _read_by(group)
        total += examples * read * PLACE
        if examples < largest:
            # Sums of the pieces so far, the last piece's, and both merged, in float64 by touched row.
            touched = min(largest * read, group.num_rows)
            total += touched * 3 * (8 + 8 * group.dim)
    return math.ceil(total)


def _thread_bytes(layout: Layout, parameters: int, widths: list[int]) -> int:
    """Working memory of one thread: a chunk's features and activations, and its sums."""
    chunk = 4 * CHUNK * (layout.width + 2 * sum(widths) + max(widths, default=0))
    return math.ceil(SPARE * (chunk + PARAMETER_SUMS * parameters))


def check_memory(
    estimate: MemoryEstimate, *, words: MemoryWords = TRAINING_WORDS, root: Path = Path("/")
) -> None:
    """Refuses what will not fit, before anything is allocated.

    Args:
        estimate: what is needed.
        words: how a refusal speaks.
        root: where /proc and /sys are.

    Raises:
        ConfigError: the estimate exceeds what this process can have; the message says what is
            needed for what, and what to change.
    """
    room = available_memory(root)
    if room is None:
        return
    # The libraries are loaded in part, and what they hold is no longer among what is available.
    room += min(_kilobytes(root / "proc/self/status", "VmRSS:") or 0, estimate.imports)
    if estimate.total <= room:
        return
    parts = ", ".join(
        f"{name} {value / GIGABYTE:,.1f}"
        for name, value in asdict(estimate).items()
        if value >= 0.05 * GIGABYTE
    )
    raise ConfigError(
        f"Expected {words.wanted} into the {room / GIGABYTE:,.1f} GB of memory that this process can have, "
        f"got {words.got} {estimate.total / GIGABYTE:,.1f} GB ({parts}). "
        + (words.batch if estimate.batch > estimate.tables else words.tables)
    )


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still have: what the machine and its control groups leave.

    Args:
        root: where /proc and /sys are.

    Returns:
        The least of all limits, or None where the system tells of none.
    """
    limits = list(_group_limits(root))
    machine = _kilobytes(root / "proc/meminfo", "MemAvailable:")
    if machine is not None:
        limits.append(machine)
    return max(0, min(limits)) if limits else None


def _group_limits(root: Path) -> Iterator[int]:
    """What each control group of this process leaves, in both versions' layouts."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be that of the host, and the container's group is at the top.
        inner = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(inner), -1, -1):
            yield from _left_in(top.joinpath(*inner[:depth]), *files)


def _left_in(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    """What one control group leaves, if it limits memory; cached files do not count as used."""
    most, used = _lines(group / limit), _lines(group / usage)
    if not most or not used or most[0] == "max":
        return
    cached = [
        line.split()[1] for line in _lines(group / "memory.stat") if line.split()[0] == reclaimable
    ]
    yield int(most[0]) - int(used[0]) + int(cached[0] if cached else 0)


def _kilobytes(file: Path, key: str) -> int | None:
    """A figure of a /proc file, in bytes."""
    for line in _lines(file):
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return None


def _lines(file: Path) -> list[str]:
    """A file of the kernel, or nothing where there is none."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
