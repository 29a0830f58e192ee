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

Several heads of queries can share one head of keys and values (grouped-query attention: Ainslie et
al. 2023, arXiv:2305.13245), which are then not copied: with H heads of queries and G of keys, the
rows of the H/G heads that share a key are rows of one matrix. So the products that give dk and dv
also sum over these heads.
"""

import math

from npgpt.backend import array_module
from npgpt.layers.dropout import dropout_backward, dropout_forward
from npgpt.layers.rows import row_max, row_sum


def causal_mask(xp, Tq, Tk):
    """-> (Tq, Tk) bool. Queries are the last Tq of Tk positions; each sees itself and the past."""
    return xp.arange(Tk) <= xp.arange(Tk - Tq, Tk)[:, None]


def and_past(mask, causal, xp, Tq, Tk):
    """-> the mask, or None; if attention is causal, without the future. The last query has none."""
    if not causal or Tq == 1:
        return mask
    past = causal_mask(xp, Tq, Tk)
    return past if mask is None else past & mask


def attention_forward(q, k, v, mask=None, p=0.0, key=None, causal=False):
    """q (B, H, Tq, D), k and v (B, G, Tk, D) -> y (B, H, Tq, D). Query head h attends to the keys
    of head h // (H/G).

    mask: bool, broadcast to (B, H, Tq, Tk), True where the query sees the key. None: it sees all.
    p, key: dropout of att, as in dropout_forward. causal: hide the future too, as causal_mask.
    """
    xp = array_module(q)
    (B, H, Tq, D), (G, Tk) = q.shape, k.shape[1:3]
    mask = and_past(mask, causal, xp, Tq, Tk)
    heads, groups = (B, H, Tq), (B, G, H // G * Tq)    # the same rows, as of one matrix per group
    scale = 1 / math.sqrt(D)
    q = (q * scale).reshape(*groups, D)                # D numbers per query to scale, not Tk
    scores = (q @ k.swapaxes(-1, -2)).reshape(*heads, Tk)
    if mask is not None:
        xp.copyto(scores, -math.inf, where=~mask)
    if Tk:                                             # of no keys there is no maximum
        top = row_max(scores)
        if mask is not None:
            top = xp.where(top == -math.inf, 0, top)   # where no key is seen
        scores -= top                                  # exp cannot overflow
    att = xp.exp(scores, out=scores)                   # in the memory of scores
    total = row_sum(att)
    if mask is not None:
        total += total == 0
    att /= total
    kept, drop = dropout_forward(att, p, key)
    y = kept.reshape(*groups, Tk) @ v                  # (B, G, H/G * Tq, D)
    return y.reshape(*heads, v.shape[-1]), (q, k, v, y, att, kept, drop, scale)


def attention_backward(dy, cache):
    """dy (B, H, Tq, D) -> dq (B, H, Tq, D), dk and dv (B, G, Tk, D)."""
    q, k, v, y, att, kept, drop, scale = cache         # q is scaled already; q and y in groups
    *heads, Tk = att.shape
    groups, D = q.shape[:3], q.shape[3]
    dy = dy.reshape(y.shape)
    dv = kept.reshape(*groups, Tk).swapaxes(-1, -2) @ dy
    datt = (dy @ v.swapaxes(-1, -2)).reshape(att.shape)
    dscores = dropout_backward(datt, drop).reshape(*groups, Tk)
    dscores -= row_sum(dy * y)
    dscores *= att.reshape(dscores.shape)
    dq = dscores @ k
    dq *= scale
    dk = dscores.swapaxes(-1, -2) @ q
    return dq.reshape(*heads, D), dk, dv
