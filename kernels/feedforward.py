"""Forward and backward of a stack of linear and ReLU layers in one call, for one thread's chunk of examples.

The same mathematics as autograd's; without torch's and Python's cost per operation, which threads would
spend waiting for each other's GIL.

    parameters   | W0 (out0 x in0) | b0 (out0) | W1 | b1 | ... |
    activations  | layer 0: n x out0 | layer 1: n x out1 | ... | logits: n |
    gradients    likewise
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dpads.kernels.blas import Blas, times, times_transposed
from dpads.kernels.clip import add_clipped_layer, linear_square_norms

# exp(80) is about 5.5e34: still a float32, and so is its product with any exposure up to 6e3
LARGEST_LOG_COUNT = 80.0


class Losses(NamedTuple):
    """What the losses need beside the logits.

    Attributes:
        counts: whether the loss is Poisson's, else logistic.
        labels: float32[n].
        weights: float32[n], or empty for none.
        exposure: float32[n], or empty for none.
        offset: added to every logit.
    """

    counts: bool
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    exposure: NDArray[np.float32]
    offset: float


@njit(cache=True, nogil=True)
def loss_gradients(losses: Losses, logits: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Derivatives of the examples' losses by their logits, float32[n]."""
    for i in range(len(logits)):
        logit = np.float64(logits[i]) + losses.offset
        if losses.counts:
            if len(losses.exposure) > 0:
                logit += np.log(np.float64(losses.exposure[i]))
            mean = np.exp(LARGEST_LOG_COUNT) if logit > LARGEST_LOG_COUNT else np.exp(logit)
        elif logit >= 0.0:
            mean = 1.0 / (1.0 + np.exp(-logit))
        else:
            mean = 1.0 - 1.0 / (1.0 + np.exp(logit))
        value = mean - np.float64(losses.labels[i])
        if len(losses.weights) > 0:
            value *= np.float64(losses.weights[i])
        out[i] = np.float32(value)


@njit(cache=True, nogil=True)
def forward(
    blas: Blas,
    blocks: NDArray[np.int64],
    parameters: NDArray[np.float32],
    widths: NDArray[np.int64],
    features: NDArray[np.float32],
    last_relu: bool,
    activations: NDArray[np.float32],
) -> None:
    """Activations of every layer.

    Args:
        blas: from `find_blas`.
        blocks: int64[layers, 2, 4], of every layer, from `row_blocks`.
        parameters: float32, weights and biases of all layers.
        widths: int64[layers + 1], from the features' width.
        features: float32[n, widths[0]].
        last_relu: whether ReLU follows the last layer too.
        activations: float32[n * sum(widths[1:])], written.
    """
    n = len(features)
    layers = len(widths) - 1
    weight_at = 0
    here = 0
    inputs = features
    for layer in range(layers):
        width_in, width_out = widths[layer], widths[layer + 1]
        bias_at = weight_at + width_out * width_in
        weight = parameters[weight_at:bias_at].reshape((width_out, width_in))
        outputs = activations[here : here + n * width_out].reshape((n, width_out))
        times_transposed(blas, blocks[layer, 0], inputs, weight, outputs)
        relu = last_relu or layer < layers - 1
        _add_bias(outputs, parameters[bias_at : bias_at + width_out], relu)
        weight_at = bias_at + width_out
        here += n * width_out
        inputs = outputs


@njit(cache=True, nogil=True)
def backward(
    blas: Blas,
    blocks: NDArray[np.int64],
    parameters: NDArray[np.float32],
    widths: NDArray[np.int64],
    last_relu: bool,
    activations: NDArray[np.float32],
    output_grads: NDArray[np.float32],
    feature_grads: NDArray[np.float32],
) -> None:
    """Gradients of every example's loss by the features and by every layer's output, after `forward`.

    Args:
        blas: as above.
        blocks: as above.
        parameters: as above.
        widths: as above.
        last_relu: as above.
        activations: as written.
        output_grads: float32[n * sum(widths[1:])], written; its last n * widths[-1] numbers are the gradients
            by what the last layer gives, ReLU included.
        feature_grads: float32[n, widths[0]], written.
    """
    n = len(feature_grads)
    layers = len(widths) - 1
    here = n * widths[1:].sum() - n * widths[layers]
    weight_at = 0
    for layer in range(layers):
        weight_at += widths[layer + 1] * (widths[layer] + 1)
    for layer in range(layers - 1, -1, -1):
        width_in, width_out = widths[layer], widths[layer + 1]
        weight_at -= width_out * width_in + width_out
        weight = parameters[weight_at : weight_at + width_out * width_in]
        if last_relu or layer < layers - 1:
            end = here + n * width_out
            _mask(activations[here:end], output_grads[here:end])
        outer = output_grads[here : here + n * width_out].reshape((n, width_out))
        here -= n * width_in
        inner = feature_grads
        if layer > 0:
            inner = output_grads[here : here + n * width_in].reshape((n, width_in))
        times(blas, blocks[layer, 1], outer, weight.reshape((width_out, width_in)), inner)


@njit(cache=True, nogil=True)
def forward_backward(
    blas: Blas,
    blocks: NDArray[np.int64],
    parameters: NDArray[np.float32],
    widths: NDArray[np.int64],
    features: NDArray[np.float32],
    losses: Losses,
    activations: NDArray[np.float32],
    output_grads: NDArray[np.float32],
    feature_grads: NDArray[np.float32],
) -> None:
    """Activations, and gradients by the features and by every layer's output, of layers down to one logit.

    Args:
        blas: from `find_blas`.
        blocks: int64[layers, 2, 4], of every layer, from `row_blocks`.
        parameters: float32, weights and biases of all layers.
        widths: int64[layers + 1], from the features' width down to 1.
        features: float32[n, widths[0]].
        losses: of the n examples.
        activations: float32[n * sum(widths[1:])], written.
        output_grads: float32[n * sum(widths[1:])], written.
        feature_grads: float32[n, widths[0]], written.
    """
    forward(blas, blocks, parameters, widths, features, False, activations)
    last = len(features) * widths[1:].sum()
    here = last - len(features)
    loss_gradients(losses, activations[here:last], output_grads[here:last])
    backward(blas, blocks, parameters, widths, False, activations, output_grads, feature_grads)


@njit(cache=True, nogil=True)
def sum_forward(
    weight: NDArray[np.float32],
    bias: float,
    features: NDArray[np.float32],
    logits: NDArray[np.float32],
) -> None:
    """Logits that are the sum of the first features plus a linear layer on the rest.

    Args:
        weight: float32[K], of the last K features.
        bias: of the linear layer.
        features: float32[n, width].
        logits: float32[n], written.
    """
    embedded = features.shape[1] - len(weight)
    for i in range(len(features)):
        total = np.float64(bias)
        for j in range(embedded):
            total += np.float64(features[i, j])
        for j in range(len(weight)):
            total += np.float64(features[i, embedded + j]) * np.float64(weight[j])
        logits[i] = np.float32(total)


@njit(cache=True, nogil=True)
def sum_forward_backward(
    weight: NDArray[np.float32],
    bias: float,
    features: NDArray[np.float32],
    losses: Losses,
    logits: NDArray[np.float32],
    feature_grads: NDArray[np.float32],
) -> None:
    """`sum_forward`, and the gradients of the losses.

    Args:
        weight: as above.
        bias: as above.
        features: float32[n, width].
        losses: of the n examples.
        logits: float32[n], overwritten by the gradients of the losses by the logits.
        feature_grads: float32[n, width], written.
    """
    sum_forward(weight, bias, features, logits)
    embedded = features.shape[1] - len(weight)
    loss_gradients(losses, logits, logits)
    for i in range(len(features)):
        for j in range(embedded):
            feature_grads[i, j] = logits[i]
        for j in range(len(weight)):
            feature_grads[i, embedded + j] = logits[i] * weight[j]


@njit(cache=True, nogil=True)
def _add_bias(outputs: NDArray[np.float32], bias: NDArray[np.float32], relu: bool) -> None:
    """outputs += bias, then max(outputs, 0) where `relu`; NaN stays NaN."""
    for i in range(len(outputs)):
        row = outputs[i]
        if relu:
            for j in range(len(bias)):
                value = row[j] + bias[j]
                if value <= np.float32(0.0):
                    value = np.float32(0.0)
                row[j] = value
        else:
            for j in range(len(bias)):
                row[j] += bias[j]


@njit(cache=True, nogil=True)
def _mask(outputs: NDArray[np.float32], gradients: NDArray[np.float32]) -> None:
    """Zero gradients where ReLU gave zero."""
    for i in range(len(outputs)):
        if outputs[i] <= np.float32(0.0):
            gradients[i] = 0.0


@njit(cache=True, nogil=True)
def add_square_norms(
    widths: NDArray[np.int64],
    features: NDArray[np.float32],
    activations: NDArray[np.float32],
    output_grads: NDArray[np.float32],
    unit_offsets: NDArray[np.int64],
    squares: NDArray[np.float64],
    parts: NDArray[np.float64],
) -> None:
    """`clip.linear_square_norms` of every layer, after `forward_backward`."""
    n = len(features)
    inputs = features
    here = 0
    for width in widths[1:]:
        grads = output_grads[here : here + n * width].reshape((n, width))
        linear_square_norms(inputs, grads, 1.0, unit_offsets, squares, parts)
        inputs = activations[here : here + n * width].reshape((n, width))
        here += n * width


@njit(cache=True, nogil=True)
def add_clipped(
    blas: Blas,
    widths: NDArray[np.int64],
    features: NDArray[np.float32],
    activations: NDArray[np.float32],
    output_grads: NDArray[np.float32],
    factors: NDArray[np.float32],
    groups: NDArray[np.int64],
    scaled: NDArray[np.float32],
    product: NDArray[np.float32],
    sums: NDArray[np.float64],
) -> None:
    """`clip.add_clipped_layer` of every layer, after `forward_backward`.

    Args:
        blas: from `torch_ops.find_blas`.
        widths: int64[layers + 1].
        features: float32[n, widths[0]].
        activations: as written.
        output_grads: as written.
        factors: float32[n], clip factors.
        groups: int64[g + 1], bounds of groups of examples; empty for float64 products.
        scaled: float32[n * largest width after the first], scratch.
        product: float32[largest weight], scratch.
        sums: float64[parameters], laid out as the parameters, added to.
    """
    n = len(features)
    inputs = features
    here = 0
    at = 0
    for layer in range(len(widths) - 1):
        width_in, width_out = widths[layer], widths[layer + 1]
        bias_at = at + width_out * width_in
        grads = output_grads[here : here + n * width_out].reshape((n, width_out))
        add_clipped_layer(
            blas,
            grads,
            inputs,
            factors,
            groups,
            scaled[: n * width_out].reshape((n, width_out)),
            product[: width_out * width_in].reshape((width_out, width_in)),
            sums[at:bias_at].reshape((width_out, width_in)),
            sums[bias_at : bias_at + width_out],
        )
        inputs = activations[here : here + n * width_out].reshape((n, width_out))
        here += n * width_out
        at = bias_at + width_out
