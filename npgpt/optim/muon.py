"""Muon: momentum, orthogonalised, for the blocks' matrices (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/).

    m  = β m + (1 - β) g
    u  = orthogonal((1 - β) g + β m)                      Nesterov momentum
    w -= lr * (weight_decay * w  +  √max(1, O/I) u)       w (I, O)

The few large singular values of a gradient belong to directions that many examples share. The small
ones are specific to a few examples, and a step along the gradient hardly changes w in their
directions. In u all directions have about the same size. Queries, keys and values are three
matrices side by side in one array, and each is orthogonalised separately.
"""

import math

from npgpt.optim.optimizer import Optimizer


class Muon(Optimizer):
    """Muon for the group of matrices."""

    def __init__(self, params, momentum=0.95, weight_decay=0.1, relative_lr=1.0, comm=None):
        """relative_lr: its learning rate, as a multiple of the one given to `step`. comm: as for
        Optimizer."""
        self.momentum, self.weight_decay = momentum, weight_decay
        self.relative_lr = relative_lr
        self._names = {s.start: name for name, s in params.slices.items()
                       if s.stop <= params.n_matrices}
        super().__init__(params, slice(0, params.n_matrices), comm)
        self.m = self._zeros()

    @property
    def state(self):
        """name -> array."""
        return {"muon.m": self.m}

    def _slices(self, rank, size, ranges):
        """Whole matrices, the largest first, each to the rank with the smallest load."""
        matrices = [self.params.slices[name] for name in self._names.values()]
        shards, loads = [[] for _ in range(size)], [0] * size
        for matrix in sorted(matrices, key=lambda s: s.start - s.stop):
            least = loads.index(min(loads))
            shards[least].append(matrix)
            loads[least] += matrix.stop - matrix.start
        return shards[rank]

    def _update(self, grads, lr, scale):
        xp, dtype = self.device.xp, self.params.flat.dtype
        lr = xp.where(scale == 0, 0.0, lr * self.relative_lr).astype(dtype)
        scale = scale.astype(dtype)
        for whole in self.shard:
            name = self._names[whole.start]
            w, param = self.params[name], self.params.architecture[name]
            m = self.m[self._in_state[whole.start]].reshape(param.shape)
            g = self._scaled(grads[whole].reshape(param.shape), scale)
            m += (g - m) * (1 - self.momentum)
            g += (m - g) * self.momentum
            start = 0
            for width in param.widths:
                part = slice(start, start + width)
                update = orthogonal(g[:, part])
                update *= math.sqrt(max(1.0, width / param.shape[0]))
                update += self.weight_decay * w[:, part]
                update *= lr
                w[:, part] -= update
                start += width


def orthogonal(g, steps=5):
    """g (I, O) -> the same singular vectors with every singular value close to 1.

    x ↦ p x with p = a + b xxᵀ + c (xxᵀ)² maps each singular value s to as + bs³ + cs⁵ and keeps the
    singular vectors. With these coefficients five iterations map all values from 0.01 to 1 to
    between 0.7 and 1.2, which is close enough. Dividing a matrix by its Frobenius norm makes all
    its singular values at most 1.

    A square matrix is iterated itself. For other shapes, the iterations work on the smaller of xxᵀ
    and xᵀx, which each of them maps to p xxᵀ p; q is the product of all p. So x, which may have one
    side much longer than the other, is used only twice. The price is accuracy: rounding errors in
    xxᵀ grow up to a² = 12 times in each iteration. In float32 they reach 5e-3 of the result's norm
    if g is ill-conditioned; for a square matrix they stay below 1e-4.
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
    p = gram @ gram
    p *= c
    p += b * gram
    p.reshape(-1)[::len(p) + 1] += a        # the diagonal
    return p
