"""Matrix products of the private step, by torch's BLAS."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

# Float32 products over at most SPAN examples, summed in float64. Over a batch of 65,536 aligned gradients,
# with one unit taken from the front so that all others regroup, the rounding then stays below 2^-10 of the
# clip norm; products over 512 examples exceed it five times. GROUP products at a time stay in cache.
# Larger batches take float64 products, slower and beyond doubt.
SPAN = 64
GROUP = 8
LARGEST_FLOAT32 = 65_536


def clipped_outer_sum(
    scaled: NDArray[np.float32], inputs: NDArray[np.float32], out: NDArray[np.float64]
) -> None:
    """out += scaled^T inputs.

    Args:
        scaled: float32[B, n], output gradients times clip factors.
        inputs: float32[B, m].
        out: float64[n, m], added to.
    """
    left, right, total = torch.from_numpy(scaled), torch.from_numpy(inputs), torch.from_numpy(out)
    if left.shape[0] > LARGEST_FLOAT32:
        for start in range(0, left.shape[0], SPAN * SPAN):
            end = start + SPAN * SPAN
            total += left[start:end].double().T @ right[start:end].double()
        return
    whole = left.shape[0] - left.shape[0] % SPAN
    for start in range(0, whole, SPAN * GROUP):
        end = min(start + SPAN * GROUP, whole)
        count = (end - start) // SPAN
        spans = left[start:end].reshape(count, SPAN, left.shape[1]).transpose(1, 2)
        products = torch.bmm(spans, right[start:end].reshape(count, SPAN, right.shape[1]))
        total += products.sum(dim=0, dtype=torch.float64)
    if whole < left.shape[0]:
        total += left[whole:].T @ right[whole:]
