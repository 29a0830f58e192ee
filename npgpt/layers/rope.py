"""Rotary position embedding, RoPE (Su et al. 2021, arXiv:2104.09864): the channels of a query or a
key are rotated, in pairs, by angles proportional to its position.

    angle[t, i] = (start + t) * theta^(-2i / D)                 i = 0 .. D/2 - 1

    y1 = x1 * cos - x2 * sin        x1 = x[..., :D/2]           channel i is paired with i + D/2
    y2 = x2 * cos + x1 * sin        x2 = x[..., D/2:]

The product of a rotated query and a rotated key depends only on the distance of their positions,
because the two rotations subtract. So attention knows how far away a token is, with no parameters.

A rotation is orthogonal: its derivative with respect to x is the rotation itself, and the gradient
is multiplied by its transpose, the rotation by the opposite angle:

    dx1 = dy1 * cos + dy2 * sin
    dx2 = dy2 * cos - dy1 * sin

Hugging Face's files pair the channels like this. Others pair 2i with 2i + 1, which is the same
layer with the channels in another order.
"""

from npgpt.backend import array_module


def rotation(xp, T, D, theta=10000.0, start=0, dtype="float32"):
    """-> cos, sin (T, D/2) of the angles at T positions from start on, for heads of D channels.
    Computed in float64: in float32 the angle at position 8,000 is wrong by up to 5e-4."""
    frequency = theta ** (-2 / D * xp.arange(D // 2, dtype="float64"))
    angle = xp.arange(start, start + T, dtype="float64")[:, None] * frequency      # (T, D/2)
    return xp.cos(angle).astype(dtype), xp.sin(angle).astype(dtype)


def rope_forward(x, cos, sin):
    """x (..., T, D), cos and sin (T, D/2) -> y (..., T, D)."""
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    return array_module(x).concatenate([y1, y2], axis=-1), (cos, sin)


def rope_backward(dy, cache):
    """dy (..., T, D) -> dx (..., T, D). There is no gradient for cos and sin, which are fixed."""
    cos, sin = cache
    half = dy.shape[-1] // 2
    dy1, dy2 = dy[..., :half], dy[..., half:]
    dx1 = dy1 * cos + dy2 * sin
    dx2 = dy2 * cos - dy1 * sin
    return array_module(dy).concatenate([dx1, dx2], axis=-1)
