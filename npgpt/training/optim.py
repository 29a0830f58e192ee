"""Optimisation: how fast, how far, and in which direction the parameters move.

    rate  = learning_rate(step)                 warm-up, then half a cosine
    scale = clip_scale(norm of the gradients)   so that no batch moves them too far
    AdamW                                       the direction, from two running means

Nothing here reads a number back from the device: norm and scale are scalars that live there. A step
whose gradients are not finite leaves the parameters as they are.
"""

import math


def learning_rate(step, config):
    """The rate for a step counted from 0: it rises linearly through warmup_iters, falls along a
    cosine to min_lr at lr_decay_iters, and stays there (Loshchilov and Hutter 2017)."""
    peak, floor = config.learning_rate, config.min_lr
    if step < config.warmup_iters:
        return peak * (step + 1) / (config.warmup_iters + 1)
    if step >= config.lr_decay_iters:
        return floor
    share = (step - config.warmup_iters) / (config.lr_decay_iters - config.warmup_iters)
    return floor + (peak - floor) * (1 + math.cos(math.pi * share)) / 2


def gradient_norm(grads, device):
    """Parameters of gradients -> their Euclidean norm, a float64 scalar of the device. Squares are
    summed in float64, where those of finite float32 numbers cannot overflow."""
    total = device.xp.zeros((), dtype="float64")
    for part in device.slices(0, grads.flat.size):
        g = grads.flat[part].astype("float64")
        total = total + g @ g
    return device.xp.sqrt(total)


def clip_scale(norm, grad_clip, device):
    """What the gradients are multiplied by so that their norm is at most grad_clip (0: no limit),
    a float64 scalar of the device; 0 where the norm is not finite. The 1e-6 is PyTorch's."""
    xp = device.xp
    scale = xp.minimum(grad_clip / (norm + 1e-6), 1.0) if grad_clip else xp.ones_like(norm)
    return xp.where(xp.isfinite(norm), scale, 0.0)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

        m  = β1 m + (1 - β1) g                 the mean of the gradients
        v  = β2 v + (1 - β2) g²                the mean of their squares
        w -= rate * (weight_decay * w  +  m/(1 - β1ᵗ) / (√(v/(1 - β2ᵗ)) + ε))

    Matrices and embeddings decay; biases and norms do not.
    """

    def __init__(self, params, device, beta1, beta2, weight_decay, epsilon=1e-8):
        self.device = device
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.weight_decay = weight_decay
        self.m = device.xp.zeros_like(params.flat)
        self.v = device.xp.zeros_like(params.flat)

    @property
    def state(self):
        """name -> array: what a checkpoint keeps beside the parameters."""
        return {"adamw.m": self.m, "adamw.v": self.v}

    def step(self, params, grads, rate, scale, t):
        """Move params along -grads * scale; t counts the steps from 1. A scale of 0: they stay."""
        xp, dtype = self.device.xp, params.flat.dtype
        unusable = scale == 0
        rate = xp.where(unusable, 0.0, rate).astype(dtype)
        scale = scale.astype(dtype)
        m_total, v_total = 1 - self.beta1**t, 1 - self.beta2**t    # what the weights in m, v sum to
        groups = (0, params.n_decayed, self.weight_decay), (params.n_decayed, params.flat.size, 0.0)
        for start, stop, decay in groups:
            for part in self.device.slices(start, stop):
                w, m, v = params.flat[part], self.m[part], self.v[part]
                g = grads.flat[part] * scale
                xp.copyto(g, 0, where=unusable)        # inf * 0 is no number
                m += (g - m) * (1 - self.beta1)
                g *= g
                v += (g - v) * (1 - self.beta2)
                move = xp.sqrt(v / v_total)
                move += self.epsilon
                xp.divide(m, move, out=move)
                move *= 1 / m_total
                move += decay * w
                move *= rate
                w -= move
