"""Bugs inside the layers of today's decoder: RMSNorm, RoPE, grouped queries."""

import numpy as np

from npgpt.gradcheck import check_gradients
from npgpt.layers import attention as attention_layer
from npgpt.layers import (
    attention_backward,
    attention_forward,
    rmsnorm_forward,
    rope_backward,
    rope_forward,
    rotation,
)
from npgpt.layers import rmsnorm as rmsnorm_layer
from npgpt.layers import rope as rope_layer
from npgpt.layers.rows import row_sum
from tests.gallery.bug import Bug, from_own, keeping

BUGS = []


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# --- RMSNorm --------------------------------------------------------------------------------------

def weight_inside_the_mean(x, w, eps=1e-5):
    rstd = (row_sum(x * w * x * w) / w.shape[0] + eps) ** -0.5
    return x * rstd * w, None


def doubled_weight(norm):
    """doubling the weight, which must double the output."""
    x, w = normal(3, 7), normal(7, seed=1)
    np.testing.assert_allclose(norm(x, 2 * w)[0], 2 * norm(x, w)[0])


def norm_at_its_start(norm):
    """a mean square of 1 at w = 1, the value before training."""
    y, _ = norm(normal(3, 7), np.ones(7))
    np.testing.assert_allclose((y * y).mean(-1), 1, rtol=1e-4)


BUGS.append(Bug(
    "RMSNorm's weight is inside the mean",
    "The channels are multiplied by the weight before their mean square is taken instead of after "
    "the division. Then the size of the weight has no effect, and a large weight in one channel "
    "makes all others small. While all elements of w are 1, as at the start of training, both "
    "orders give the same result, and the gradients of this other layer can be correct too.",
    right="rstd = (row_sum(x * x) / w.shape[0] + eps) ** -0.5",
    wrong="rstd = (row_sum(x * w * x * w) / w.shape[0] + eps) ** -0.5",
    correct=rmsnorm_forward, broken=weight_inside_the_mean, source=rmsnorm_layer,
    check=doubled_weight, blind=norm_at_its_start,
))


# --- RoPE -----------------------------------------------------------------------------------------

def neighbours_paired(x, cos, sin):
    x1, x2 = x[..., ::2], x[..., 1::2]
    y = np.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return y.reshape(x.shape), (cos, sin)


def pairs_of_the_file(rotate):
    """comparison with complex numbers, whose parts are the channels i and i + D/2."""
    x, (cos, sin) = normal(2, 5, 6), rotation(np, 5, 6, dtype="float64")
    y, _ = rotate(x, cos, sin)
    expected = (x[..., :3] + 1j * x[..., 3:]) * (cos + 1j * sin)
    np.testing.assert_allclose(y, np.concatenate([expected.real, expected.imag], axis=-1))


def only_the_distance_counts(rotate):
    """that the product of a query and a key depends only on the distance of their positions."""
    q, k = normal(6), normal(6, seed=1)
    cos, sin = rotation(np, 9, 6, dtype="float64")
    q, k = (rotate(np.tile(x, (9, 1)), cos, sin)[0] for x in (q, k))
    np.testing.assert_allclose([q[t] @ k[t - 2] for t in range(2, 9)], q[2] @ k[0])


BUGS.append(Bug(
    "RoPE pairs other channels than the file",
    "Some files of weights pair channel i with i + D/2, others 2i with 2i + 1. Each is a correct "
    "rotation: norms are kept, only distances count, every gradient is right, and a model that is "
    "trained this way learns. But with the weights of the other kind only the first token, whose "
    "angles are 0, gets the right output.",
    right="x1, x2 = x[..., :half], x[..., half:]",
    wrong="x1, x2 = x[..., ::2], x[..., 1::2]",
    correct=rope_forward, broken=neighbours_paired, source=rope_layer,
    check=pairs_of_the_file, blind=only_the_distance_counts,
))


def rotated_forwards(dy, cache):
    cos, sin = cache
    dy1, dy2 = np.split(dy, 2, axis=-1)
    dx1 = dy1 * cos - dy2 * sin
    dx2 = dy2 * cos + dy1 * sin
    return np.concatenate([dx1, dx2], axis=-1)


def rope_gradient(backward):
    """the derivative at several positions."""
    cos, sin = rotation(np, 5, 6, dtype="float64")
    check_gradients(lambda x: rope_forward(x, cos, sin), backward, [normal(2, 5, 6)])


def length_of_the_gradient(backward):
    """the length of the gradient, which a rotation keeps."""
    cos, sin = rotation(np, 5, 6, dtype="float64")
    dy = normal(2, 5, 6)
    dx = backward(dy, rope_forward(dy, cos, sin)[1])
    np.testing.assert_allclose(np.linalg.norm(dx, axis=-1), np.linalg.norm(dy, axis=-1))


BUGS.append(Bug(
    "RoPE's backward is not inverted",
    "The gradient is rotated by the same angle as the query instead of by the opposite one. It has "
    "the right length, and at position 0 it is right; elsewhere it points in another direction. "
    "The gradient is multiplied by the transposed matrix, and that is the inverse rotation.",
    right="dx1 = dy1 * cos + dy2 * sin",
    wrong="dx1 = dy1 * cos - dy2 * sin",
    correct=rope_backward, broken=rotated_forwards,
    check=rope_gradient, blind=length_of_the_gradient,
))


# --- grouped queries ------------------------------------------------------------------------------

def first_head_of_each_group(dy, kept):
    q, k, v = kept.inputs
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat(shared, axis=1) for x in (k, v))
    dq, dk, dv = attention_backward(dy, attention_forward(q, k, v)[1])
    return dq, dk[:, ::shared], dv[:, ::shared]


def attention_of(H, G):
    return [normal(2, H, 5, 4, seed=1), normal(2, G, 3, 4, seed=2), normal(2, G, 3, 4, seed=3)]


def shared_keys(backward):
    """the derivative of every input, with two heads of queries for each head of keys."""
    check_gradients(keeping(attention_forward), backward, attention_of(4, 2))


def keys_of_their_own(backward):
    """the derivative with as many heads of keys as of queries."""
    check_gradients(keeping(attention_forward), backward, attention_of(4, 4))


BUGS.append(Bug(
    "The gradient of a shared key comes from one head",
    "With grouped queries, keys and values are repeated so that every head of queries has its own. "
    "The backward must add the gradients of these copies; here it keeps the first of each group. "
    "Shapes are right, and the gradient of the queries is right. If the rows of all heads that "
    "share a key are rows of one matrix, the product adds them.",
    right="dk = dscores.swapaxes(-1, -2) @ q",
    wrong="return dq, dk[:, ::shared], dv[:, ::shared]",
    correct=from_own(attention_backward), broken=first_head_of_each_group, source=attention_layer,
    check=shared_keys, blind=keys_of_their_own,
))
