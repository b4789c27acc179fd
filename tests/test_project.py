"""The project: packaging, what `import dpads` costs, the guards of the three root packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dpads

ROOT = Path(__file__).parents[1]
HEAVY = [
    "torch", "jax", "opacus", "numba", "polars", "sklearn", "dp_accounting", "typer", "pyarrow",
    "scipy", "jsonschema", "jinja2", "pydantic", "rich",
]  # fmt: skip


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter from the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_import_dpads_is_light() -> None:
    code = (
        "import time, sys, json; before = set(sys.modules); start = time.perf_counter();"
        "import dpads;"
        "seconds = time.perf_counter() - start;"
        "print(json.dumps([seconds, sorted(set(sys.modules) - before)]))"
    )
    runs = [python(code) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    results = [json.loads(run.stdout) for run in runs]
    loaded = {name.partition(".")[0] for name in results[0][1]}
    assert not loaded & set(HEAVY)
    assert min(seconds for seconds, _ in results) < 1.0


def test_the_schema_is_light_too() -> None:
    run = python("import sys, dpads; dpads.FeatureSchema; dpads.ConfigError; print(*sys.modules)")
    assert run.returncode == 0, run.stderr
    assert not {name.partition(".")[0] for name in run.stdout.split()} & set(HEAVY)


@pytest.mark.parametrize("name", ["accounting", "models", "kernels"])
def test_root_packages_guard_themselves(name: str) -> None:
    run = python(f"import {name}")
    assert run.returncode == 1
    assert f"import dpads.{name}, not {name}" in run.stderr
    assert python(f"import dpads.{name}").returncode == 0


def test_every_public_name_loads_and_is_documented() -> None:
    for name in dpads.__all__:
        value = getattr(dpads, name)
        if name != "__version__":
            assert value.__doc__, name
    assert sorted(dpads.__all__) == dpads.__all__
    assert dir(dpads) == dpads.__all__


def test_lazy_names_and_all_agree() -> None:
    lazy = {*dpads._MODULE_OF, *dpads._SUBMODULES, "__version__"}
    assert lazy == set(dpads.__all__)
    assert dpads._MODULE_OF["Run"] == "run"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trainee'"):
        dpads.Trainee  # noqa: B018


def test_version_is_written_once_more_in_pyproject_and_changelog() -> None:
    assert project()["project"]["version"] == dpads.__version__  # type: ignore[index]
    assert f"## [{dpads.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_is_listed() -> None:
    settings = project()["tool"]["setuptools"]  # type: ignore[index]
    found = {
        ".".join(("dpads", *file.parent.relative_to(ROOT).parts)).replace("dpads.dpads", "dpads")
        for top in ("dpads", "accounting", "models", "kernels")
        for file in (ROOT / top).rglob("__init__.py")
        if not any(parent.is_symlink() for parent in file.parents)
    }
    assert found == set(settings["packages"])


def test_links_point_at_the_root_packages() -> None:
    for name in ("accounting", "models", "kernels"):
        assert (ROOT / "dpads" / name).readlink() == Path("..") / name


def test_constraints_pin_every_dependency_without_machine_facts() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    extras = project()["project"]["optional-dependencies"]  # type: ignore[index]
    wanted = [*project()["project"]["dependencies"], *extras["test"]]  # type: ignore[index]
    names = {re.split(r"[<>=\[ ]", item)[0].lower() for item in wanted}
    assert names <= pinned


def test_files_are_short() -> None:
    for top in ("dpads", "accounting", "models", "kernels", "tests"):
        for file in (ROOT / top).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 500, file
