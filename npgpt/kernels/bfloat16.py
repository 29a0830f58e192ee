"""bfloat16 for the linear layers: `--dtype bfloat16`. Not yet run on a GPU.

A product of matrices rounds what goes into it to bfloat16, which has float32's range and 8 bits of
precision, adds up in float32, and rounds what comes out; tensor cores do that at twice the rate of
TF32. Everything else stays as it was: parameters, gradients and moments are float32, and so are
norms, softmax and loss. With float32's range no gradient vanishes, so the loss needs no scaling.
The inputs that linear layers keep for their backward take half the bytes. Attention's products
stay in TF32.
"""

import ml_dtypes

from npgpt import layers
from npgpt.layers import linear

BFLOAT16 = ml_dtypes.bfloat16


def install(device):
    """From now on linear layers on this device take float32 arrays through bfloat16."""
    for kind in device.arrays:
        layers.linear_forward.register(kind, linear_forward)
        layers.linear_backward.register(kind, linear_backward)


def linear_forward(x, w, b=None):
    """As npgpt.layers.linear.linear_forward."""
    if x.dtype != "float32":
        return linear.linear_forward(x, w, b)
    y, (rows, w, _) = linear.linear_forward(x.astype(BFLOAT16), w.astype(BFLOAT16))
    y = y.astype(x.dtype)
    if b is not None:
        y += b
    return y, (rows, w, b is not None)


def linear_backward(dy, cache):
    """As npgpt.layers.linear.linear_backward."""
    rows, w, has_bias = cache
    if rows.dtype != BFLOAT16:
        return linear.linear_backward(dy, cache)
    dx, dw, _ = linear.linear_backward(dy.astype(BFLOAT16), (rows, w, False))
    db = dy.reshape(-1, w.shape[1]).sum(0) if has_bias else None
    return dx.astype(dy.dtype), dw.astype(dy.dtype), db
