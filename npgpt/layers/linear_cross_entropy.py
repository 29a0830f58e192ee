"""The head and the loss as one layer: the cross-entropy of a linear layer's output, which is never
in memory all at once (as in Liger: Hsu et al. 2024, arXiv:2410.10989, and in Cut Cross-Entropy:
Wijmans et al. 2024, arXiv:2411.09009).

    logits = x @ w + b                         (N, V): for a large vocabulary, the largest array
    loss   = cross_entropy(logits, targets)

The loss is a number, and its gradients are proportional to dloss. So the forward can compute them
for dloss = 1, a few tokens at a time, and the backward multiplies them by dloss. With the
derivatives of cross_entropy.py and linear.py, for each part of the tokens

    dlogits = (softmax(logits) - onehot(targets)) / count
    dx      = dlogits @ w.T
    dw      = x.T @ dlogits                    summed over the parts, and db likewise

The logits of a part become its probabilities, and these its dlogits, in the same memory.
"""

import math

from npgpt.backend import array_module, device_of, slices
from npgpt.layers.linear import linear_backward, linear_forward
from npgpt.layers.rows import row_max

LOGITS = 2**24       # at most this number of logits is in memory


def linear_cross_entropy_forward(x, w, b, targets, count=None, gradients=True, frozen=False,
                                 tokens=None, linear=(linear_forward, linear_backward)):
    """x (..., C), w (C, V), b (V,) or None, targets (...) int in 0..V-1 or -1 -> loss, a scalar, in
    nats. Tokens whose target is -1 are ignored.

    count, and other targets: as for cross_entropy_forward. gradients: False: for a loss without a
    backward. frozen: w needs no gradient. tokens: their number in a part; None: as many as have
    LOGITS logits. linear: the functions of the linear layer.
    """
    xp, (forward, backward) = array_module(x), linear
    shape, V = x.shape, w.shape[1]
    x = x.reshape(-1, shape[-1])                                        # (N, C)
    targets = targets.reshape(-1).astype("int64")                       # (N,), may be -1
    known = (targets >= -1) & (targets < V)
    valid = xp.where(known, targets != -1, math.nan).astype(x.dtype)    # (N,) 1, or 0 if ignored
    count = xp.maximum(valid.sum(), 1) if count is None else xp.asarray(count, x.dtype)
    loss, dw, db = xp.zeros((), x.dtype), None, None
    dx = xp.zeros(x.shape, x.dtype) if gradients else None
    parts = slices(0, len(x), tokens or LOGITS // V) or [slice(None)]   # no tokens
    for part in parts:
        logits, cache = forward(x[part], w, b, frozen)
        loss = loss + losses_in_place(logits, targets[part], valid[part] / count)
        if gradients:
            dx[part], *sums = backward(logits, cache)                   # logits: dlogits by now
            dw, db = map(add_to, (dw, db), sums)
        del logits                                                      # before the next ones
    return loss, (dx.reshape(shape), dw, db) if gradients else None


def linear_cross_entropy_backward(dloss, cache):
    """dloss, a scalar -> dx (..., C), dw (C, V), None if w is frozen, db (V,), None if b was None.
    dloss: None: 1, without a copy of the gradients."""
    dx, dw, db = cache
    if dloss is None:
        return dx, dw, db
    return dx * dloss, None if dw is None else dw * dloss, None if db is None else db * dloss


def losses_in_place(logits, targets, weight):
    """logits (N, V), targets and weight (N,) -> the weighted sum of the losses. The logits become
    their gradients; a few rows at a time, so that they stay in the cache of a processor."""
    xp, V = array_module(logits), logits.shape[1]
    loss = 0
    for rows in slices(0, len(logits), device_of(logits).chunk // V):
        probs, target, share = logits[rows], targets[rows], weight[rows]
        probs -= row_max(probs)                                         # exp cannot overflow
        xp.copyto(probs, 0, where=(target == -1)[:, None])              # share * inf would be NaN
        tokens = xp.arange(len(target))
        correct = probs[tokens, target]                                 # -1 picks the last
        xp.exp(probs, out=probs)
        total = probs.sum(-1)                    # for long rows more exact than row_sum
        loss = loss + ((xp.log(total) - correct) * share).sum()
        probs *= (share / total)[:, None]
        probs[tokens, target] -= share
    return loss


def add_to(total, d):
    """-> total, to which d is added in place; d itself, or None, if one of them is None."""
    if total is None or d is None:
        return d
    total += d
    return total
