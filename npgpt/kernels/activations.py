"""GELU on the kernels of layers.cu. Of the forward only x is kept; layers.cu says why."""

from typing import Any, NamedTuple

import numpy as np

from npgpt.kernels.launch import takes
from npgpt.layers import activations

MOST_THREADS = 2**20      # more than any GPU runs at once; each then takes several elements


class Cache(NamedTuple):
    """What the fused forward keeps for the fused backward."""

    x: Any


def fused_gelu(xp, launch):
    """-> the two functions by their names in npgpt.layers; `launch` is that of npgpt.kernels."""

    def gelu_forward(x):
        """x (...) -> y (...)."""
        if not takes(x):
            return activations.gelu_forward(x)
        x = xp.ascontiguousarray(x)
        y = xp.empty(x.shape, x.dtype)
        launch("gelu_forward", x.dtype, min(x.size, MOST_THREADS), x, np.int64(x.size), y)
        return y, Cache(x)

    def gelu_backward(dy, cache):
        """dy (...) -> dx (...)."""
        if not isinstance(cache, Cache):          # the plain forward's
            return activations.gelu_backward(dy, cache)
        (x,) = cache
        if not (takes(dy, x) and dy.shape == x.shape):
            return activations.gelu_backward(dy, activations.gelu_forward(x)[1])
        dy = xp.ascontiguousarray(dy)
        dx = xp.empty(x.shape, x.dtype)
        launch("gelu_backward", x.dtype, min(x.size, MOST_THREADS),
               dy, x, np.int64(x.size), dx)
        return dx

    return {"gelu_forward": gelu_forward, "gelu_backward": gelu_backward}
