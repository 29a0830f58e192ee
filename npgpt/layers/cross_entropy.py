"""Cross-entropy of softmax: how surprised the model is by the token that came, in nats.

    probs   = softmax(logits)
    loss    = sum of -log(probs[n, targets[n]]) / count        over the tokens n with a target
    dlogits = (probs - onehot(targets)) * dloss / count

log and softmax together have this simple gradient: what was predicted less what came. They are
computed together, as log(sum(exp(logits))) - logits[target], so that no small probability becomes 0
before its logarithm is taken. Tokens whose target is -1 count for nothing.
"""

from npgpt.backend import array_module


def cross_entropy_forward(logits, targets, count=None):
    """logits (..., V), targets (...) int in 0..V-1 or -1 -> loss, a scalar, in nats.

    count: what the sum is divided by; None: the number of targets that are not -1. A batch that
    is computed in parts passes the number for the whole batch.
    """
    xp = array_module(logits)
    shape = logits.shape
    logits = logits.reshape(-1, shape[-1])                       # (N, V)
    targets = targets.reshape(-1)                                # (N,)
    tokens = xp.arange(targets.shape[0])
    valid = (targets >= 0).astype(logits.dtype)
    if count is None:
        count = xp.maximum(valid.sum(), 1)                       # no target at all: loss 0
    elif hasattr(count, "dtype"):
        count = count.astype(logits.dtype)                       # an int64 would make float64

    probs = logits - logits.max(-1, keepdims=True)               # exp cannot overflow
    # A target of -1 picks the last logit of its row; valid takes it out again.
    correct = probs[tokens, targets]                             # (N,)
    xp.exp(probs, out=probs)
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
