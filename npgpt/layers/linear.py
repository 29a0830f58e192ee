"""The linear layer: every output channel is a weighted sum of the input channels, plus a bias.

    y = x @ w + b

The derivative of y[n, j] with respect to w[i, j] is x[n, i], so dw[i, j] is the sum of
x[n, i] * dy[n, j] over the tokens n. Both dw and dx are matrix products:

    dx = dy @ w.T        dw = x.T @ dy        db = sum of dy over the tokens
"""

from npgpt.layers.rows import sum_rows


def linear_forward(x, w, b=None, frozen=False):
    """x (..., I), w (I, O), b (O,) or None -> y (..., O). frozen: w needs no gradient; then the
    cache is without x."""
    rows = x.reshape(-1, w.shape[0])          # (N, I), for one large product
    y = rows @ w                              # (N, O)
    if b is not None:
        y += b
    return y.reshape(x.shape[:-1] + w.shape[1:]), (None if frozen else rows, w, b is not None)


def linear_backward(dy, cache):
    """dy (..., O) -> dx (..., I), dw (I, O), None if w is frozen, db (O,), None if b was None."""
    rows, w, has_bias = cache
    drows = dy.reshape(-1, w.shape[1])        # (N, O)
    dx = drows @ w.T
    dw = None
    if rows is not None:                      # w is not frozen
        # dw gets the memory layout of w, which may be a transposed view: adding it is then fast.
        transposed = w.strides[0] < w.strides[1]
        dw = (drows.T @ rows).T if transposed else rows.T @ drows
    db = sum_rows(dy) if has_bias else None
    return dx.reshape(dy.shape[:-1] + w.shape[:1]), dw, db
