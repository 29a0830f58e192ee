"""Bugs inside a layer."""

import math

import numpy as np

import npgpt.gradcheck.direction
from npgpt.gradcheck import GradientError, check_gradients
from npgpt.layers import (
    Key,
    attention_backward,
    attention_forward,
    causal_mask,
    cross_entropy_backward,
    cross_entropy_forward,
    dropout_backward,
    dropout_forward,
    embedding_backward,
    embedding_forward,
    gelu_backward,
    gelu_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
)
from npgpt.layers import attention as attention_layer
from npgpt.layers import cross_entropy as cross_entropy_layer
from npgpt.layers import embedding as embedding_layer
from npgpt.layers import layernorm as layernorm_layer
from tests.gallery.bug import Bug, from_own, keeping

BUGS = []


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# --- attention ------------------------------------------------------------------------------------

def attention_inputs(p=0.0, Tk=5, D=4):
    return [normal(2, 3, 5, D, seed=1), normal(2, 3, Tk, D, seed=2), normal(2, 3, Tk, D, seed=3),
            causal_mask(np, 5, Tk), p, Key(1, 2)]


def attention_gradients(backward):
    """the derivative of every input, with T different from D and dropout on."""
    check_gradients(keeping(attention_forward), backward, attention_inputs(p=0.4))


def attention_shapes(backward):
    """the shapes of the gradients, which are correct."""
    inputs = attention_inputs()
    y, cache = keeping(attention_forward)(*inputs)
    assert [d.shape for d in backward(y, cache)] == [x.shape for x in inputs[:3]]


def attention_without_dropout(backward):
    """the derivative with dropout off."""
    check_gradients(keeping(attention_forward), backward, attention_inputs(p=0.0))


def probabilities(q, k, v, mask, p, key):
    """-> att, and the cache of its dropout."""
    scores = np.where(mask, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -np.inf)
    att = weights(scores)
    return att, dropout_forward(att, p, key)[1]


def dk_left_transposed(dy, kept):
    dq, dk, dv = attention_backward(dy, kept.own)
    q, k, v, *_ = kept.inputs
    att, drop = probabilities(*kept.inputs)
    dscores = att * (dropout_backward(dy @ v.swapaxes(-1, -2), drop)
                     - (dy * kept.y).sum(-1, keepdims=True)) / math.sqrt(q.shape[-1])
    dk = (q.swapaxes(-1, -2) @ dscores).reshape(k.shape)
    return dq, dk, dv


BUGS.append(Bug(
    "The gradient of the keys is left transposed",
    "`q.T @ dscores` is the gradient of the transposed keys, and a reshape that was meant to "
    "merge the heads makes its shape fit. If T equals D, not even the reshape is needed. Training "
    "continues, but the keys learn noise.",
    right="dk = dscores.swapaxes(-1, -2) @ q",
    wrong="dk = (q.swapaxes(-1, -2) @ dscores).reshape(k.shape)",
    correct=from_own(attention_backward), broken=dk_left_transposed, source=attention_layer,
    check=attention_gradients, blind=attention_shapes,
))


def dv_before_dropout(dy, kept):
    dq, dk, _ = attention_backward(dy, kept.own)
    att, _ = probabilities(*kept.inputs)
    *groups, Tk = att.shape                  # each head is a group of its own
    dv = att.reshape(*groups, Tk).swapaxes(-1, -2) @ dy
    return dq, dk, dv


BUGS.append(Bug(
    "The gradient of the values ignores dropout",
    "The forward multiplies the values by the probabilities after dropout; the backward uses the "
    "probabilities before it. With dropout off, as in most gradient tests, both are the same. A "
    "fixed dropout mask makes the difference measurable.",
    right="dv = kept.reshape(*groups, Tk).swapaxes(-1, -2) @ dy",
    wrong="dv = att.reshape(*groups, Tk).swapaxes(-1, -2) @ dy",
    correct=from_own(attention_backward), broken=dv_before_dropout, source=attention_layer,
    check=attention_gradients, blind=attention_without_dropout,
))


def weights(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def hidden_where_zero(q, k, v):
    T = q.shape[-2]
    scores = np.tril(np.ones((T, T))) * (q @ k.swapaxes(-1, -2)) / math.sqrt(q.shape[-1])
    scores = np.where(scores == 0, -np.inf, scores)
    return weights(scores) @ v


def hidden_by_a_large_number(q, k, v):
    T = q.shape[-2]
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores + np.where(causal_mask(np, T, T), 0.0, -1e4)
    return weights(scores) @ v


def hidden_by_a_mask(q, k, v):
    T = q.shape[-2]
    return attention_forward(q, k, v, causal_mask(np, T, T))[0]


def zero_scores_count(attend):
    """scores that are exactly 0: each query must return the mean of the values it attends to."""
    _, k, v = (normal(1, 2, 6, 4, seed=s) for s in range(3))
    with np.errstate(invalid="ignore"):
        y = attend(np.zeros_like(k), k, v)
    np.testing.assert_allclose(y[:, :, 2], v[:, :, :3].mean(2))


def random_scores_agree(attend):
    """comparison with the definition, at random scores."""
    q, k, v = (normal(1, 2, 6, 4, seed=s) for s in range(3))
    scores = np.where(np.tri(6) > 0, q @ k.swapaxes(-1, -2) / 2, -np.inf)
    np.testing.assert_allclose(attend(q, k, v), weights(scores) @ v)


BUGS.append(Bug(
    "The mask is recovered from the nonzero scores",
    "The scores are multiplied by a lower triangle, and later every zero is treated as masked. A "
    "score that is exactly 0 is then masked too, and such scores are not rare: after a ReLU, with "
    "equal embeddings, or at the start of training. The mask must be separate from the scores.",
    right="xp.copyto(scores, -math.inf, where=~mask)",
    wrong="scores = np.where(scores == 0, -np.inf, scores)",
    correct=hidden_by_a_mask, broken=hidden_where_zero, source=attention_layer,
    check=zero_scores_count, blind=random_scores_agree,
))


def the_future_has_no_influence(attend):
    """changing a future token, with scores as large as in a trained model."""
    q, k, v = (normal(1, 2, 6, 4, seed=s) for s in range(3))
    q *= 1e4
    before = attend(q, k, v)
    k[:, :, 4:] *= 10
    assert np.array_equal(before[:, :, :4], attend(q, k, v)[:, :, :4])


BUGS.append(Bug(
    "A large negative number masks the future",
    "Adding −1e4 instead of −inf hides a key only while all scores are far below 1e4. A model can "
    "learn larger scores. Only −inf is safe.",
    right="xp.copyto(scores, -math.inf, where=~mask)",
    wrong="scores = scores + np.where(causal_mask(np, T, T), 0.0, -1e4)",
    correct=hidden_by_a_mask, broken=hidden_by_a_large_number, source=attention_layer,
    check=the_future_has_no_influence, blind=random_scores_agree,
))


# --- layer normalisation --------------------------------------------------------------------------

def layernorm_gradients(backward):
    """the derivatives of x, w and b, at a random w."""
    inputs = [normal(3, 7), normal(7, seed=1), normal(7)]
    check_gradients(keeping(layernorm_forward), backward, inputs)


def layernorm_parameters_alone(backward):
    """the derivatives of w and b."""
    x = normal(3, 7)
    check_gradients(lambda w, b: keeping(layernorm_forward)(x, w, b),
                    lambda dy, cache: backward(dy, cache)[1:], [normal(7, seed=1), normal(7)])


def layernorm_at_its_start(backward):
    """the derivatives at w = 1 and b = 0, the values before training."""
    check_gradients(keeping(layernorm_forward), backward, [normal(3, 7), np.ones(7), np.zeros(7)])


def normalised(x, w, b):
    """-> xhat, rstd."""
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return (x - x.mean(-1, keepdims=True)) * rstd, rstd


def sum_for_a_mean(dy, kept):
    _, w, _ = kept.inputs
    xhat, rstd = normalised(*kept.inputs)
    _, dw, db = layernorm_backward(dy, kept.own)
    dy_xhat = dy * xhat
    dxhat = dy * w
    mean_dxhat_xhat = dy_xhat @ w
    dx = rstd * (dxhat - dxhat.mean(-1, keepdims=True) - xhat * mean_dxhat_xhat[..., None])
    return dx, dw, db


BUGS.append(Bug(
    "One term of LayerNorm lacks its 1/C",
    "Two of the three terms of dx are means, and one of them was written as a sum. The gradients "
    "of w and b do not depend on that line. Tests that check only the parameters of the layer "
    "pass.",
    right="mean_dxhat_xhat = dy_xhat @ w / C",
    wrong="mean_dxhat_xhat = dy_xhat @ w",
    correct=from_own(layernorm_backward), broken=sum_for_a_mean, source=layernorm_layer,
    check=layernorm_gradients, blind=layernorm_parameters_alone,
))


def w_outside_the_means(dy, kept):
    _, w, _ = kept.inputs
    xhat, rstd = normalised(*kept.inputs)
    _, dw, db = layernorm_backward(dy, kept.own)
    mean_dy_xhat = (dy * xhat).mean(-1, keepdims=True)
    dx = w * rstd * (dy - dy.mean(-1, keepdims=True) - xhat * mean_dy_xhat)
    return dx, dw, db


BUGS.append(Bug(
    "LayerNorm's w is applied outside the means",
    "dy is multiplied by w after the means are subtracted instead of before. The result is correct "
    "while all elements of w are equal, as at the start of training and in every test that leaves "
    "w at 1. It becomes wrong as w changes.",
    right="dxhat = dy * w",
    wrong="dx = w * rstd * (dy - dy.mean(-1, keepdims=True) - xhat * mean_dy_xhat)",
    correct=from_own(layernorm_backward), broken=w_outside_the_means, source=layernorm_layer,
    check=layernorm_gradients, blind=layernorm_at_its_start,
))


# --- embedding, GELU, projection, loss ------------------------------------------------------------

def last_one_wins(dy, kept):
    idx, w = kept.inputs
    dw = np.zeros(w.shape)
    dw[idx] += dy
    return dw


def repeated_tokens(backward):
    """the derivative when a token occurs twice."""
    idx = np.array([[1, 3, 1], [0, 1, 4]])
    check_gradients(keeping(embedding_forward), backward, [idx, normal(5, 2)])


def distinct_tokens(backward):
    """the derivative when all tokens are different."""
    check_gradients(keeping(embedding_forward), backward, [np.array([[1, 3, 0]]), normal(5, 2)])


BUGS.append(Bug(
    "Only one gradient of a repeated token is kept",
    "`dw[idx] += dy` looks like a sum, but NumPy reads, adds and writes the whole selection at "
    "once, so the last write wins. Common characters occur dozens of times in a batch and lose "
    "most of their gradient. A product with the one-hot matrix sums all of them.",
    right="rows = onehot.astype(dy.dtype) @ dy",
    wrong="dw[idx] += dy",
    correct=from_own(embedding_backward), broken=last_one_wins, source=embedding_layer,
    check=repeated_tokens, blind=distinct_tokens,
))


def gelu_with_erf(x):
    _, cache = gelu_forward(x)
    y = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return y, cache


def gelu_of_gpt2(forward):
    """four values of the tanh form, computed with 50 digits."""
    x = np.array([1.0, -1.0, 2.0, 0.5])
    expected = [0.8411919906082767, -0.1588080093917233, 1.954597694087775, 0.3457140098251439]
    np.testing.assert_allclose(forward(x)[0], expected, rtol=1e-12)


def gelu_within_a_hundredth(forward):
    """the derivative, with an absolute tolerance of 1e-2."""
    x = normal(20)
    _, cache = forward(x)
    numeric = (forward(x + 1e-4)[0] - forward(x - 1e-4)[0]) / 2e-4
    np.testing.assert_allclose(gelu_backward(np.ones(20), cache), numeric, atol=1e-2)


BUGS.append(Bug(
    "Two GELUs are mixed",
    "There is a GELU with erf and one with tanh, and they differ by up to 5e-4. Using one in the "
    "forward and the other in the backward, or one in training and the other after loading a "
    "checkpoint, passes every test with a tolerance of 1e-2. GPT-2 uses the tanh form.",
    right="s = xp.tanh(u, out=u)",
    wrong="y = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))",
    correct=gelu_forward, broken=gelu_with_erf,
    check=gelu_of_gpt2, blind=gelu_within_a_hundredth,
))


def projected(p):
    def forward(x, w):
        y, lin = linear_forward(x, w)
        y, drop = dropout_forward(y, p, Key(1, 3))
        return y, (lin, drop)
    return forward


def dropout_backward_first(dy, cache):
    lin, drop = cache
    dx, dw, _ = linear_backward(dropout_backward(dy, drop), lin)
    return dx, dw


def dropout_backward_last(dy, cache):
    lin, drop = cache
    dx, dw, _ = linear_backward(dy, lin)
    return dropout_backward(dx, drop), dw


def projection_with_dropout(backward):
    """the derivative with dropout on."""
    check_gradients(projected(0.5), backward, [normal(4, 6), normal(6, 6, seed=1)])


def projection_without_dropout(backward):
    """the derivative with dropout off."""
    check_gradients(projected(0.0), backward, [normal(4, 6), normal(6, 6, seed=1)])


BUGS.append(Bug(
    "The backward of dropout is in the wrong place",
    "The forward applies the projection and then dropout, so the backward must start with dropout. "
    "In the wrong order the shapes still agree, because the projection is square. Without dropout "
    "both orders give the same result.",
    right="dx, dw, _ = linear_backward(dropout_backward(dy, drop), lin)",
    wrong="return dropout_backward(dx, drop), dw",
    correct=dropout_backward_first, broken=dropout_backward_last,
    check=projection_with_dropout, blind=projection_without_dropout,
))


def mean_taken_twice(dloss, cache):
    dlogits = cross_entropy_backward(dloss, cache)
    return dlogits / len(dlogits)


def loss_gradient(backward):
    """the derivative of the loss."""
    check_gradients(cross_entropy_forward, backward, [normal(6, 5), np.array([0, 4, -1, 2, 1, 1])])


def first_step_of_adam(backward):
    """one step of Adam, which does not depend on a constant factor."""
    logits, targets = normal(6, 5), np.array([0, 4, 3, 2, 1, 1])
    steps = []
    for f in (backward, cross_entropy_backward):
        g = f(1.0, cross_entropy_forward(logits, targets)[1])
        steps.append(0.1 * g / np.sqrt(g * g))
    np.testing.assert_allclose(*steps)


BUGS.append(Bug(
    "The mean of the loss is taken twice",
    "The loss is divided by the number of tokens in the forward, and the gradient again in the "
    "backward. Adam divides by the size of the gradient, so the loss curve looks the same. "
    "Clipping and most other optimisers do depend on the factor.",
    right="weight = valid * (dloss / count)",
    wrong="return dlogits / len(dlogits)",
    correct=cross_entropy_backward, broken=mean_taken_twice, source=cross_entropy_layer,
    check=loss_gradient, blind=first_step_of_adam,
))


# --- the checker itself ---------------------------------------------------------------------------

def within_a_tolerance(forward, backward, x, h=1e-5):
    y, cache = forward(x)
    found = backward(np.ones_like(y), cache)
    numeric = (forward(x + h)[0] - forward(x - h)[0]) / (2 * h)
    assert np.allclose(found, numeric, atol=1e-2)


def relative_to_the_gradient(forward, backward, x):
    check_gradients(forward, backward, [x], method="central")


def zero_is_rejected(checker):
    """a gradient of zero must be rejected where the true one is small."""
    def forward(x):
        return 1e-3 * x * x, (x,)

    try:
        checker(forward, lambda dy, cache: 0 * cache[0], np.linspace(0.5, 1, 4))
    except (AssertionError, GradientError):
        return
    raise AssertionError("a gradient of zero was accepted")


def right_is_accepted(checker):
    """the true gradient must be accepted."""
    checker(lambda x: (1e-3 * x * x, (x,)), lambda dy, cache: 2e-3 * cache[0] * dy, np.ones(4))


BUGS.append(Bug(
    "The tolerance is larger than the gradient",
    "A test uses `np.allclose` with an absolute tolerance that was raised until the test passed. "
    "The gradients of a mean over a batch are smaller than that, so zero would pass too. The error "
    "must be relative to the gradient, and the gradient must not be tiny.",
    right="error = max(abs(expected - found) - slack, 0.0) / scale if scale else 0.0",
    wrong="assert np.allclose(found, numeric, atol=1e-2)",
    correct=relative_to_the_gradient, broken=within_a_tolerance, source=npgpt.gradcheck.direction,
    check=zero_is_rejected, blind=right_is_accepted,
))
