"""Token embedding: row idx of a table of learned vectors. A linear layer on one-hot rows.

    y[n]  = w[idx[n]]                        y  = onehot(idx) @ w
    dw[v] = sum of dy[n] where idx[n] = v    dw = onehot(idx).T @ dy

A token that occurs several times gets a gradient from each position. The product with a matrix of
zeros and ones sums them, always in the same order. If the vocabulary is larger than the batch, only
the rows of tokens in the batch are computed: row n is the gradient of token idx[n], and a repeated
token takes the row of its first position. There is no gradient for idx, because it holds integers.

In a product, 0 * inf is NaN: one position that is not finite would spoil every token. So it is left
out, and the row of its token is set to NaN.
"""

import math

from npgpt.backend import array_module


def embedding_forward(idx, w):
    """idx (...) int in 0..V-1, w (V, C) -> y (..., C)."""
    return w[idx], (idx, w.shape)


def embedding_backward(dy, cache):
    """dy (..., C) -> dw (V, C)."""
    idx, (V, C) = cache
    xp = array_module(dy)
    idx, dy = idx.reshape(-1), dy.reshape(-1, C)                 # (N,), (N, C)
    tokens = idx if 0 < idx.size < V else xp.arange(V)           # (R,)
    onehot = tokens[:, None] == idx                              # (R, N), the transpose
    finite = xp.isfinite(dy).all(1)                              # (N,)
    dy = xp.where(finite[:, None], dy, 0)
    rows = onehot.astype(dy.dtype) @ dy                          # (R, C)
    xp.copyto(rows, math.nan, where=(onehot & ~finite).any(1)[:, None])
    if tokens is not idx:
        return rows
    dw = xp.zeros((V, C), dtype=dy.dtype)
    first = onehot.argmax(1)                                     # (N,)
    dw[idx] = rows[first]                                        # a repeated token: the same row
    return dw
