"""GELU with the kernels of gelu.cu. The cache is only x; gelu.cu says why."""

import numpy as np

from npgpt.kernels.launch import require_like, takes
from npgpt.layers import activations

MOST_THREADS = 2**20      # more than any GPU runs at once; each may process several elements


def fused_gelu(xp, launch):
    """-> forward, backward. launch: from npgpt.kernels.launch. The cache contains its backward,
    which is the plain one for arrays that the kernels do not support."""

    def gelu_forward(x):
        """x (...) -> y (...)."""
        if not takes(x):
            y, cache = activations.gelu_forward(x)
            return y, (activations.gelu_backward, cache)
        x = xp.ascontiguousarray(x)
        y = xp.empty(x.shape, x.dtype)
        launch("gelu_forward", x.dtype, min(x.size, MOST_THREADS), x, np.int64(x.size), y)
        return y, (fused_backward, x)

    def fused_backward(dy, x):
        require_like(dy, x.shape, x.dtype)
        dy = xp.ascontiguousarray(dy)
        dx = xp.empty(x.shape, x.dtype)
        launch("gelu_backward", x.dtype, min(x.size, MOST_THREADS),
               dy, x, np.int64(x.size), dx)
        return dx

    def gelu_backward(dy, cache):
        """dy (...) -> dx (...)."""
        backward, cache = cache
        return backward(dy, cache)

    return gelu_forward, gelu_backward
