"""Dropout (Srivastava et al. 2014): each element is kept with probability 1 - p, else set to 0.

    y  = x * kept / (1 - p)          kept is 1 or 0 for each element
    dx = dy * kept / (1 - p)

Dividing by 1 - p leaves the mean as it was, so evaluation simply leaves dropout out: `key=None`.

Which elements are kept is no stream of random numbers but a function of where the element stands:
a hash of the key (seed, step, site), the row in the whole batch, and the element in the row. So the
same mask comes out on every device, and for any division of the batch into parts. The hash is
Wellons' lowbias32 (https://nullprogram.com/blog/2018/07/31/), with a second word of the key added
half-way so that no row's bits are another row's bits moved along.
"""

import math
from typing import NamedTuple

import numpy as np

from npgpt.backend import array_module

WORD = 2**32


class Key(NamedTuple):
    """What a mask is a function of. An immutable value: use it twice, get the same mask."""

    seed: int                       # 0 .. 2**64 - 1
    step: int                       # of training, 0 .. 2**32 - 1
    row: int = 0                    # index in the whole batch of the first row seen here
    site: tuple[int, ...] = ()      # the place in the model

    def at(self, place):
        """The key for a place within this one, as key.at(4).at(1) for the MLP of block 3."""
        return self._replace(site=(*self.site, place))


def dropout_forward(x, p, key):
    """x (B, ...), p in [0, 1), key or None -> y (B, ...); with nothing to drop, y is x itself."""
    if key is None or p == 0:
        return x, None
    kept = keep_mask(array_module(x), key, p, x.shape)
    scale = 1 / (1 - p)
    y = x * scale
    y *= kept
    return y, (kept, scale)


def dropout_backward(dy, cache):
    """dy (B, ...) -> dx (B, ...)."""
    if cache is None:
        return dy
    kept, scale = cache         # a byte an element, and cheaper to keep than to hash again
    dx = dy * scale
    dx *= kept
    return dx


def keep_mask(xp, key, p, shape):
    """-> bool array of the shape (B, ...), False with probability p."""
    first, second = _hash_words((key.seed % WORD, key.seed // WORD, key.step, *key.site))
    rows = xp.arange(key.row, key.row + shape[0], dtype=xp.uint32)[:, None]    # (B, 1)
    bits = xp.arange(math.prod(shape[1:]), dtype=xp.uint32)                    # (E,)
    bits = _scramble(bits ^ _scramble(rows ^ first), _scramble(rows ^ second))    # (B, E)
    return (bits >= min(round(p * WORD), WORD - 1)).reshape(shape)


def _hash_words(words):
    """Integers below 2**32 -> two such, as Python ints."""
    state = np.array([0x9E3779B9, 0x85EBCA6B], dtype=np.uint32)
    for word in words:
        state = _scramble(state ^ word)
    return state.tolist()


def _scramble(z, salt=0):
    """uint32 array, changed in place -> the same array, each bit of it spread over all bits."""
    z ^= z >> 16
    z *= 0x7FEB352D
    z += salt
    z ^= z >> 15
    z *= 0x846CA68B
    z ^= z >> 16
    return z
