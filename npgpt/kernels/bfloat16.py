"""bfloat16 for the linear layers of a model whose parameters are float32.

A product of matrices rounds its inputs to bfloat16, which has float32's range and 8 bits of
precision, sums in float32, and rounds its result; tensor cores do that at twice the rate of TF32.
Everything else stays float32: parameters, gradients and moments, norms, softmax and loss. With
float32's range gradients do not underflow, so loss scaling is not needed. The inputs that linear
layers cache for their backward take half the memory. Attention's products are in TF32.
"""

import ml_dtypes

from npgpt.layers import linear
from npgpt.layers.rows import sum_rows

BFLOAT16 = ml_dtypes.bfloat16


def linear_forward(x, w, b=None, frozen=False):
    """x (..., I), w (I, O), b (O,) or None, all float32 -> y (..., O). frozen: as for the layer."""
    y, (rows, w, _) = linear.linear_forward(x.astype(BFLOAT16), w.astype(BFLOAT16), None, frozen)
    y = y.astype(x.dtype) if b is None else y + b        # the sum of both is float32
    return y, (rows, w, b is not None)


def linear_backward(dy, cache):
    """dy (..., O) -> dx (..., I), dw (I, O), None if w is frozen, db (O,), None if b was None."""
    rows, w, has_bias = cache
    dx, dw, _ = linear.linear_backward(dy.astype(BFLOAT16), (rows, w, False))
    db = sum_rows(dy) if has_bias else None
    return dx.astype(dy.dtype), None if dw is None else dw.astype(dy.dtype), db
