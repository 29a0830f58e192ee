"""Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    m  = β1 m + (1 - β1) g                 first moment: running mean of the gradients
    v  = β2 v + (1 - β2) g²                second moment: running mean of their squares
    w -= lr * (weight_decay * w  +  m/(1 - β1ᵗ) / (√(v/(1 - β2ᵗ)) + ε))

Matrices and embeddings decay; biases and norms do not. After t steps the weights in m and v sum to
1 - β1ᵗ and 1 - β2ᵗ: dividing by these is the bias correction.
"""

import math

from npgpt.optim.optimizer import Optimizer


class AdamW(Optimizer):
    """AdamW for the buffer from `start` on; another optimiser updates the part before it."""

    def __init__(self, params, beta1=0.9, beta2=0.99, weight_decay=0.1, epsilon=1e-8, start=0,
                 share=lambda array: array):
        """share: puts an array into memory that all ranks share, as Communicator.share does."""
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.weight_decay = weight_decay
        self.start = start
        super().__init__(params)
        n = params.n_trainable - start
        self.m, self.v = (share(self.device.xp.zeros(n, params.flat.dtype)) for _ in range(2))

    @property
    def state(self):
        """name -> array."""
        return {"adamw.m": self.m, "adamw.v": self.v}

    def _slices(self, rank, size):
        """A range of the same length for every rank, split where weight decay ends."""
        n = self.params.n_trainable - self.start
        first, last = (self.start + n * r // size for r in (rank, rank + 1))
        border = min(max(self.params.n_decayed, first), last)
        return [slice(first, border), slice(border, last)]

    def _update(self, grads, lr, scale):
        xp, dtype = self.device.xp, self.params.flat.dtype
        nonfinite = scale == 0
        lr = xp.where(nonfinite, 0.0, lr).astype(dtype)
        scale = scale.astype(dtype)
        m_correction, v_correction = 1 - self.beta1**self.t, 1 - self.beta2**self.t
        for whole in self.shard:
            decay = self.weight_decay if whole.stop <= self.params.n_decayed else 0.0
            for part in self.device.slices(whole.start, whole.stop):
                own = slice(part.start - self.start, part.stop - self.start)
                w, m, v = self.params.flat[part], self.m[own], self.v[own]
                g = grads[part] * scale
                xp.copyto(g, 0, where=nonfinite)       # inf * 0 is NaN
                m += (g - m) * (1 - self.beta1)
                g *= g
                v += (g - v) * (1 - self.beta2)
                # m / m_correction / (√(v / v_correction) + ε), with the scalars combined
                update = xp.sqrt(v)
                update += self.epsilon * math.sqrt(v_correction)
                xp.divide(m, update, out=update)
                update *= lr * (math.sqrt(v_correction) / m_correction)
                w *= 1 - lr * decay
                w -= update
