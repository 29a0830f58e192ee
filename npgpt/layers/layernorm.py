"""Layer normalisation over the C channels of each token (Ba, Kiros and Hinton 2016,
arXiv:1607.06450).

    xhat = (x - mean) * rstd        rstd = 1 / sqrt(var + eps)
    y    = xhat * w + b

mean and rstd depend on x as well. By the chain rule, dx is dxhat without its mean and without its
component along xhat, times rstd:

    dxhat = dy * w
    dx    = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))

Both means are computed as products with w: dy @ w multiplies by w and sums over the channels.
"""

from npgpt.layers.rows import row_sum, sum_rows


def layernorm_forward(x, w, b, eps=1e-5):
    """x (..., C), w (C,), b (C,) -> y (..., C)."""
    C = w.shape[0]
    xhat = x - row_sum(x) / C                                      # (..., C), not scaled yet
    rstd = (row_sum(xhat * xhat) / C + eps) ** -0.5                # (..., 1)
    xhat *= rstd
    y = xhat * w
    y += b
    return y, (xhat, rstd, w)


def layernorm_backward(dy, cache):
    """dy (..., C) -> dx (..., C), dw (C,), db (C,)."""
    xhat, rstd, w = cache
    dy_xhat = dy * xhat
    dw = sum_rows(dy_xhat)                   # over all axes but C
    db = sum_rows(dy)

    C = w.shape[0]
    dxhat = dy * w
    mean_dxhat = dy @ w / C                  # (...)
    mean_dxhat_xhat = dy_xhat @ w / C        # (...)
    dx = dxhat - mean_dxhat[..., None]
    dx -= xhat * mean_dxhat_xhat[..., None]
    dx *= rstd
    return dx, dw, db
