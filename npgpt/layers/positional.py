"""Positional embedding: a learned vector for each position, added to the token at that position.

    y[..., t, :] = x[..., t, :] + w[start + t]

Attention alone ignores the order of the tokens; these vectors encode it. The gradient of a position
is the sum over all tokens at that position, and 0 for unused positions. When text is generated one
token at a time, `start` is the number of tokens before this one.
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
