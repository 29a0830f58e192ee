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
                 comm=None):
        """comm: as for Optimizer."""
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.weight_decay = weight_decay
        super().__init__(params, slice(start, params.n_trainable), comm)
        self.m, self.v = self._zeros(), self._zeros()

    @property
    def state(self):
        """name -> array."""
        return {"adamw.m": self.m, "adamw.v": self.v}

    def _slices(self, rank, size, ranges):
        """Of each range a part of the same length for every rank, split where weight decay ends."""
        found = []
        for start, stop in ((max(r.start, self.part.start), min(r.stop, self.part.stop))
                            for r in ranges):
            first, last = (start + max(stop - start, 0) * r // size for r in (rank, rank + 1))
            border = min(max(self.params.n_decayed, first), last)
            found += [slice(first, border), slice(border, last)]
        return [part for part in found if part.start < part.stop]

    def _update(self, grads, lr, scale):
        xp, dtype = self.device.xp, self.params.flat.dtype
        lr = xp.where(scale == 0, 0.0, lr).astype(dtype)
        scale = scale.astype(dtype)
        m_correction, v_correction = 1 - self.beta1**self.t, 1 - self.beta2**self.t
        for whole in self.shard:
            decay = self.weight_decay if whole.stop <= self.params.n_decayed else 0.0
            at = self._in_state[whole.start].start - whole.start
            for part in self.device.slices(whole.start, whole.stop):
                own = slice(part.start + at, part.stop + at)
                w, m, v = self.params.flat[part], self.m[own], self.v[own]
                g = self._scaled(grads[part], scale)
                change = g - m
                change *= 1 - self.beta1
                m += change
                g *= g
                g -= v
                g *= 1 - self.beta2
                v += g
                # m / m_correction / (√(v / v_correction) + ε), with the scalars combined
                update = xp.sqrt(v, out=g)             # in the memory of g
                update += self.epsilon * math.sqrt(v_correction)
                xp.divide(m, update, out=update)
                update *= lr * (math.sqrt(v_correction) / m_correction)
                w *= 1 - lr * decay
                w -= update
