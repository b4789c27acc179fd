"""Parts of towers that are no layers: linear columns, pairs of vectors, cross layers, dot products.

Each comes as a forward and a backward kernel over one thread's chunk of examples, beside those of layers in
`feedforward`. Every example is computed by itself, so that its bits are its own.

    features   | embedded: fields x dim | linear | numeric |
    inputs     | embedded: fields x dim | numeric |            what layers read
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

FAST = {"reassoc", "contract"}


@njit(cache=True, nogil=True)
def take_inputs(
    features: NDArray[np.float32], embedded: int, linear: int, inputs: NDArray[np.float32]
) -> None:
    """inputs = features without the linear columns, float32[n, width - linear]."""
    for i in range(len(features)):
        inputs[i, :embedded] = features[i, :embedded]
        inputs[i, embedded:] = features[i, embedded + linear :]


@njit(cache=True, nogil=True)
def add_inputs(
    input_grads: NDArray[np.float32], embedded: int, linear: int, feature_grads: NDArray[np.float32]
) -> None:
    """Adds gradients by the inputs to those by the features."""
    for i in range(len(feature_grads)):
        row, given = feature_grads[i], input_grads[i]
        for j in range(embedded):
            row[j] += given[j]
        for j in range(embedded, len(given)):
            row[j + linear] += given[j]


@njit(cache=True, nogil=True)
def wide_forward(
    features: NDArray[np.float32],
    embedded: int,
    linear: int,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    logits: NDArray[np.float32],
) -> None:
    """Adds the linear columns, and a linear layer on the numbers, to the logits."""
    for i in range(len(features)):
        total = np.float64(bias[0])
        for j in range(linear):
            total += np.float64(features[i, embedded + j])
        for j in range(len(weight)):
            total += np.float64(features[i, embedded + linear + j]) * np.float64(weight[j])
        logits[i] += np.float32(total)


@njit(cache=True, nogil=True)
def wide_backward(
    by_logits: NDArray[np.float32],
    embedded: int,
    linear: int,
    weight: NDArray[np.float32],
    feature_grads: NDArray[np.float32],
) -> None:
    """Adds the linear part's gradients."""
    for i in range(len(by_logits)):
        row = feature_grads[i]
        for j in range(linear):
            row[embedded + j] += by_logits[i]
        for j in range(len(weight)):
            row[embedded + linear + j] += by_logits[i] * weight[j]


@njit(cache=True, nogil=True, fastmath=FAST)
def pairs_forward(
    features: NDArray[np.float32],
    fields: int,
    sums: NDArray[np.float32],
    logits: NDArray[np.float32],
) -> None:
    """Adds the dot products of all pairs of vectors to the logits.

    Args:
        features: float32[n, width], a vector of each field first.
        fields: number of vectors.
        sums: float32[n, dim], written: sum of each example's vectors.
        logits: float32[n], added to.
    """
    dim = sums.shape[1]
    for i in range(len(features)):
        total, row = sums[i], features[i]
        total[:] = 0.0
        squares = np.float32(0.0)
        for f in range(fields):
            part = row[f * dim : (f + 1) * dim]
            for j in range(dim):
                total[j] += part[j]
                squares += part[j] * part[j]
        square = np.float32(0.0)
        for j in range(dim):
            square += total[j] * total[j]
        logits[i] += np.float32(0.5) * (square - squares)


@njit(cache=True, nogil=True)
def pairs_backward(
    features: NDArray[np.float32],
    fields: int,
    sums: NDArray[np.float32],
    by_logits: NDArray[np.float32],
    feature_grads: NDArray[np.float32],
) -> None:
    """Adds d/dv_f = sum of the other vectors, times the gradient by the logit."""
    dim = sums.shape[1]
    for i in range(len(features)):
        total, row, out = sums[i], features[i], feature_grads[i]
        for f in range(fields):
            part, target = row[f * dim : (f + 1) * dim], out[f * dim : (f + 1) * dim]
            for j in range(dim):
                target[j] += by_logits[i] * (total[j] - part[j])


@njit(cache=True, nogil=True)
def cross_forward(
    start: NDArray[np.float32],
    before: NDArray[np.float32],
    outputs: NDArray[np.float32],
    bias: NDArray[np.float32],
    after: NDArray[np.float32],
) -> None:
    """after = start * (outputs + bias) + before; the bias is added to `outputs`. All float32[n, width]."""
    for i in range(len(start)):
        first, old, out, new = start[i], before[i], outputs[i], after[i]
        for j in range(len(bias)):
            out[j] += bias[j]
            new[j] = first[j] * out[j] + old[j]


@njit(cache=True, nogil=True)
def cross_backward(
    start: NDArray[np.float32],
    outputs: NDArray[np.float32],
    by_after: NDArray[np.float32],
    by_outputs: NDArray[np.float32],
    by_start: NDArray[np.float32],
) -> None:
    """by_outputs = by_after * start; by_start += by_after * outputs. All float32[n, width]."""
    for i in range(len(start)):
        first, out, given, layer, total = (
            start[i],
            outputs[i],
            by_after[i],
            by_outputs[i],
            by_start[i],
        )
        for j in range(len(first)):
            layer[j] = given[j] * first[j]
            total[j] += given[j] * out[j]


@njit(cache=True, nogil=True)
def add_to(values: NDArray[np.float32], total: NDArray[np.float32]) -> None:
    """total += values, float32[n, width]."""
    for i in range(len(total)):
        row, given = total[i], values[i]
        for j in range(len(row)):
            row[j] += given[j]


@njit(cache=True, nogil=True)
def join(left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """out[n, a + b] = [left[n, a], right[n, b]]."""
    width = left.shape[1]
    for i in range(len(out)):
        out[i, :width] = left[i]
        out[i, width:] = right[i]


@njit(cache=True, nogil=True)
def part_from(
    joined: NDArray[np.float32], left: NDArray[np.float32], right: NDArray[np.float32]
) -> None:
    """The reverse of `join`."""
    width = left.shape[1]
    for i in range(len(joined)):
        left[i] = joined[i, :width]
        right[i] = joined[i, width:]


@njit(cache=True, nogil=True, fastmath=FAST)
def dots_forward(
    numbers: NDArray[np.float32],
    inputs: NDArray[np.float32],
    fields: int,
    dim: int,
    out: NDArray[np.float32],
) -> None:
    """out = [the numbers' vector, dot products of all pairs of vectors, that vector the first of them].

    Args:
        numbers: float32[n, dim], or float32[n, 0] where there are none.
        inputs: float32[n, >= fields * dim].
        fields: vectors in `inputs`.
        dim: their length.
        out: float32[n, numbers' width + pairs], written: pairs (i, j < i) in order of i.
    """
    extra = 1 if numbers.shape[1] > 0 else 0
    count = fields + extra
    vectors = np.empty((count, dim), np.float32)
    for n in range(len(out)):
        row = out[n]
        if extra == 1:
            vectors[0] = numbers[n]
            row[:dim] = numbers[n]
        for f in range(fields):
            vectors[f + extra] = inputs[n, f * dim : (f + 1) * dim]
        at = extra * dim
        for i in range(count):
            for j in range(i):
                total = np.float32(0.0)
                for k in range(dim):
                    total += vectors[i, k] * vectors[j, k]
                row[at] = total
                at += 1


@njit(cache=True, nogil=True)
def dots_backward(
    numbers: NDArray[np.float32],
    inputs: NDArray[np.float32],
    fields: int,
    dim: int,
    by_out: NDArray[np.float32],
    by_numbers: NDArray[np.float32],
    by_inputs: NDArray[np.float32],
) -> None:
    """Gradients by the vectors; `by_numbers` and `by_inputs` are written, zero where no vector is."""
    extra = 1 if numbers.shape[1] > 0 else 0
    count = fields + extra
    vectors = np.empty((count, dim), np.float32)
    grads = np.empty((count, dim), np.float32)
    for n in range(len(by_out)):
        given = by_out[n]
        grads[:] = 0.0
        if extra == 1:
            vectors[0] = numbers[n]
            grads[0] = given[:dim]
        for f in range(fields):
            vectors[f + extra] = inputs[n, f * dim : (f + 1) * dim]
        at = extra * dim
        for i in range(count):
            for j in range(i):
                scale = given[at]
                for k in range(dim):
                    grads[i, k] += scale * vectors[j, k]
                    grads[j, k] += scale * vectors[i, k]
                at += 1
        if extra == 1:
            by_numbers[n] = grads[0]
        for f in range(fields):
            by_inputs[n, f * dim : (f + 1) * dim] = grads[f + extra]
        by_inputs[n, fields * dim :] = 0.0
