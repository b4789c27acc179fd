"""Products that certify or sum clipped gradients are made in the precision that they are bounded in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax_kernel_places import linear_sums


def products(program: Any) -> Iterator[Any]:
    """The matrix products of a program, those within its loops included."""
    for step in program.eqns:
        if step.primitive.name == "dot_general":
            yield step
        for value in step.params.values():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, ClosedJaxpr):
                    yield from products(part.jaxpr)
                elif isinstance(part, Jaxpr):
                    yield from products(part)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("setting", [None, "bfloat16", "tensorfloat32"])
def test_no_setting_of_the_users_makes_sums_coarser(grouped: bool, setting: str | None) -> None:
    rng = np.random.default_rng(0)
    inputs, outs = (rng.normal(size=(200, 3)).astype(np.float32) for _ in range(2))
    factors, groups = np.ones(200, np.float32), np.array([0, 30, 200], np.int32)
    arrays = (inputs, outs, factors, *((groups,) if grouped else ()))

    def sums(inputs: Any, outs: Any, factors: Any, groups: Any = None) -> Any:
        return linear_sums(inputs, outs, factors, 1, groups)

    with jax.enable_x64(True), jax.default_matmul_precision(setting):
        program = jax.make_jaxpr(sums)(*arrays)
        weight, _ = jax.jit(sums)(*arrays)
    found = [step.params["precision"] for step in products(program.jaxpr)]
    assert found
    for precision in found:
        assert set(precision) == {lax.Precision.HIGHEST}
    exact = outs.astype(np.float64).T @ inputs.astype(np.float64)
    np.testing.assert_allclose(weight, exact, atol=1e-3)
