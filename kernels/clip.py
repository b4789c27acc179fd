"""Per-unit squared norms with duplicates merged, clip factors, and the merged clipped sum.

A unit is a contiguous segment of examples, `unit_offsets[u]:unit_offsets[u + 1]`. Its gradient with
respect to a table row is the sum over all places of the unit that read the row: merge first, then square.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dpads.kernels.blas import Blas, add_transposed_times, transposed_times
from dpads.kernels.lookup import Places
from dpads.kernels.memory import PLACES_AHEAD, prefetch
from dpads.kernels.merge import Runs, SortedPlaces
from dpads.kernels.partial_sums import SUMMED_AT_A_TIME

# The factor is rounded to float32 (relative error 2^-24) and so is the product; 2^-22 covers both.
FACTOR_MARGIN = 1.0 - 2.0**-22
SMALLEST_FACTOR = 2.0**-100
SMALLEST_NORMAL = np.float32(2.0**-126)
# Float32 products over at most so many examples, summed in float64. n gradients of norm C or less move a
# float32 sum by less than (n^2 / 2 + n) 2^-24 C, whatever the order; a unit more or less changes one group's
# rounding and no other's, so the sum moves by at most (1 + (n^2 + 2 n) 2^-24) C < (1 + 0.6 * 2^-10) C.
LARGEST_GROUP = 96
MEAN_GROUP = 72  # of random sizes, one in 400 is beyond the largest: float64 then
TILE = 1 << 17  # sums that stay in the second-level cache while groups are added to them

# Additions in any order, so that they vectorise: n terms err by at most n * 2^-53 of their absolute sum.
ANY_ORDER = {"reassoc", "contract"}


@njit(cache=True, nogil=True, fastmath=ANY_ORDER)
def square_norms_distinct(
    grads: NDArray[np.float32],
    places: Places,
    first: int,
    dim: int,
    slots: int,
    squares: NDArray[np.float64],
) -> None:
    """Adds each example's squared table gradient where scalar fields have a table each.

    Args:
        grads: float32[n, width], gradients of the losses with respect to the features.
        places: of a batch: no row twice within an example, coefficients 1, in order of columns.
        first: the example of the batch that `grads[0]` belongs to.
        dim: width of the table rows.
        slots: places of an example without padding; their columns are one stretch.
        squares: float64[n], added to.
    """
    for i in range(len(grads)):
        total = 0.0
        begin, end = places.offsets[first + i], places.offsets[first + i + 1]
        if end - begin == slots:  # nothing is padding: one stretch of columns, every coefficient 1
            column = places.columns[begin]
            part = grads[i, column : column + slots * dim]
            for j in range(len(part)):
                total += np.float64(part[j]) * np.float64(part[j])
        else:
            for k in range(begin, end):
                part = grads[i, places.columns[k] : places.columns[k] + dim]
                for j in range(dim):
                    total += np.float64(part[j]) * np.float64(part[j])
        squares[i] += total


@njit(cache=True, nogil=True)
def square_norms_merged(
    grads: NDArray[np.float32],
    places: Places,
    first: int,
    dim: int,
    unit_offsets: NDArray[np.int64],
    squares: NDArray[np.float64],
    parts: NDArray[np.float64],
) -> None:
    """Adds each unit's squared table gradient, equal rows merged before squaring.

    Args:
        grads: float32[n, width], gradients of the losses with respect to the features.
        places: of a batch.
        first: the example of the batch that `grads[0]` belongs to.
        dim: width of the table rows.
        unit_offsets: int64[U + 1], positions in `grads`.
        squares: float64[U], added to.
        parts: float64[U], the sum of the norms of the unmerged parts is added to it.
    """
    for u in range(len(unit_offsets) - 1):
        begin = unit_offsets[u]
        end = unit_offsets[u + 1]
        start = places.offsets[first + begin]
        count = places.offsets[first + end] - start
        if count == 0:
            continue
        example = np.empty(count, np.int64)
        for i in range(begin, end):
            for k in range(places.offsets[first + i], places.offsets[first + i + 1]):
                example[k - start] = i
        order = np.argsort(places.rows[start : start + count], kind="mergesort")
        merged = np.empty(dim, np.float64)
        rounding = np.empty(dim, np.float64)
        total = 0.0
        spread = 0.0
        n = 0
        while n < count:
            row = places.rows[start + order[n]]
            merged[:] = 0.0
            rounding[:] = 0.0
            while n < count and places.rows[start + order[n]] == row:
                k = start + order[n]
                i = example[order[n]]
                square = 0.0
                for j in range(dim):
                    value = np.float64(grads[i, places.columns[k] + j]) * np.float64(
                        places.coefs[k]
                    )
                    merged[j] += value
                    rounding[j] += abs(value)
                    square += value * value
                spread += np.sqrt(square)
                n += 1
            for j in range(dim):
                # float64 summation errs by at most count * 2^-53 of the absolute sum: an upper bound
                bound = abs(merged[j]) + rounding[j] * count * 2.0**-52
                total += bound * bound
        squares[u] += total
        parts[u] += spread


@njit(cache=True, nogil=True, fastmath=ANY_ORDER)
def linear_square_norms(
    inputs: NDArray[np.float32],
    outputs: NDArray[np.float32],
    bias: float,
    unit_offsets: NDArray[np.int64],
    squares: NDArray[np.float64],
    parts: NDArray[np.float64],
) -> None:
    """Adds each unit's squared gradient of one linear layer, by the ghost norm.

    The layer's gradient is sum_j outputs_j inputs_j^T (and sum_j outputs_j for a bias), whose squared norm is
    sum_jk (inputs_j . inputs_k + bias) (outputs_j . outputs_k): no per-example weight gradient is formed.

    Args:
        inputs: float32[n, in], activations.
        outputs: float32[n, out], gradients of the losses with respect to the layer's outputs.
        bias: 1.0 where the layer has a bias, else 0.0.
        unit_offsets: int64[U + 1], positions in `inputs`.
        squares: float64[U], added to; an upper bound of the exact value.
        parts: float64[U], the sum of the norms of single examples is added where a unit has several.

    References:
        Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679.
    """
    width_in = inputs.shape[1]
    width_out = outputs.shape[1]
    for u in range(len(unit_offsets) - 1):
        first = unit_offsets[u]
        last = unit_offsets[u + 1]
        total = 0.0
        spread = 0.0
        for j in range(first, last):
            for k in range(j, last):
                dot_in = bias
                for n in range(width_in):
                    dot_in += np.float64(inputs[j, n]) * np.float64(inputs[k, n])
                dot_out = 0.0
                for n in range(width_out):
                    dot_out += np.float64(outputs[j, n]) * np.float64(outputs[k, n])
                if k == j:
                    total += dot_in * dot_out
                    spread += np.sqrt(dot_in * dot_out)
                else:
                    total += 2.0 * dot_in * dot_out
        # a dot product errs by at most its length * 2^-53 of the product of norms, and the sum over all
        # pairs by their number: their absolute values add up to spread^2 at most
        error = spread * spread * (width_in + width_out + (last - first) ** 2 + 4) * 2.0**-52
        squares[u] += max(total, 0.0) + error
        if last - first > 1:
            parts[u] += spread


@njit(cache=True, nogil=True)
def clip_factors(
    squares: NDArray[np.float64],
    parts: NDArray[np.float64],
    l2_clip_norm: float,
    floor: float,
    norms: NDArray[np.float64],
    factors: NDArray[np.float32],
) -> None:
    """Factors min(1, C / norm), a margin for rounding taken off.

    They are 0 for units that are not finite, or so large that the factor would not be a normal float32.

    Args:
        squares: float64[U], squared norms.
        parts: float64[U], sums of the norms of parts that may cancel, 0 where none can.
        l2_clip_norm: C, positive; infinity leaves every gradient as it is.
        floor: a unit is clipped as if its norm were at least this part of its parts' sum, since parts that
            cancel leave rounding of the order of the parts.
        norms: float64[U], written: the norms, infinity where not finite.
        factors: float32[U], written.
    """
    for u in range(len(squares)):
        if not np.isfinite(squares[u]):
            norms[u] = np.inf
            factors[u] = 0.0
            continue
        norms[u] = np.sqrt(squares[u])
        if l2_clip_norm == np.inf:
            factors[u] = 1.0
            continue
        certified = max(norms[u], floor * parts[u])
        ratio = 1.0 if certified <= l2_clip_norm else l2_clip_norm / certified
        # Below the normal float32 numbers a factor would lose digits and could round up: leave the unit out.
        factors[u] = (
            np.float32(ratio * FACTOR_MARGIN) if ratio >= SMALLEST_FACTOR else np.float32(0.0)
        )


@njit(cache=True, nogil=True)
def spread_to_examples(
    factors: NDArray[np.float32], unit_offsets: NDArray[np.int64], out: NDArray[np.float32]
) -> None:
    """Copies each unit's factor to its examples: out float32[B]."""
    for u in range(len(unit_offsets) - 1):
        for i in range(unit_offsets[u], unit_offsets[u + 1]):
            out[i] = factors[u]


@njit(cache=True, nogil=True)
def scale_rows(
    matrix: NDArray[np.float32], factors: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """out[i] = factors[i] * matrix[i], exactly zero where the factor is zero (inf * 0 never happens).

    Products below the normal float32 numbers have few digits and may round up: they become zero.

    Args:
        matrix: float32[n, m].
        factors: float32[n].
        out: float32[n, m], written.
    """
    for i in range(len(out)):
        row, scaled = matrix[i], out[i]
        if factors[i] == 0.0:
            for j in range(len(scaled)):
                scaled[j] = 0.0
        else:
            for j in range(len(scaled)):
                value = factors[i] * row[j]
                scaled[j] = value if abs(value) >= SMALLEST_NORMAL else np.float32(0.0)


@njit(cache=True, nogil=True)
def add_clipped_layer(
    blas: Blas,
    outputs: NDArray[np.float32],
    inputs: NDArray[np.float32],
    factors: NDArray[np.float32],
    groups: NDArray[np.int64],
    scaled: NDArray[np.float32],
    product: NDArray[np.float32],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
) -> None:
    """Adds the clipped gradients of one linear layer: weight += (factors outputs)^T inputs, likewise bias.

    Args:
        blas: from `find_blas`.
        outputs: float32[n, out], gradients of the losses with respect to the layer's outputs.
        inputs: float32[n, in], activations.
        factors: float32[n]; examples whose factor is zero are left out, finite or not.
        groups: int64[g + 1], bounds of groups of examples; empty for float64 products.
        scaled: float32[n, out], scratch.
        product: float32[out, in], scratch.
        weight: float64[out, in], added to.
        bias: float64[out], added to; empty where the layer has none.
    """
    copied = False
    for i in range(len(inputs)):
        if factors[i] == 0.0:  # a zero times an infinite activation would be NaN
            if not copied:
                inputs, copied = inputs.copy(), True
            inputs[i, :] = 0.0
    part = np.zeros(len(bias))
    if len(groups) == 0:
        # A unit's examples may cancel: nothing of any of them is rounded to float32 or dropped.
        left = np.zeros(outputs.shape)
        for i in range(len(outputs)):
            if factors[i] != 0.0:
                for j in range(outputs.shape[1]):
                    left[i, j] = np.float64(factors[i]) * np.float64(outputs[i, j])
                for j in range(len(bias)):
                    part[j] += left[i, j]
        add_transposed_times(blas, left, inputs.astype(np.float64), weight)
    else:
        scale_rows(outputs, factors, scaled)
        for i in range(len(scaled)):
            for j in range(len(bias)):
                part[j] += np.float64(scaled[i, j])
        _add_groups(blas, scaled, inputs, groups, product, weight)
    for j in range(len(bias)):
        bias[j] += part[j]


@njit(cache=True, nogil=True)
def _add_groups(
    blas: Blas,
    scaled: NDArray[np.float32],
    inputs: NDArray[np.float32],
    groups: NDArray[np.int64],
    product: NDArray[np.float32],
    weight: NDArray[np.float64],
) -> None:
    """weight += scaled^T inputs, float32 within groups."""
    width_out, width_in = weight.shape
    tile = max(TILE // max(width_in, 1), 1)
    for g in range(len(groups) - 1):
        start, end = groups[g], groups[g + 1]
        if end - start > LARGEST_GROUP:
            left = scaled[start:end].astype(np.float64)
            add_transposed_times(blas, left, inputs[start:end].astype(np.float64), weight)
    for first in range(0, width_out, tile):
        last = min(first + tile, width_out)
        total = weight[first:last].reshape((last - first) * width_in)
        tiled = product[: last - first]
        flat = tiled.reshape(tiled.size)
        for g in range(len(groups) - 1):
            start, end = groups[g], groups[g + 1]
            if 0 < end - start <= LARGEST_GROUP:
                transposed_times(blas, scaled[start:end], first, inputs[start:end], tiled)
                for i in range(len(total)):
                    total[i] += np.float64(flat[i])


@njit(inline="always")
def _add_places(
    grads: NDArray[np.float32],
    places: SortedPlaces,
    factors: NDArray[np.float32],
    start: int,
    end: int,
    total: NDArray[np.float64],
) -> None:
    """total[dim] += the clipped gradients of places start:end, in their order."""
    dim, width = len(total), grads.shape[1]
    for n in range(start, end):
        if n + PLACES_AHEAD < len(places.examples):
            far = np.int64(places.examples[n + PLACES_AHEAD]) * width
            far = grads.ctypes.data + (far + places.columns[n + PLACES_AHEAD]) * grads.itemsize
            prefetch(far)
            prefetch(far + (dim - 1) * grads.itemsize)
        i = places.examples[n]
        if factors[i] == 0.0:
            continue
        part = grads[i, places.columns[n] : places.columns[n] + dim]
        factor = np.float64(factors[i]) * np.float64(places.coefs[n])
        for j in range(dim):
            total[j] += factor * np.float64(part[j])


@njit(cache=True, nogil=True)
def merged_sum(
    grads: NDArray[np.float32],
    places: SortedPlaces,
    factors: NDArray[np.float32],
    runs: Runs,
    first: int,
    out: NDArray[np.float64],
) -> None:
    """Sum of clipped gradients per touched row, in float64 and in a fixed order, by partial sums.

    Args:
        grads: float32[B, width], gradients of the losses with respect to the features.
        places: of the B examples, sorted by row.
        factors: float32[B], clip factors; a zero leaves the example out.
        runs: the rows.
        first: the run that `out[0]` belongs to.
        out: float64[k, dim], written: runs first:first + k.
    """
    # Fresh memory: sums into `out` itself would be checked for overlap with every gradient that is added.
    total, parts = np.empty(out.shape[1]), np.empty((2, out.shape[1]))
    most = SUMMED_AT_A_TIME**2
    for r in range(len(out)):
        start, end = runs.starts[first + r], runs.starts[first + r + 1]
        total[:] = 0.0
        if end - start <= SUMMED_AT_A_TIME:
            _add_places(grads, places, factors, start, end, total)
        else:
            for far in range(start, end, most):
                parts[1] = 0.0
                for begin in range(far, min(far + most, end), SUMMED_AT_A_TIME):
                    parts[0] = 0.0
                    stop = min(begin + SUMMED_AT_A_TIME, end)
                    _add_places(grads, places, factors, begin, stop, parts[0])
                    parts[1] += parts[0]
                total += parts[1]
        out[r] = total
