"""Where parameters start: from public things alone."""

from __future__ import annotations

import numpy as np
import pytest

import dpads
from dpads.models.base import REGISTRY


@pytest.mark.parametrize(
    "name", sorted(name for name, kind in REGISTRY.items() if kind.in_files)
)  # a user's own starts as it came
def test_initial_parameters_follow_from_schema_and_seed_alone(name: str) -> None:
    schema = dpads.FeatureSchema(
        task="ctr", label="click", numeric=["n"], categorical=["c"], bags=["b"], buckets=50
    )
    description = dpads.models.describe({"name": name})
    one, other = (description.init(schema, seed=3) for _ in range(2))
    for first, again in ((one.tables, other.tables), (one.dense, other.dense)):
        assert first.keys() == again.keys()
        for key in first:
            np.testing.assert_array_equal(first[key], again[key])
    biases = [key for key in one.dense if key.endswith("bias")]
    assert biases
    for key in biases:
        assert not one.dense[key].any()
