"""A row's bits depend on the row alone: else a unit more or less would change every other unit's rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpads.kernels import blas as products
from dpads.kernels.blas import NO_BLOCKS, Blas, row_blocks, times, times_transposed
from dpads.kernels.torch_ops import find_blas, scipy_blas, single_threaded

SHAPES = [(429, 128), (128, 64), (64, 1), (13, 7), (3, 5), (0, 4), (256, 1024), (429, 598)]
SIZES = (1, 2, 15, 16, 17, 31, 48, 177, 255, 1024)


def places_of_rows_matter(blas: Blas, width_in: int, width_out: int) -> bool:
    """Whether rows of products change with the rows before, after and beside them."""
    rng = np.random.default_rng(width_in)
    weight = rng.normal(size=(width_out, width_in)).astype(np.float32)
    blocks = row_blocks(blas, width_in, width_out)
    for which, multiply in enumerate((times_transposed, times)):
        width, result = ((width_in, width_out), (width_out, width_in))[which]
        rows = rng.normal(size=(1100, width)).astype(np.float32)
        whole = np.empty((len(rows), result), np.float32)
        multiply(blas, blocks[which], rows, weight, whole)
        exact = rows.astype(np.float64) @ (weight.T if which == 0 else weight)
        np.testing.assert_allclose(whole, exact, rtol=1e-3, atol=1e-3)
        for size in SIZES:
            for first in (0, 1, 7, 60):
                part = np.empty((size, result), np.float32)
                multiply(blas, blocks[which], rows[first : first + size], weight, part)
                if not np.array_equal(part, whole[first : first + size]):
                    return True
    return False


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_does_not_depend_on_its_place(shape: tuple[int, int]) -> None:
    with single_threaded():
        assert not places_of_rows_matter(find_blas(), *shape)


@pytest.mark.parametrize("shape", [(52, 68), (32, 16), (429, 128)])
def test_nor_with_the_other_library(shape: tuple[int, int]) -> None:
    assert not places_of_rows_matter(scipy_blas(), *shape)


@pytest.mark.parametrize("instructions", ["AVX2", "SSE4_2"])
def test_nor_on_other_processors(instructions: str) -> None:
    script = (
        "import tests.test_row_places as t\n"
        "with t.single_threaded():\n"
        "    bad = [s for s in t.SHAPES[:7] if t.places_of_rows_matter(t.find_blas(), *s)]\n"
        "assert not bad, bad\n"
    )
    environment = {**os.environ, "MKL_ENABLE_INSTRUCTIONS": instructions}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_routine_that_treats_no_two_rows_alike_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_alike", lambda *_: False)
    blocks = row_blocks(find_blas(), 40, 30)
    assert not blocks.any()
    rng = np.random.default_rng(0)
    rows, weight = rng.normal(size=(20, 40)), rng.normal(size=(30, 40))
    nowhere = Blas(0, 0)  # calling it would end the process
    out = np.empty((20, 30), np.float32)
    left, right = rows.astype(np.float32), weight.astype(np.float32)
    times_transposed(nowhere, NO_BLOCKS, left, right, out)
    np.testing.assert_allclose(out, rows @ weight.T, rtol=1e-4, atol=1e-4)
    back = np.empty((20, 40), np.float32)
    times(nowhere, NO_BLOCKS, out, right, back)
    np.testing.assert_allclose(back, rows @ weight.T @ weight, rtol=1e-3, atol=1e-3)


def test_blocks_that_do_treat_rows_differently_are_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In single blocks of any size MKL adds the last rows in another order; the trial must see it.
    with single_threaded():
        monkeypatch.setattr(products, "CANDIDATES", ((1024, 17, 1),))
        found = [row_blocks(find_blas(), *shape) for shape in [(429, 128), (256, 1024), (429, 598)]]
    assert not all(blocks.all(axis=None) for blocks in found)
