"""Matrix products of the private step, by torch's BLAS."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

# Float32 products over at most this many examples, float64 sums of them: over a batch of 65,536 aligned
# gradients the rounding stays below 2^-10 of the clip norm, which a single float32 product would exceed.
SPAN = 512


def clipped_outer_sum(
    scaled: NDArray[np.float32], inputs: NDArray[np.float32], out: NDArray[np.float64]
) -> None:
    """out += scaled^T inputs.

    Args:
        scaled: float32[B, n], output gradients times clip factors.
        inputs: float32[B, m].
        out: float64[n, m], added to.
    """
    left = torch.from_numpy(scaled)
    right = torch.from_numpy(inputs)
    total = torch.from_numpy(out)
    for start in range(0, left.shape[0], SPAN):
        total += left[start : start + SPAN].T @ right[start : start + SPAN]
