"""Scaled dot-product attention, in every head (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    scores = q @ k.T / √D            -inf where the mask hides a key
    att    = softmax(scores)         over the keys
    y      = dropout(att) @ v

A query weighs the values by how well their keys fit it. Going back, both products turn round as in
a linear layer, and the softmax takes from datt its mean weighted by att:

    dv      = dropout(att).T @ dy
    datt    = dropout(dy @ v.T)                      the same elements dropped
    dscores = att * (datt - sum(datt * att))         sum over the keys
    dq      = dscores @ k / √D       dk = dscores.T @ q / √D

That sum is sum(dy * y) over D, because y is linear in att: a shorter row to add up. Where the mask
hid a key att is 0, so dscores is 0 there with no mask needed. A query that sees no key at all gets
y = 0 and gives no gradient.
"""

import math

from npgpt.backend import array_module
from npgpt.layers.dropout import dropout_backward, dropout_forward


def causal_mask(xp, Tq, Tk):
    """-> (Tq, Tk) bool. The queries are the last Tq of Tk places; each sees itself and the past."""
    return xp.arange(Tk) <= xp.arange(Tk - Tq, Tk)[:, None]


def attention_forward(q, k, v, mask=None, p=0.0, key=None):
    """q (B, H, Tq, D), k and v (B, H, Tk, D) -> y (B, H, Tq, D).

    mask: bool, broadcast to (B, H, Tq, Tk), True where the query sees the key; None: it sees all.
    p, key: dropout of the attention, as in dropout_forward.
    """
    xp = array_module(q)
    scale = 1 / math.sqrt(q.shape[-1])
    q = q * scale                                      # D numbers a query to scale, not Tk
    att = q @ k.swapaxes(-1, -2)                       # (B, H, Tq, Tk): the scores
    if mask is not None:
        xp.copyto(att, -math.inf, where=~mask)
    top = att.max(-1, keepdims=True)
    att -= xp.where(top == -math.inf, 0, top)          # exp cannot overflow
    xp.exp(att, out=att)
    total = att.sum(-1, keepdims=True)
    att /= total + (total == 0)                        # 0 only where no key is seen
    kept, drop = dropout_forward(att, p, key)
    y = kept @ v                                       # (B, H, Tq, D)
    return y, (q, k, v, y, att, kept, drop, scale)


def attention_backward(dy, cache):
    """dy (B, H, Tq, D) -> dq (B, H, Tq, D), dk and dv (B, H, Tk, D)."""
    q, k, v, y, att, kept, drop, scale = cache         # q is scaled already
    dv = kept.swapaxes(-1, -2) @ dy
    dscores = dropout_backward(dy @ v.swapaxes(-1, -2), drop)    # datt, so far
    dscores -= (dy * y).sum(-1, keepdims=True)
    dscores *= att
    dq = dscores @ k
    dq *= scale
    dk = dscores.swapaxes(-1, -2) @ q
    return dq, dk, dv
