"""LoRA: what is added to the output of a linear layer whose weight is frozen (Hu et al. 2021,
arXiv:2106.09685).

    y = x @ A @ B                          A (I, r), B (r, O), with r much smaller than I and O

A @ B is a change of the weight w (I, O), with r (I + O) numbers instead of I O. With h = x @ A, two
linear layers one after the other:

    dB = h.T @ dy        dh = dy @ B.T
    dA = x.T @ dh        dx = dh @ A.T

B is 0 at first, so y is 0 as well, and the model is unchanged. dA is 0 until B has changed. The
paper multiplies y by alpha / r; here B contains this factor.
"""


def lora_forward(x, A, B):
    """x (..., I), A (I, r), B (r, O) -> y (..., O)."""
    rows = x.reshape(-1, A.shape[0])          # (N, I)
    h = rows @ A                              # (N, r)
    y = h @ B                                 # (N, O)
    return y.reshape(x.shape[:-1] + B.shape[1:]), (rows, h, A, B)


def lora_backward(dy, cache):
    """dy (..., O) -> dx (..., I), dA (I, r), dB (r, O)."""
    rows, h, A, B = cache
    drows = dy.reshape(-1, B.shape[1])        # (N, O)
    dh = drows @ B.T                          # (N, r)
    dB = h.T @ drows
    dA = rows.T @ dh
    dx = dh @ A.T                             # (N, I)
    return dx.reshape(dy.shape[:-1] + A.shape[:1]), dA, dB
