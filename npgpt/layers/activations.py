"""The two activations: ReLU, which the lecture uses, and GELU in its tanh form, which GPT-2 uses.

    relu(x) = max(x, 0)                        relu'(x) = 1 where x > 0, else 0

    gelu(x) = x/2 * (1 + t)                    t = tanh(u)
                                               u = √(2/π) * (x + 0.044715 x³)

    gelu'(x) = (1 + t)/2 + x/2 * (1 - t²) * du/dx      du/dx = √(2/π) * (1 + 3 * 0.044715 x²)

GELU: Hendrycks and Gimpel 2016, arXiv:1606.08415. Hugging Face calls this form gelu_new; the form
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
    """x (...) -> y (...). Keeps t, because tanh is the expensive part."""
    xp = array_module(x)
    t = x * x
    t *= GELU_CUBIC
    t += GELU_LINEAR
    t *= x                      # u
    xp.tanh(t, out=t)
    y = t + 1
    y *= x
    y *= 0.5
    return y, (x, t)


def gelu_backward(dy, cache):
    """dy (...) -> dx (...)."""
    x, t = cache
    dx = x * x
    dx *= 3 * GELU_CUBIC
    dx += GELU_LINEAR           # du/dx
    dx *= x
    dx *= 1 - t * t
    dx += t
    dx += 1
    dx *= dy
    dx *= 0.5
    return dx
