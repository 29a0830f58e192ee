"""Learned positions: a vector for each place in the context, added to the token that stands there.

    y[..., t, :] = x[..., t, :] + w[start + t]

Attention alone cannot tell an order; these vectors are what tells it. A position's gradient is the
sum over everything that stood there, and positions that were not used get none. `start` counts the
positions that came before, when text is generated a token at a time.
"""

from npgpt.backend import array_module


def positional_forward(x, w, start=0):
    """x (..., T, C), w (P, C) with P >= start + T -> y (..., T, C)."""
    T = x.shape[-2]
    return x + w[start:start + T], (w.shape, start)


def positional_backward(dy, cache):
    """dy (..., T, C) -> dx (..., T, C), which is dy itself, dw (P, C)."""
    shape, start = cache
    T = dy.shape[-2]
    dw = array_module(dy).zeros(shape, dtype=dy.dtype)
    dw[start:start + T] = dy.sum(tuple(range(dy.ndim - 2)))
    return dy, dw
