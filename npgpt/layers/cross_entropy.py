"""Softmax and cross-entropy: the mean negative log-probability of the targets, in nats.

    probs   = softmax(logits)
    loss    = sum of -log(probs[n, targets[n]]) / count        over the tokens n with a target
    dlogits = (probs - onehot(targets)) * dloss / count

The gradient of log and softmax together is simple: the prediction minus the target. They are
computed together, as log(sum(exp(logits))) - logits[target], so that no small probability becomes 0
before its logarithm is taken. Tokens whose target is -1 are ignored, whatever their logits are.
"""

import math

from npgpt.backend import array_module


def cross_entropy_forward(logits, targets, count=None):
    """logits (..., V), targets (...) int in 0..V-1 or -1 -> loss, a scalar, in nats.

    count: the divisor of the sum. None: the number of targets that are not -1. If a batch is
    computed in parts, pass the count of the whole batch. Any other target makes the loss and its
    gradient NaN, because raising an error would wait for the device. On a CPU, NumPy raises
    IndexError where it cannot index a row with it.
    """
    xp = array_module(logits)
    shape = logits.shape
    logits = logits.reshape(-1, shape[-1])                       # (N, V)
    targets = targets.reshape(-1).astype("int64")                # (N,), of a type that holds -1
    tokens = xp.arange(targets.shape[0])
    ignored = targets == -1
    known = (targets >= -1) & (targets < shape[-1])
    valid = xp.where(known, ~ignored, math.nan).astype(logits.dtype)    # 1, or 0 if ignored
    if count is None:
        count = xp.maximum(valid.sum(), 1)                       # without a target the loss is 0
    elif hasattr(count, "dtype"):
        count = count.astype(logits.dtype)                       # int64 would promote to float64

    logits = logits - logits.max(-1, keepdims=True)              # exp cannot overflow
    xp.copyto(logits, 0, where=ignored[:, None])                 # valid * inf would be NaN
    correct = logits[tokens, targets]                            # (N,); -1 picks the last
    probs = xp.exp(logits, out=logits)                           # in the memory of logits
    total = probs.sum(-1)                                        # (N,)
    probs /= total[:, None]
    loss = ((xp.log(total) - correct) * valid).sum() / count
    return loss, (probs, tokens, targets, valid, count, shape)


def cross_entropy_backward(dloss, cache):
    """dloss, a scalar -> dlogits (..., V)."""
    probs, tokens, targets, valid, count, shape = cache
    weight = valid * (dloss / count)                             # (N,)
    dlogits = probs * weight[:, None]
    dlogits[tokens, targets] -= weight
    return dlogits.reshape(shape)
