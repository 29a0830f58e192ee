"""The two activations: ReLU, which the lecture uses, and GELU in its tanh form, which GPT-2 uses.

    relu(x) = max(x, 0)                        relu'(x) = 1 where x > 0, else 0

    gelu(x) = x * s                            s = (1 + tanh(u)) / 2
                                               u = √(2/π) * (x + 0.044715 x³)

    gelu'(x) = s + x * ds/dx                   ds/dx = 2 s (1 - s) * du/dx
                                               du/dx = √(2/π) * (1 + 3 * 0.044715 x²)

s is a smooth gate: close to 0 for large negative x, close to 1 for large positive x.

GELU: Hendrycks and Gimpel 2016, arXiv:1606.08415. Hugging Face calls this form gelu_new. The form
with erf differs from it by up to 5e-4.
"""

import math

from npgpt.backend import array_module

GELU_LINEAR = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR


def relu_forward(x):
    """x (...) -> y (...)."""
    y = array_module(x).maximum(x, 0)
    return y, (y,)


def relu_backward(dy, cache):
    """dy (...) -> dx (...)."""
    (y,) = cache
    return dy * (y > 0)


def gelu_forward(x):
    """x (...) -> y (...). The cache keeps s, because tanh is expensive."""
    xp = array_module(x)
    u = x * x
    u *= GELU_CUBIC
    u += GELU_LINEAR
    u *= x
    s = xp.tanh(u, out=u)       # in the memory of u
    s += 1
    s *= 0.5
    y = x * s
    return y, (x, s, y)


def gelu_backward(dy, cache):
    """dy (...) -> dx (...)."""
    x, s, y = cache
    dx = x * x
    dx *= 6 * GELU_CUBIC
    dx += 2 * GELU_LINEAR       # 2 du/dx
    dx *= y                     # 2 x s du/dx
    dx *= 1 - s                 # x ds/dx
    dx += s
    dx *= dy
    return dx
