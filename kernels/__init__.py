"""Array kernels of the private step: plain arrays in, plain arrays out, no framework.

`reference` is obvious float64 NumPy and the definition of right; the numba kernels must agree.
"""

import os

if __name__ != "dpads.kernels":
    raise ImportError("import dpads.kernels, not kernels")

# numba and torch bring an OpenMP runtime each. Where threads wait by spinning, the two take the cores from
# each other, and on a busy machine a step takes ten times as long; so they spin briefly, then sleep.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
