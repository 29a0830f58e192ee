"""RMSNorm: the C channels of each token divided by their root mean square (Zhang and Sennrich 2019,
arXiv:1910.07467).

    xhat = x * rstd        rstd = 1 / sqrt(mean(x²) + eps)
    y    = xhat * w

It is layer norm without the mean and without the bias. rstd depends on x as well. By the chain
rule, dx is dxhat without its component along xhat, times rstd:

    dxhat = dy * w
    dx    = rstd * (dxhat - xhat * mean(dxhat * xhat))

Layer norm takes its means by products with w. Here the mean is a sum, because a GPU may round the
inputs of a product to TF32.
"""

from npgpt.layers.rows import row_sum, sum_rows


def rmsnorm_forward(x, w, eps=1e-5):
    """x (..., C), w (C,) -> y (..., C)."""
    rstd = (row_sum(x * x) / w.shape[0] + eps) ** -0.5         # (..., 1)
    xhat = x * rstd
    return xhat * w, (xhat, rstd, w)


def rmsnorm_backward(dy, cache):
    """dy (..., C) -> dx (..., C), dw (C,)."""
    xhat, rstd, w = cache
    dw = sum_rows(dy * xhat)                 # over all axes but C
    dxhat = dy * w
    dx = dxhat - xhat * (row_sum(dxhat * xhat) / w.shape[0])
    dx *= rstd
    return dx, dw
