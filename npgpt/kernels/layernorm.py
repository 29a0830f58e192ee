"""Layer norm with the kernels of layernorm.cu.

The cache differs from the plain layer's: x with mean and rstd, two numbers per token, instead of
xhat. Either way one array of the size of x stays in memory until the backward. But x already
exists, and writing xhat would be a third of the forward's memory traffic. The backward reads x
instead and computes xhat in registers.
"""

import numpy as np

from npgpt.kernels.launch import LANES, require_like, takes
from npgpt.layers import layernorm
from npgpt.layers.rows import sum_rows

GROUPS = 256     # groups of rows for the partial sums of dw and db, see layernorm.cu


def fused_layernorm(xp, launch):
    """-> forward, backward. launch: from npgpt.kernels.launch. The cache contains its backward,
    which is the plain one for arrays that the kernels do not support."""

    def layernorm_forward(x, w, b, eps=1e-5):
        """x (..., C), w (C,), b (C,) -> y (..., C)."""
        if not (takes(x, w, b) and w.shape == b.shape == x.shape[-1:]):
            y, cache = layernorm.layernorm_forward(x, w, b, eps)
            return y, (layernorm.layernorm_backward, cache)
        x, w, b = (xp.ascontiguousarray(a) for a in (x, w, b))
        C = x.shape[-1]
        N = x.size // C
        y = xp.empty(x.shape, x.dtype)
        mean, rstd = (xp.empty((*x.shape[:-1], 1), x.dtype) for _ in range(2))
        launch("layernorm_forward", x.dtype, N * LANES,
               x, w, b, x.dtype.type(eps), np.int64(N), np.int32(C), y, mean, rstd)
        return y, (fused_backward, (x, mean, rstd, w))

    def fused_backward(dy, cache):
        x, mean, rstd, w = cache
        require_like(dy, x.shape, x.dtype)
        dy = xp.ascontiguousarray(dy)
        C = x.shape[-1]
        N = x.size // C
        dx = xp.empty(x.shape, x.dtype)
        launch("layernorm_backward_dx", x.dtype, N * LANES,
               dy, x, mean, rstd, w, np.int64(N), np.int32(C), dx)

        G = min(GROUPS, N)
        strips = -(-C // LANES)
        partial = xp.empty((G, 2 * C), x.dtype)
        launch("layernorm_backward_dwdb", x.dtype, G * strips * LANES,
               dy, x, mean, rstd, np.int64(N), np.int32(C), np.int32(G), partial)
        dwdb = sum_rows(partial)                 # (2C,)
        return dx, dwdb[:C], dwdb[C:]

    def layernorm_backward(dy, cache):
        """dy (..., C) -> dx (..., C), dw (C,), db (C,)."""
        backward, cache = cache
        return backward(dy, cache)

    return layernorm_forward, layernorm_backward
