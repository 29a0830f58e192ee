"""Optimisation: how fast, how far, and in which direction the parameters move.

    rate  = learning_rate(step)                 warm-up, a plateau, then down
    scale = clip_scale(norm of the gradients)   so that no batch moves them too far
    AdamW                                       the direction, from two running means
    Muon                                        for matrices: a running mean, made orthogonal

Nothing here reads a number back from the device: norm and scale are scalars that live there. A step
whose gradients are not finite leaves the parameters as they are. Where several ranks train, each
moves its share of the parameters, a list of slices of the flat buffer.
"""

import math

from npgpt.backend import array_module


def learning_rate(step, config):
    """The rate for a step counted from 0: it rises linearly through warmup_iters, stays until the
    share `hold` of lr_decay_iters is over, falls to min_lr at lr_decay_iters along a cosine
    (Loshchilov and Hutter 2017) or a line, and stays there."""
    peak, floor = config.learning_rate, config.min_lr
    start = max(config.warmup_iters, config.hold * config.lr_decay_iters)
    if step < config.warmup_iters:
        return peak * (step + 1) / (config.warmup_iters + 1)
    if step >= config.lr_decay_iters:
        return floor
    if step < start:
        return peak
    share = (step - start) / (config.lr_decay_iters - start)
    fallen = share if config.decay == "linear" else (1 - math.cos(math.pi * share)) / 2
    return peak + (floor - peak) * fallen


def squared_norm(grads, device, share=None):
    """Parameters of gradients -> the sum of their squares over a share (None: all), a float64
    scalar of the device. Those of finite float32 numbers cannot overflow in float64."""
    share = [slice(0, grads.flat.size)] if share is None else share
    total = device.xp.zeros((), dtype="float64")
    for span in share:
        for part in device.slices(span.start, span.stop):
            g = grads.flat[part].astype("float64")
            g *= g
            total = total + g.sum()
    return total


def gradient_norm(grads, device):
    """Parameters of gradients -> their Euclidean norm, a float64 scalar of the device."""
    return device.xp.sqrt(squared_norm(grads, device))


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

    def __init__(self, params, device, beta1, beta2, weight_decay, epsilon=1e-8, start=0):
        """start: where in the flat buffer the parameters begin that it moves."""
        self.device = device
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.weight_decay = weight_decay
        self.start = start
        self.m, self.v = (device.xp.zeros(params.flat.size - start, params.flat.dtype)
                          for _ in range(2))

    @property
    def state(self):
        """name -> array: what a checkpoint keeps beside the parameters."""
        return {"adamw.m": self.m, "adamw.v": self.v}

    def share(self, params, rank, size):
        """The slices of the flat buffer that a rank moves: one, as long as every other's."""
        n = params.flat.size - self.start
        cuts = [self.start + n * r // size for r in (rank, rank + 1)]
        border = min(max(params.n_decayed, cuts[0]), cuts[1])
        return [slice(cuts[0], border), slice(border, cuts[1])]     # decayed, and not

    def step(self, params, grads, rate, scale, t, share=None):
        """Move a share of params (None: all) along -grads * scale; t counts the steps from 1. A
        scale of 0: they stay."""
        xp, dtype = self.device.xp, params.flat.dtype
        unusable = scale == 0
        rate = xp.where(unusable, 0.0, rate).astype(dtype)
        scale = scale.astype(dtype)
        m_total, v_total = 1 - self.beta1**t, 1 - self.beta2**t    # what the weights in m, v sum to
        for span in self.share(params, 0, 1) if share is None else share:
            decay = self.weight_decay if span.stop <= params.n_decayed else 0.0
            for part in self.device.slices(span.start, span.stop):
                here = slice(part.start - self.start, part.stop - self.start)
                w, m, v = params.flat[part], self.m[here], self.v[here]
                g = grads.flat[part] * scale
                xp.copyto(g, 0, where=unusable)        # inf * 0 is no number
                m += (g - m) * (1 - self.beta1)
                g *= g
                v += (g - v) * (1 - self.beta2)
                # m / m_total / (√(v / v_total) + ε), with the scalars taken together: fewer passes
                move = xp.sqrt(v)
                move += self.epsilon * math.sqrt(v_total)
                xp.divide(m, move, out=move)
                move *= rate * (math.sqrt(v_total) / m_total)
                w *= 1 - rate * decay
                w -= move


class Muon:
    """Momentum, orthogonalised: for the blocks' matrices (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/).

        m  = β m + (1 - β) g
        u  = orthogonal((1 - β) g + β m)                      Nesterov: g once more
        w -= rate * (weight_decay * w  +  √max(1, O/I) u)     w (I, O)

    A gradient's few large singular values are the directions that many examples share; the small
    ones are what is particular, and a step along the gradient hardly moves there. With u all
    directions are moved alike. Queries, keys and values are three matrices that stand side by side
    in one, and each is made orthogonal on its own.
    """

    def __init__(self, params, device, momentum, weight_decay, relative_rate):
        """relative_rate: its rate, as a multiple of what `step` is given."""
        self.device = device
        self.momentum, self.weight_decay = momentum, weight_decay
        self.relative_rate = relative_rate
        self.m = device.xp.zeros(params.n_matrices, params.flat.dtype)

    @property
    def state(self):
        """name -> array: what a checkpoint keeps beside the parameters."""
        return {"muon.m": self.m}

    def share(self, params, rank, size):
        """The slices of the flat buffer that a rank moves: whole matrices, largest first to the
        rank that has least to do."""
        matrices = [s for s in params.slices.values() if s.stop <= params.n_matrices]
        shares, loads = [[] for _ in range(size)], [0] * size
        for matrix in sorted(matrices, key=lambda s: s.start - s.stop):
            least = loads.index(min(loads))
            shares[least].append(matrix)
            loads[least] += matrix.stop - matrix.start
        return shares[rank]

    def step(self, params, grads, rate, scale, t, share=None):
        """Move a share of params (None: all) along -orthogonal(grads * scale). A scale of 0: they
        stay."""
        xp, dtype = self.device.xp, params.flat.dtype
        unusable = scale == 0
        rate = xp.where(unusable, 0.0, rate * self.relative_rate).astype(dtype)
        scale = scale.astype(dtype)
        names = {(s.start, s.stop): name for name, s in params.slices.items()}
        for span in self.share(params, 0, 1) if share is None else share:
            name = names[span.start, span.stop]
            w, m = params[name], self.m[span].reshape(params.shapes[name])
            g = grads[name] * scale
            xp.copyto(g, 0, where=unusable)
            m += (g - m) * (1 - self.momentum)
            g += (m - g) * self.momentum
            I, O = w.shape
            width = O // 3 if name.endswith("attn.c_attn.weight") else O
            for at in range(0, O, width):
                part = slice(at, at + width)
                move = orthogonal(g[:, part])
                move *= math.sqrt(max(1.0, width / I))
                move += self.weight_decay * w[:, part]
                move *= rate
                w[:, part] -= move


def orthogonal(g, steps=5):
    """g (I, O) -> what is left of it when every singular value is made about 1.

    x ↦ p x with p = a + b xxᵀ + c (xxᵀ)² does to each singular value s what as + bs³ + cs⁵ does to
    a number, and leaves the singular vectors alone. With these coefficients five rounds bring
    everything from 0.01 to 1 to between 0.7 and 1.2; nearer to 1 is not needed. Divided by the norm
    of all its elements, a matrix has no singular value above 1.

    A square matrix goes through the rounds itself. For any other, all rounds together are one
    matrix q, as small as the smaller of xxᵀ and xᵀx: a polynomial in that, and the next round's is
    p xxᵀ p. So x, which may be much longer one way than the other, is needed only twice.
    """
    I, O = g.shape
    x = g / ((g * g).sum() ** 0.5 + 1e-7)
    if I == O:
        for _ in range(steps):
            x = _quintic(x @ x.T) @ x
        return x
    gram = x @ x.T if I < O else x.T @ x
    p = q = _quintic(gram)
    for _ in range(steps - 1):
        gram = p @ gram @ p
        p = _quintic(gram)
        q = p @ q
    return q @ x if I < O else x @ q


def _quintic(gram, a=3.4445, b=-4.7750, c=2.0315):
    """gram (n, n) -> a + b gram + c gram²."""
    p = b * gram + c * (gram @ gram)
    p += a * array_module(gram).eye(len(gram), dtype=gram.dtype)
    return p
