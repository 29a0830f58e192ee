"""The random numbers of PyTorch's CPU generator, in NumPy alone.

`TorchRandom(1337)` draws the numbers that PyTorch draws after `torch.manual_seed(1337)`, float32
and int64, so the lecture can be reproduced without PyTorch. Both NumPy and PyTorch use the Mersenne
Twister (Matsumoto and Nishimura 1998) and seed it in the same way. They differ in how they convert
its 32-bit words to numbers. PyTorch's rules, and their files under aten/src/ATen:

    word               the next 32 bits of the Twister            core/MT19937RNGEngine.h
    words              first << 32 | second                       CPUGeneratorImpl.cpp
    u  (24 bits)       (word & 2²⁴ - 1) / 2²⁴                     core/TransformationHelper.h
    U  (53 bits)       (words & 2⁵³ - 1) / 2⁵³

    randint            word % high; from 2²⁸ on PyTorch uses words        core/Distributions-
    rand               u                                                    Helper.h
    uniform            u * (high - low) + low, rounded once
    exponential        -log1p(-U), in float64

    randn              r * cos(θ) and r * sin(θ)                  native/cpu/DistributionTemplates.h
      16 or more         r = √(-2 log(1 - u)), θ = 2π u', in blocks: 8 u, 8 u'; 8 cos, 8 sin.
                         If n is no multiple of 16, the last 16 are drawn again.
      fewer              r = √(-2 log1p(-U')), θ = 2π U, one pair after another. An unused sine is
                         kept for the next call of this kind.

    multinomial        argmax(probs / exponential)                native/Distributions.cpp

The results equal PyTorch's bit for bit, checked against PyTorch 2.13 on x86-64 with AVX2 and
AVX-512. `exponential`, `multinomial` and `randn` of fewer than 16 use the logarithms, sines and
cosines of the C library, as PyTorch does; NumPy's sometimes differ in the last bit. On other
processors PyTorch computes `randn` of 16 or more with other logarithms, sines and cosines, and the
last bits differ. Older versions of PyTorch use words for `randint` only from 2³² on. `randint`
rejects any `high` of 2²⁸ or more, for which the versions may differ.
"""

import math

import numpy as np

from npgpt.lecture import cephes

FLOAT = np.float32
RANDINT_LIMIT = 2**28


class TorchRandom:
    """PyTorch's stream of random numbers after torch.manual_seed(seed). Each call continues where
    the last one ended. A shape is a tuple."""

    def __init__(self, seed):
        """seed: an integer, of which the lowest 32 bits are used, as in PyTorch."""
        self._twister = np.random.RandomState(seed % 2**32)
        self._sine = None                             # unused, from the last pair of normal numbers

    def randint(self, high, shape):
        """-> shape, int64 in 0..high-1. Raises ValueError unless 1 <= high < 2**28."""
        if not 1 <= high < RANDINT_LIMIT:
            raise ValueError(f"high must be at least 1 and less than 2**28, got {high}")
        return (self._words(math.prod(shape)) % np.uint32(high)).astype(np.int64).reshape(shape)

    def rand(self, shape):
        """-> shape, uniform in [0, 1)."""
        bits = self._words(math.prod(shape)) & np.uint32(2**24 - 1)
        return (bits.astype(FLOAT) / FLOAT(2**24)).reshape(shape)

    def uniform(self, low, high, shape):
        """-> shape, uniform between low and high: torch.empty(shape).uniform_(low, high)."""
        low, width = FLOAT(low), FLOAT(high) - FLOAT(low)
        fused = self.rand(shape).astype(np.float64) * width + low     # PyTorch rounds once
        return fused.astype(FLOAT)

    def exponential(self, shape, dtype=FLOAT):
        """-> shape, with mean 1: torch.empty(shape, dtype=dtype).exponential_()."""
        return np.array([-math.log1p(-u) for u in self._rand53(math.prod(shape)).tolist()],
                        dtype).reshape(shape)

    def randn(self, shape):
        """-> shape, normal with mean 0 and standard deviation 1."""
        n = math.prod(shape)
        if n < 16:
            return np.array([self._next_normal() for _ in range(n)], FLOAT).reshape(shape)
        u = self.rand((n,))
        whole = n // 16 * 16
        u[:whole] = _normal_blocks(u[:whole])
        if whole < n:
            u[-16:] = _normal_blocks(self.rand((16,)))
        return u.reshape(shape)

    def multinomial(self, probs):
        """probs (N, V), float32 or float64 -> (N,) int64, one draw from each row, as from
        torch.multinomial(probs, 1). A row need not sum to 1."""
        return (probs / self.exponential(probs.shape, probs.dtype)).argmax(-1)

    def linear(self, n_in, n_out, bias=True):
        """The initial values of nn.Linear(n_in, n_out) -> w (n_in, n_out), b (n_out,) or None.
        PyTorch draws and stores w transposed, from a uniform distribution (He et al. 2015)."""
        bound = 1 / math.sqrt(n_in)
        w = self.uniform(-bound, bound, (n_out, n_in)).T
        return w, self.uniform(-bound, bound, (n_out,)) if bias else None

    def embedding(self, n_rows, n_channels):
        """The initial values of nn.Embedding(n_rows, n_channels) -> w (n_rows, n_channels)."""
        return self.randn((n_rows, n_channels))

    def _words(self, n):
        """-> (n,) uint32, the next words of the Twister."""
        return self._twister.randint(2**32, size=n, dtype=np.uint32)

    def _rand53(self, n):
        """-> (n,) float64 in [0, 1), each from two words."""
        first, second = self._words(2 * n).astype(np.uint64).reshape(n, 2).T
        return ((first << 32 | second) & (2**53 - 1)) / 2**53

    def _next_normal(self):
        """-> one normal number, as PyTorch draws fewer than 16."""
        if self._sine is not None:
            sine, self._sine = self._sine, None
            return sine
        turn, u = self._rand53(2).tolist()
        r = math.sqrt(-2 * math.log1p(-u))
        self._sine = r * math.sin(2 * math.pi * turn)
        return r * math.cos(2 * math.pi * turn)


def _normal_blocks(u):
    """u (n,) uniform in [0, 1), n a multiple of 16 -> (n,) normal (Box and Muller 1958)."""
    u, turn = u.reshape(-1, 2, 8).swapaxes(0, 1)                     # (n / 16, 8) each
    r = np.sqrt(-2 * cephes.log(1 - u))
    sin, cos = cephes.sincos(FLOAT(2 * np.pi) * turn)
    return np.stack([r * cos, r * sin], 1).reshape(-1)
