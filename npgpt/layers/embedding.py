"""Token embedding: row idx of a table of learned vectors. A linear layer on one-hot rows.

    y[n]  = w[idx[n]]                        y  = onehot(idx) @ w
    dw[v] = sum of dy[n] where idx[n] = v    dw = onehot(idx).T @ dy

A token that occurs several times gets a gradient from each position. The product with a matrix of
zeros and ones sums them, always in the same order. For a vocabulary larger than the batch, the
matrix `same` is smaller: same[n, m] is 1 where positions n and m hold the same token. Row n of its
product with dy is the whole gradient of token idx[n]; a repeated token takes the row of its first
position. There is no gradient for idx, because it holds integers.
"""

from npgpt.backend import array_module


def embedding_forward(idx, w):
    """idx (...) int in 0..V-1, w (V, C) -> y (..., C)."""
    return w[idx], (idx, w.shape)


def embedding_backward(dy, cache):
    """dy (..., C) -> dw (V, C)."""
    idx, (V, C) = cache
    xp = array_module(dy)
    idx, dy = idx.reshape(-1), dy.reshape(-1, C)                 # (N,), (N, C)
    if not 0 < idx.size < V:
        onehot = xp.arange(V)[:, None] == idx                    # (V, N), the transpose
        return onehot.astype(dy.dtype) @ dy
    same = idx[:, None] == idx                                   # (N, N)
    dw = xp.zeros((V, C), dtype=dy.dtype)
    first = same.argmax(1)                                       # (N,)
    dw[idx] = (same.astype(dy.dtype) @ dy)[first]                # a repeated token: the same row
    return dw
