"""GELU on the kernels of layers.cu. Of the forward only x is kept; layers.cu says why."""

import numpy as np

from npgpt.kernels.launch import require_like, takes
from npgpt.layers import activations

MOST_THREADS = 2**20      # more than any GPU runs at once; each then takes several elements


def fused_gelu(xp, launch):
    """-> forward, backward; `launch` is that of npgpt.kernels.launch. The cache carries the
    backward that belongs to it: the plain one for arrays that the kernels do not take."""

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
        require_like(dy, x)
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
