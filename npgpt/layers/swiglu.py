"""SwiGLU: the product of two projections of a token, one of them through SiLU (Shazeer 2020,
arXiv:2002.05202).

    y = silu(gate) * up        silu(x) = x * s        s = 1 / (1 + exp(-x))

gate decides how much of up passes. SiLU (Hendrycks and Gimpel 2016, arXiv:1606.08415; also called
swish) is GELU with the logistic function as its smooth gate. Its derivative follows from
ds/dx = s (1 - s):

    silu'(x) = s + x s (1 - s) = s * (1 + x * (1 - s))

    dgate = dy * up * silu'(gate)
    dup   = dy * silu(gate)

s is computed as (1 + tanh(x / 2)) / 2, the same function, because exp(-x) overflows.
"""

from npgpt.backend import array_module


def swiglu_forward(gate, up):
    """gate, up (...) -> y (...)."""
    xp = array_module(gate)
    s = 0.5 * gate
    s = xp.tanh(s, out=s)
    s *= 0.5
    s += 0.5
    y = gate * s
    y *= up
    return y, (gate, up, s)


def swiglu_backward(dy, cache):
    """dy (...) -> dgate (...), dup (...)."""
    gate, up, s = cache
    dup = gate * s
    dup *= dy
    dgate = 1 - s
    dgate *= gate
    dgate += 1
    dgate *= s                  # silu'(gate)
    dgate *= up
    dgate *= dy
    return dgate, dup
