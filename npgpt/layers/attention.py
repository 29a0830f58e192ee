"""Scaled dot-product attention, in every head (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    scores = q @ k.T / √D            -inf where the mask hides a key
    att    = softmax(scores)         over the keys
    y      = dropout(att) @ v

Each query attends to the keys it matches, and y is the sum of their values, weighted by att. The
backward of both products is that of a linear layer. The backward of the softmax subtracts from datt
its mean under the weights att:

    dv      = dropout(att).T @ dy
    datt    = dropout(dy @ v.T)                      the same elements dropped
    dscores = att * (datt - sum(datt * att))         sum over the keys
    dq      = dscores @ k / √D       dk = dscores.T @ q / √D

That sum equals sum(dy * y) over D, because y is linear in att. It is usually shorter. But it is
rounded differently from datt: where att is 1 for one key, dscores should be 0, and a few roundings
of sum(|dy * y|) are left, which dq multiplies by k / √D, and dk by q / √D.

A hidden key has att = 0 and so dscores = 0; the backward needs no mask. A query that may attend to
no key at all gets y = 0, and its gradients are 0.
"""

import math

from npgpt.backend import array_module
from npgpt.layers.dropout import dropout_backward, dropout_forward


def causal_mask(xp, Tq, Tk):
    """-> (Tq, Tk) bool. Queries are the last Tq of Tk positions; each sees itself and the past."""
    return xp.arange(Tk) <= xp.arange(Tk - Tq, Tk)[:, None]


def attention_forward(q, k, v, mask=None, p=0.0, key=None):
    """q (B, H, Tq, D), k and v (B, H, Tk, D) -> y (B, H, Tq, D).

    mask: bool, broadcast to (B, H, Tq, Tk), True where the query sees the key. None: it sees all.
    p, key: dropout of att, as in dropout_forward.
    """
    xp = array_module(q)
    scale = 1 / math.sqrt(q.shape[-1])
    q = q * scale                                      # D numbers per query to scale, not Tk
    scores = q @ k.swapaxes(-1, -2)                    # (B, H, Tq, Tk)
    if mask is not None:
        xp.copyto(scores, -math.inf, where=~mask)
    if k.shape[-2]:                                    # of no keys there is no maximum
        top = scores.max(-1, keepdims=True)
        scores -= xp.where(top == -math.inf, 0, top)   # exp cannot overflow
    att = xp.exp(scores, out=scores)                   # in the memory of scores
    total = att.sum(-1, keepdims=True)
    att /= total + (total == 0)                        # total is 0 only where no key is seen
    kept, drop = dropout_forward(att, p, key)
    y = kept @ v                                       # (B, H, Tq, D)
    return y, (q, k, v, y, att, kept, drop, scale)


def attention_backward(dy, cache):
    """dy (B, H, Tq, D) -> dq (B, H, Tq, D), dk and dv (B, H, Tk, D)."""
    q, k, v, y, att, kept, drop, scale = cache         # q is already scaled
    dv = kept.swapaxes(-1, -2) @ dy
    dscores = dropout_backward(dy @ v.swapaxes(-1, -2), drop)    # datt at first
    dscores -= (dy * y).sum(-1, keepdims=True)
    dscores *= att
    dq = dscores @ k
    dq *= scale
    dk = dscores.swapaxes(-1, -2) @ q
    return dq, dk, dv
