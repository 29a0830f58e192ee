"""The linear layer: every output channel is a weighted sum of the input channels, plus a bias.

    y = x @ w + b

A small change of w[i, j] changes y[n, j] by x[n, i], so dw[i, j] sums x[n, i] * dy[n, j] over the
tokens n: a product of matrices again, and dx is the product with w turned round.

    dx = dy @ w.T        dw = x.T @ dy        db = sum of dy over the tokens
"""


def linear_forward(x, w, b=None):
    """x (..., I), w (I, O), b (O,) or None -> y (..., O)."""
    rows = x.reshape(-1, w.shape[0])          # (N, I): one large product instead of many small
    y = rows @ w                              # (N, O)
    if b is not None:
        y += b
    return y.reshape(x.shape[:-1] + w.shape[1:]), (rows, w, b is not None)


def linear_backward(dy, cache):
    """dy (..., O) -> dx (..., I), dw (I, O), db (O,); db is None where b was."""
    rows, w, has_bias = cache
    drows = dy.reshape(-1, w.shape[1])        # (N, O)
    dx = drows @ w.T
    turned = w.strides[0] < w.strides[1]      # as the head is, wte.T: dw then lies in memory as w
    dw = (drows.T @ rows).T if turned else rows.T @ drows             # does, and adds up fast
    db = drows.sum(0) if has_bias else None
    return dx.reshape(dy.shape[:-1] + w.shape[:1]), dw, db
