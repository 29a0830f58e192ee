"""Token embedding: row idx of a table of learned vectors. A linear layer on one-hot rows.

    y[n] = w[idx[n]]                      y  = onehot(idx) @ w
    dw[v] = sum of dy[n] where idx[n] = v    dw = onehot(idx).T @ dy

A token that occurs several times collects a gradient from each place. There is no gradient for
idx: whole numbers do not change by a little.
"""

from npgpt.backend import array_module

ONE_HOT_LIMIT = 1024   # up to this many rows, multiplying by the one-hot matrix is fastest


def embedding_forward(idx, w):
    """idx (...) int in 0..V-1, w (V, C) -> y (..., C)."""
    return w[idx], (idx, w.shape)


def embedding_backward(dy, cache):
    """dy (..., C) -> dw (V, C)."""
    idx, (V, C) = cache
    xp = array_module(dy)
    idx, dy = idx.reshape(-1), dy.reshape(-1, C)                 # (N,), (N, C)
    if V <= ONE_HOT_LIMIT:
        onehot = xp.arange(V)[:, None] == idx                    # (V, N), already transposed
        return onehot.astype(dy.dtype) @ dy
    dw = xp.zeros((V, C), dtype=dy.dtype)
    xp.add.at(dw, idx, dy)      # dw[idx] += dy would keep only the last of each repeated token
    return dw
