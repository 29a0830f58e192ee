"""Layer normalisation over the C channels of each token (Ba, Kiros and Hinton 2016,
arXiv:1607.06450).

    xhat = (x - mean) * rstd        rstd = 1 / sqrt(var + eps)
    y    = xhat * w + b

mean and rstd depend on x as well. Carried through the chain rule, they take out of dxhat
its mean and its component along xhat:

    dxhat = dy * w
    dx    = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))

Both means are products with w: dy @ w multiplies dy by w and adds up over the channels at once.
"""


def layernorm_forward(x, w, b, eps=1e-5):
    """x (..., C), w (C,), b (C,) -> y (..., C)."""
    xhat = x - x.mean(-1, keepdims=True)                           # (..., C), to be scaled below
    rstd = ((xhat * xhat).mean(-1, keepdims=True) + eps) ** -0.5   # (..., 1)
    xhat *= rstd
    y = xhat * w
    y += b
    return y, (xhat, rstd, w)


def layernorm_backward(dy, cache):
    """dy (..., C) -> dx (..., C), dw (C,), db (C,)."""
    xhat, rstd, w = cache
    axes = tuple(range(dy.ndim - 1))         # every axis but C
    dy_xhat = dy * xhat
    dw = dy_xhat.sum(axes)
    db = dy.sum(axes)

    C = w.shape[0]
    dxhat = dy * w
    mean = dy @ w / C                        # (...)
    along = dy_xhat @ w / C                  # (...)
    dx = dxhat - mean[..., None]
    dx -= xhat * along[..., None]
    dx *= rstd
    return dx, dw, db
