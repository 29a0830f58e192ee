"""Sums over rows, and the sum and the largest element of each row: what several layers need, in the
way that is fast on the device of the array."""

import math

import numpy as np

from npgpt.backend import array_module, device_of


def sum_rows(x):
    """x (..., C) -> (C,), the sum over all axes but the last, which are N rows. In NumPy a product
    with ones is faster. A GPU computes each sum in few threads, and C sums may leave most of it
    idle; there about √N groups of rows are summed first, and then their sums."""
    C = x.shape[-1]
    x = x.reshape(-1, C)
    N = len(x)
    if array_module(x) is np:
        return np.ones(N, x.dtype) @ x
    groups = math.gcd(N, 1 << N.bit_length() // 2) if device_of(x).splits_sums else 1
    return x.reshape(groups, -1, C).sum(1).sum(0) if groups > 1 else x.sum(0)


def row_sum(x):
    """x (..., C) -> (..., 1), the sum of each row. In NumPy a product with ones is faster, but for
    rows of tens of thousands less exact than `sum`; a GPU might round its inputs to TF32."""
    if array_module(x) is np:
        return (x @ np.ones(x.shape[-1], x.dtype))[..., None]
    return x.sum(-1, keepdims=True)


def row_max(x):
    """x (..., C), C >= 1 -> (..., 1), the largest element of each row. NumPy's `max` takes longer
    to begin with a row than to look through 64 elements; `reduceat` begins faster."""
    if array_module(x) is not np:
        return x.max(-1, keepdims=True)
    starts = np.arange(0, x.size, x.shape[-1])
    return np.maximum.reduceat(x.reshape(-1), starts).reshape(*x.shape[:-1], 1)
