"""Attention with the kernels of attention.cu between its matrix products.

Scale, mask, softmax and dropout are one kernel, which works in the memory of the scores. Arrays of
(Tq, Tk) are the largest of a model, so no product may copy a transposed one, as CuPy does: where
the plain layer has att.T @ dy, here it is (dy.T @ att).T, which copies dy instead.
"""

import math

import numpy as np

from npgpt.kernels.dropout import Mask
from npgpt.kernels.launch import LANES, require_like, takes
from npgpt.layers import attention


def fused_attention(xp, launch):
    """-> forward, backward. launch: from npgpt.kernels.launch. The cache contains its backward,
    which is the plain one for arrays that the kernels do not support."""

    def attention_forward(q, k, v, mask=None, p=0.0, key=None, causal=False):
        """q (B, H, Tq, D), k and v (B, G, Tk, D) -> y (B, H, Tq, D).

        mask: bool, broadcast to (B, H, Tq, Tk), True where the query sees the key. None: it sees
        all. p, key: dropout of att, as in dropout_forward. causal: hide the future too.
        """
        if not takes(q, k, v):
            y, cache = attention.attention_forward(q, k, v, mask, p, key, causal)
            return y, (attention.attention_backward, cache)
        (B, H, Tq, D), (G, Tk) = q.shape, k.shape[1:3]
        mask = attention.and_past(mask, causal, xp, Tq, Tk)
        heads, groups = (B, H, Tq), (B, G, H // G * Tq)    # the same rows
        scale = q.dtype.type(1 / math.sqrt(D))
        q = q.reshape(*groups, D)
        att = q @ k.swapaxes(-1, -2)                       # (B, G, H/G * Tq, Tk), scores at first
        sizes = np.int64(B), *map(np.int32, (H, Tq, Tk))
        drop = Mask.of(p, key).arguments(q.dtype)
        kept = xp.empty(att.shape if drop[3] else 1, att.dtype)
        launch("attention_softmax", att.dtype, att.size // Tk * LANES,
               att, scale, *seen(mask), *sizes, *drop, kept)
        if not drop[3]:
            kept = att                                     # nothing is dropped
        y = (kept @ v).reshape(*heads, v.shape[-1])
        return y, (fused_backward, (q, k, v, att, kept, scale, sizes, drop))

    def seen(mask):
        """mask -> it, contiguous, and its four strides in elements, 0 where it is broadcast."""
        if mask is None:
            return xp.ones(1, bool), *(np.int64(0),) * 4
        mask = xp.ascontiguousarray(mask)
        shape = (1,) * (4 - mask.ndim) + mask.shape
        strides = (math.prod(shape[axis + 1:]) if n > 1 else 0 for axis, n in enumerate(shape))
        return mask, *map(np.int64, strides)

    def fused_backward(dy, cache):
        q, k, v, att, kept, scale, sizes, drop = cache     # q, att and kept in groups
        heads, Tk = (q.shape[0], *sizes[1:3]), att.shape[-1]
        require_like(dy, (*heads, v.shape[-1]), q.dtype)
        dy = dy.reshape(*q.shape[:3], v.shape[-1])
        dv = (dy.swapaxes(-1, -2) @ kept).swapaxes(-1, -2)
        dscores = dy @ v.swapaxes(-1, -2)                  # with respect to kept at first
        launch("attention_softmax_backward", att.dtype, att.size // Tk * LANES,
               att, scale, *sizes, *drop, dscores)
        dq = (dscores @ k).reshape(*heads, k.shape[-1])
        dk = (q.swapaxes(-1, -2) @ dscores).swapaxes(-1, -2)
        return dq, dk, dv

    def attention_backward(dy, cache):
        """dy (B, H, Tq, D) -> dq (B, H, Tq, D), dk and dv (B, G, Tk, D)."""
        backward, cache = cache
        return backward(dy, cache)

    return attention_forward, attention_backward
