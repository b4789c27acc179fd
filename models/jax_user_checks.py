"""What a user's function must show before it becomes a tower: read in its program, and tried on made-up rows.

JAX gives the function one example at a time, so that examples meet only in what is no part of its program:
calls of Python, foreign code, and rules of the user's own for how to map an operation over a batch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from numpy.typing import NDArray

from dpads.batch import Targets
from dpads.errors import ConfigError
from dpads.models.gradients import DenseSums
from dpads.models.jax_host_tower import BLOCK, HostTower
from dpads.models.jax_losses import JaxTargets, example_losses
from dpads.models.jax_user_tower import UserTower

CHECKED_ROWS = 6
TOLERANCE = 1e-3  # of float32 in another order
SCALES = np.array([1.0, 10.0, 1e4])  # of neighbours
ODD = (0.0, np.inf, -np.inf, np.nan, 3e38)
# Operations whose meaning is not in the program: code that could look at other examples, or remember them.
OUTSIDE = re.compile(
    r"callback|custom_vmap|custom_partitioning|ffi|custom_call|pallas|infeed|outfeed"
)
NO_GROUPS = np.empty(0, np.int64)

Parameters = Mapping[str, NDArray[np.float32]]


def check_program(tower: UserTower, parameters: Parameters, width: int) -> None:
    """Reads the function's program for one example.

    Raises:
        ConfigError: it is another one each time, or runs code that is not in it.
    """
    with jax.enable_x64(True):
        row = np.zeros(width, np.float32)
        # a new function each time, or JAX would hand out what it traced before
        program, again = (
            jax.make_jaxpr(lambda params, row: tower.one(params, row))(dict(parameters), row)
            for _ in range(2)
        )
    if digest_of(program) != digest_of(again):
        raise ConfigError(
            "apply makes another program when it is traced again: it draws numbers outside of JAX, or "
            "changes what it reads. Let it compute from its arguments alone; leave out dropout, since noise "
            "takes its place."
        )
    _refuse_outside(program)


def gradients_of(tower: UserTower, parameters: Parameters, width: int) -> ClosedJaxpr:
    """The program of the logit and its gradients for one example; the user's own rules for them are in it.

    Raises:
        ConfigError: it runs code that is not in it.
    """
    with jax.enable_x64(True):
        program = jax.make_jaxpr(jax.value_and_grad(tower.one, argnums=(0, 1)))(
            dict(parameters), np.zeros(width, np.float32)
        )
    _refuse_outside(program)
    return program


def _refuse_outside(program: ClosedJaxpr) -> None:
    """Refuses a program that runs code which is not in it."""
    if program.effects:
        raise ConfigError(_outside(str(next(iter(program.effects)))))
    for step in (step for part in _programs(program) for step in part.jaxpr.eqns):
        if OUTSIDE.search(step.primitive.name):
            raise ConfigError(_outside(step.primitive.name))


def digest_of(program: ClosedJaxpr) -> str:
    """SHA-256 of a program and the constants in it."""
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(program)).encode())
    for value in (value for part in _programs(program) for value in part.consts):
        array = np.asarray(value)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_function(tower: UserTower, parameters: Parameters, width: int) -> None:
    """Checks that an example's bits are its own, and its gradients, on made-up rows.

    Parameters are moved at random: where a layer starts at zero, nothing would be seen of those before it.

    Raises:
        ConfigError: one of them is not so.
    """
    rng = np.random.default_rng(2)
    moved = {}
    for name, value in parameters.items():
        inputs = value[0].size if value.ndim > 1 else 16
        step = 0.5 * rng.normal(size=value.shape) / np.sqrt(max(inputs, 1))
        moved[name] = (value + step).astype(np.float32)
    host = HostTower(tower, moved)
    rows = rng.normal(size=(BLOCK, width)).astype(np.float32)
    if not np.isfinite(host.logits(rows)).all():
        raise ConfigError(
            "apply returns logits that are not finite on made-up rows, whose numbers are of either sign. Let "
            "it take any numbers."
        )
    _check_bits(host, rows, rng)
    _check_gradients(host, rows)


def _check_bits(host: HostTower, rows: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Compares what comes of examples among other examples, and at other places."""
    alone = _values(host, rows)
    order = rng.permutation(len(rows))
    trials = [(order, rows[order])]
    for kept in (np.arange(len(rows)) % 2 == 0, np.arange(len(rows)) < 3):
        block = rng.normal(size=rows.shape) * rng.choice(SCALES, (len(rows), 1))
        block[np.flatnonzero(~kept)[: len(ODD)]] = np.array(ODD)[:, None]
        block[kept] = rows[kept]
        trials.append((np.where(kept, np.arange(len(rows)), -1), block.astype(np.float32)))
    for places, block in trials:
        for one, other in zip(_values(host, block), alone, strict=True):
            if not np.array_equal(one[places >= 0], other[places[places >= 0]]):
                raise ConfigError(
                    "An example gets another logit, or another gradient, among other examples than among "
                    "these, so that clipping would not bound what one example does. Leave out what JAX "
                    "cannot map over examples one by one."
                )


def _values(host: HostTower, block: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """All that comes of the examples of a block, float32[n, ...] each."""
    count, by_features = len(block), np.empty_like(block)
    targets = Targets(np.ones(count, np.float32), None, None)
    factored, whole = host.gradients(block, targets, by_features).members
    found = [host.logits(block), by_features]
    for layer in factored.linears:  # type: ignore[attr-defined]
        found += [layer.inputs, layer.output_grads]
    found += whole.values.values()  # type: ignore[attr-defined]
    return [array.reshape(count, -1) for array in found]


def _check_gradients(host: HostTower, rows: NDArray[np.float32]) -> None:
    """Compares gradients with JAX's own, of the function by itself on one example at a time."""
    tower, parameters = host.module, host.parameters
    rows = rows[:CHECKED_ROWS]
    targets = Targets((np.arange(len(rows)) % 2).astype(np.float32), None, None)
    by_features = np.empty_like(rows)
    found = host.gradients(rows, targets, by_features)
    squares, parts = np.zeros(len(rows)), np.zeros(len(rows))
    found.add_square_norms(np.arange(len(rows) + 1), squares, parts)
    size = sum(value.size for value in parameters.values())
    wrong = dict.fromkeys(("features", "norms", *parameters), 0)

    def loss(params: Any, row: Any, label: Any) -> Any:
        logits = tower.one(params, row)[None]
        return example_losses(tower.task, logits, JaxTargets(label, None, None))[0]

    by_both = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for number, row in enumerate(rows):
        label = targets.labels[number : number + 1]
        expected, by_row = by_both(parameters, row, label)
        sums = DenseSums.over(np.zeros(size), parameters)
        found.add_clipped((np.arange(len(rows)) == number).astype(np.float32), NO_GROUPS, sums)
        scale = max(float(np.linalg.norm(value)) for value in (by_row, *expected.values()))
        norm = np.sqrt(sum(float(np.sum(np.square(value))) for value in expected.values()))
        pairs: dict[str, tuple[Any, Any]] = {
            "features": (by_features[number], by_row),
            "norms": (np.sqrt(squares[number]), norm),
            **{name: (sums.parts[name], value) for name, value in expected.items()},
        }
        for name, (one, other) in pairs.items():
            error = float(np.linalg.norm(np.subtract(one, other)))
            bound = TOLERANCE * (float(np.linalg.norm(other)) + 1e-3 * scale + 1e-6)
            wrong[name] += not error <= bound  # also where it is NaN
    for name, times in wrong.items():
        if times > 1:  # a kink, such as ReLU's, may come to lie between two roundings once
            what = name if name in ("features", "norms") else f'parameter "{name}"'
            raise ConfigError(
                f"The gradients of {what} are not those of jax.grad on apply, one example at a time. "
                "Something in it is another when JAX maps it over examples, or when it is called again."
            )


def _programs(program: ClosedJaxpr) -> Iterator[ClosedJaxpr]:
    """The program, and those that its operations run."""
    yield program
    for step in program.jaxpr.eqns:
        held = jax.tree.leaves(list(step.params.values()), is_leaf=_is_program)
        for value in filter(_is_program, held):
            yield from _programs(
                value if isinstance(value, ClosedJaxpr) else ClosedJaxpr(value, ())
            )


def _is_program(value: object) -> bool:
    """Whether a value is a program."""
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _outside(name: str) -> str:
    """The message for an operation that is not in the program."""
    return (
        f"apply uses {name}, which runs code that JAX cannot see: it could look at other examples, or "
        "remember them. Write it in operations of JAX."
    )
