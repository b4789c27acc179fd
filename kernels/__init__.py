"""Array kernels of the private step: plain arrays in, plain arrays out, no framework.

`reference` is obvious float64 NumPy and the definition of right; the numba kernels must agree.
"""

if __name__ != "dpads.kernels":
    raise ImportError("import dpads.kernels, not kernels")
