"""Every model's logit is the equation of its paper, written here with plain loops over the fields."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from brute_force import perturb

import dpads
from dpads.models import Dcn, DeepFm, Dlrm, Fm, Logistic, Mlp

FIELDS = ["a", "b", "c"]
ROWS = 9


def schema(fields: list[str] = FIELDS, numeric: int = 2, **more: Any) -> Any:
    numbers = [f"n{k}" for k in range(numeric)]
    return dpads.FeatureSchema(
        task="ctr", label="y", numeric=numbers, categorical=fields, buckets=ROWS, **more
    )


class Example:
    """One example, and a model's parameters in float64."""

    def __init__(self, model: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.ids = {name: int(rng.integers(0, ROWS)) for name in model.schema.categorical}
        self.x = rng.normal(size=len(model.schema.numeric)).astype(np.float32).astype(float)
        self.tables = {name: value.astype(float) for name, value in model.tables.items()}
        self.p = {name: value.astype(float) for name, value in model.dense.items()}
        self.batch = dpads.SparseBatch.from_arrays(
            ids={name: [row] for name, row in self.ids.items()}, dense=[self.x], labels=[0]
        )

    @property
    def vectors(self) -> list[Any]:
        """v_i of every field."""
        return [self.tables[name][row] for name, row in self.ids.items()]

    @property
    def wide(self) -> float:
        """w0 + sum of w_i x_i."""
        weights = sum(self.tables[f"{name}.linear"][row, 0] for name, row in self.ids.items())
        return float(weights + self.layer("wide.linear", self.x)[0])

    @property
    def inputs(self) -> Any:
        """All vectors and numbers in a row."""
        return np.concatenate([*self.vectors, self.x])

    def layer(self, name: str, x: Any) -> Any:
        """W x + b."""
        return self.p[f"{name}.weight"] @ x + self.p[f"{name}.bias"]

    def relus(self, names: list[str], x: Any) -> Any:
        """Layers of ReLU."""
        for name in names:
            x = np.maximum(self.layer(name, x), 0.0)
        return x


def logistic(e: Example) -> float:
    return float(sum(v[0] for v in e.vectors) + e.layer("linear", e.x)[0])


def mlp(e: Example) -> float:
    return float(e.layer("output", e.relus(["hidden0", "hidden1"], e.inputs))[0])


def deep(e: Example) -> float:
    hidden = e.relus(["deep.layers.hidden0"], e.inputs)
    return float(e.layer("deep.layers.output", hidden)[0])


def fm(e: Example) -> float:
    return e.wide + float(sum(v @ w for v, w in combinations(e.vectors, 2)))


def dcn(e: Example) -> float:
    x0 = x = e.inputs
    for number in range(2):
        x = x0 * e.layer(f"dcn.cross.{number}", x) + x
    return float(e.layer("dcn.output", np.concatenate([x, e.relus(["dcn.hidden.0"], x0)]))[0])


def dlrm(e: Example) -> float:
    vectors = e.vectors
    start = []
    if len(e.x):
        start = [e.relus(["dlrm.bottom.0", "dlrm.bottom.1"], e.x)]
    vectors = [*start, *vectors]
    dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
    top = e.relus(["dlrm.top.hidden0"], np.concatenate([*start, dots]))
    return float(e.layer("dlrm.top.output", top)[0])


EQUATIONS: list[tuple[Any, Any]] = [
    (Logistic(), logistic),
    (Mlp(embedding_dim=3, hidden=(5, 4)), mlp),
    (Mlp(embedding_dim=3, hidden=(5,), wide=True), lambda e: e.wide + deep(e)),
    (Fm(embedding_dim=3), fm),
    (DeepFm(embedding_dim=3, hidden=(5,)), lambda e: fm(e) + deep(e)),
    (Dcn(embedding_dim=3, cross_layers=2, hidden=(5,)), dcn),
    (Dcn(embedding_dim=3, cross_layers=2, hidden=(5,), wide=True), lambda e: e.wide + dcn(e)),
    (Dlrm(embedding_dim=3, bottom=(4,), top=(5,)), dlrm),
    (Dlrm(embedding_dim=3, bottom=(4,), top=(5,), wide=True), lambda e: e.wide + dlrm(e)),
]


@pytest.mark.parametrize(
    ("description", "equation"), EQUATIONS, ids=lambda d: getattr(d, "name", "")
)
@pytest.mark.parametrize("numeric", [0, 2])
def test_a_logit_is_the_equation_of_the_paper(
    description: Any, equation: Any, numeric: int
) -> None:
    model = perturb(description.init(schema(numeric=numeric)), 1)
    for seed in range(5):
        example = Example(model, seed)
        features = model.features(example.batch, np.float64)
        np.testing.assert_allclose(model.tower.logits(features), [equation(example)], rtol=1e-9)
        single = model.tower.logits(model.features(example.batch))
        np.testing.assert_allclose(single, [equation(example)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "description",
    [
        *(pair[0] for pair in EQUATIONS),
        Dcn(embedding_dim="auto", cross_layers=1, hidden=()),
        Dlrm(embedding_dim=1, bottom=(), top=()),
    ],
    ids=lambda d: d.name,
)
def test_a_description_is_plain_data(description: Any) -> None:
    assert dpads.models.describe(description.to_dict()) == description


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "fm", "embedding_dim": "auto"}, "the same for all fields.*got \"?'?auto"),
        ({"name": "fm", "embedding_dim": 0}, "positive integer"),
        ({"name": "deepfm", "hidden": [4, 0]}, "hidden"),
        ({"name": "dcn", "cross_layers": 0}, "mlp"),
        ({"name": "dcn", "embedding_dim": "all"}, '"auto"'),
        ({"name": "dcn", "wide": 1}, "true or false"),
        ({"name": "dlrm", "top": [True]}, "top"),
        ({"name": "dlrm", "bottom": [-1]}, "bottom"),
        ({"name": "mlp", "wide": "yes"}, "true or false"),
        ({"name": "deepfn"}, 'Did you mean "deepfm"'),
    ],
)
def test_descriptions_out_of_range_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(dpads.ConfigError, match=message):
        dpads.models.describe(table)


def test_dlrm_needs_two_vectors() -> None:
    with pytest.raises(dpads.SchemaError, match="two categorical columns"):
        Dlrm().init(schema(["a"], numeric=0))
    assert Dlrm(4, (), (2,)).init(schema(["a"], numeric=1)).layout.slots == 1


def test_columns_named_like_a_linear_part_are_refused() -> None:
    with pytest.raises(dpads.SchemaError, match=r'linear part of "a".*Rename'):
        Fm().init(schema(["a", "a.linear"]))
    Mlp(hidden=(3,)).init(schema(["a", "a.linear"]))  # no linear part, no second name


def test_linear_parts_and_biases_start_at_zero_and_vectors_do_not() -> None:
    for description, _ in EQUATIONS:
        model = description.init(schema(), seed=1)
        for name, table in model.tables.items():
            zero = name.endswith(".linear") or description.name == "logistic"
            assert table.any() != zero
        for name, value in model.dense.items():
            start = name.endswith("bias") or name in ("wide.linear.weight", "linear.weight")
            assert value.any() != start, name
