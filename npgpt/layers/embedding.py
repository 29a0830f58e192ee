"""Token embedding: row idx of a table of learned vectors. A linear layer on one-hot rows.

    y[n] = w[idx[n]]                      y  = onehot(idx) @ w
    dw[v] = sum of dy[n] where idx[n] = v    dw = onehot(idx).T @ dy

A token that occurs several times collects a gradient from each place. A matrix of zeros and ones
adds them up, always in the same order. For a vocabulary larger than the batch it is smaller to ask
which places hold the same token: the row of such a place is then that token's whole gradient, and
that of the first such place is taken. There is no gradient for idx: whole numbers do not change by
a little.
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
        onehot = xp.arange(V)[:, None] == idx                    # (V, N), already transposed
        return onehot.astype(dy.dtype) @ dy
    same = idx[:, None] == idx                                   # (N, N)
    dw = xp.zeros((V, C), dtype=dy.dtype)
    first = same.argmax(1)                                       # (N,)
    dw[idx] = (same.astype(dy.dtype) @ dy)[first]      # a token that repeats writes the same again
    return dw
