"""The layers: a lower module never imports a higher one, wherever the import is written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"errors", "_validate", "kernels"},
    {"schema", "hashing", "batch", "hosts", "jax_hosts", "jax_devices"},
    {"models", "accounting"},
    {
        "config", "plan", "encoding", "reading", "store", "sampling", "clipping", "noise", "tables",
        "row_sums", "drawing", "schedules", "tensor_files", "optimizers", "tower_optimizer", "row_keys",
        "synthetic", "resources", "preparing", "units", "plan_rows", "selection", "private_sums", "prior",
        "recalibration", "label_sums", "rounding", "jax_batches", "jax_chunks", "jax_rows", "jax_loading",
        "jax_clip", "jax_step", "jax_optimizers",
    },
    {
        "training", "release_stages", "checkpoint", "evaluation", "intervals", "reliability", "predicting",
        "benching", "backend", "torch_backend", "jax_backend",
    },
    {
        "cli", "report", "record", "run", "exporting", "estimators", "verifying", "sweep", "sweeping",
        "selecting", "tune_config", "warm_start", "start_rows", "private_selection", "private_score",
        "recipe", "recipes",
    },
]  # fmt: skip
# The package's own front door and the console script stand above all layers.
ABOVE = {"__init__", "__main__"}
FRAMEWORKS = {"torch", "jax", "opacus"}


def source_files() -> Iterator[tuple[str, Path]]:
    """(dotted name below dpads, file) of every module, each once."""
    for top, prefix in (("dpads", ()), *((n, (n,)) for n in ("accounting", "models", "kernels"))):
        for file in sorted((ROOT / top).rglob("*.py")):
            if not any(parent.is_symlink() for parent in file.parents):
                yield ".".join((*prefix, *file.relative_to(ROOT / top).with_suffix("").parts)), file


def imports(nodes: list[ast.AST]) -> Iterator[str]:
    """Full names of everything that import statements among the nodes bring in."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports(source: str) -> set[str]:
    return set(imports(list(ast.walk(ast.parse(source)))))


def module_level_imports(source: str) -> set[str]:
    """Imports that run when the module is imported: none in functions or under TYPE_CHECKING."""
    found: list[ast.AST] = []
    stack: list[ast.AST] = [ast.parse(source)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack.extend(node.orelse)
            continue
        found.append(node)
        stack.extend(ast.iter_child_nodes(node))
    return set(imports(found))


def layer_of(name: str) -> int:
    """Layer of a module by its first part; cli_x and config_x belong with cli and config."""
    first = name.partition(".")[0]
    for number, layer in enumerate(LAYERS):
        if first in layer or any(first.startswith(f"{member}_") for member in layer):
            return number
    raise AssertionError(f'"{name}" is in no layer: add it to LAYERS')


def is_framework_file(name: str) -> bool:
    """Whether a module may import torch or jax when it is imported; its users import it lazily."""
    last = name.rpartition(".")[2]
    return last.endswith("_ops") or last.startswith(("torch_", "jax_"))


def offences(name: str, source: str) -> set[str]:
    """Names that the module imports against the rules."""
    bad = set()
    for target in all_imports(source):
        if target.startswith("dpads."):
            other = target.removeprefix("dpads.")
            if other == "__version__":
                continue
            if layer_of(other) > layer_of(name):
                bad.add(target)
            if {name.partition(".")[0], other.partition(".")[0]} == {"models", "accounting"}:
                bad.add(target)
    if name.startswith("accounting"):
        forbidden = ("torch", "jax", "opacus", "polars", "dpads.kernels", "dpads.models")
        bad |= {target for target in all_imports(source) if target.startswith(forbidden)}
    if not is_framework_file(name):
        bad |= {
            target
            for target in module_level_imports(source)
            if target.partition(".")[0] in FRAMEWORKS
        }
    if name.startswith("kernels") and not is_framework_file(name):
        bad |= {t for t in all_imports(source) if t.partition(".")[0] in FRAMEWORKS}
    return bad


@pytest.mark.parametrize(
    ("name", "file"), [pytest.param(n, f, id=n) for n, f in source_files() if n not in ABOVE]
)
def test_a_lower_layer_never_imports_a_higher_one(name: str, file: Path) -> None:
    assert not offences(name, file.read_text())


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("schema", "from dpads.store import ExampleStore"),
        ("schema", "def f():\n    import dpads.cli"),
        ("accounting.ledger", "from dpads.models import Mlp"),
        ("accounting.ledger", "def f():\n    import polars"),
        ("models.mlp", "from dpads.accounting import events"),
        ("models.mlp", "import torch"),
        ("models.mlp", "class A:\n    import torch.nn"),
        ("kernels.clip", "def f():\n    import torch"),
        ("config", "from dpads.training import Performance"),
    ],
)
def test_the_walk_sees(name: str, source: str) -> None:
    assert offences(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("models.mlp", "def f():\n    import torch"),
        ("models.mlp", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("kernels.torch_ops", "import torch"),
        ("run", "from dpads.training import Performance"),
    ],
)
def test_the_walk_lets_pass(name: str, source: str) -> None:
    assert not offences(name, source)
