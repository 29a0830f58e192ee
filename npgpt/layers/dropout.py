"""Dropout (Srivastava et al. 2014): an element is kept with probability 1 - p, else set to 0.

    y  = x * kept / (1 - p)          kept is 1 or 0 for each element
    dx = dy * kept / (1 - p)

Dividing by 1 - p keeps the expected value, so evaluation simply skips dropout: `key=None`.

The mask does not come from a stream of random numbers. Each element is kept or dropped by a hash of
the key (seed, step, site), the row in the whole batch, and the position in the row. So the mask is
the same on every device and for any division of the batch into parts. The hash is Wellons'
lowbias32 (https://nullprogram.com/blog/2018/07/31/). A second word of the key is added half-way, so
that no row has the bits of another row in a different order.
"""

import math
from typing import NamedTuple

import numpy as np

from npgpt.backend import array_module

WORD = 2**32


class Key(NamedTuple):
    """Determines a mask. Immutable: the same key always gives the same mask."""

    seed: int                       # 0 .. 2**64 - 1
    step: int                       # training step, 0 .. 2**32 - 1
    row: int = 0                    # index of the first row in the whole batch
    site: tuple[int, ...] = ()      # path of this dropout in the model

    def at(self, place):
        """The key with one more part in its site: key.at(4).at(1) for the MLP of block 3."""
        return self._replace(site=(*self.site, place))


def dropout_forward(x, p, key):
    """x (B, ...), p in [0, 1), key or None -> y (B, ...); without dropout, y is x itself."""
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
    kept, scale = cache         # one byte per element, cheaper to keep than to recompute
    dx = dy * scale
    dx *= kept
    return dx


def keep_mask(xp, key, p, shape):
    """-> bool array of the shape (B, ...), False with probability p."""
    rows = xp.arange(key.row, key.row + shape[0], dtype=xp.uint32)             # (B,)
    elements = xp.arange(math.prod(shape[1:]), dtype=xp.uint32)                # (E,)
    return _kept(key, p, rows, elements).reshape(shape)


def keep_tile(xp, key, p, shape, tile):
    """-> keep_mask(xp, key, p, shape)[tile]. tile: slices with a start and a stop, one per axis.
    Positions in a row count modulo 2**32: a longer row has its masks again and again."""
    rows, *axes = (xp.arange(part.start, part.stop, dtype=xp.uint32) for part in tile)
    elements = axes[0]                                   # positions in the row
    for axis, length in zip(axes[1:], shape[2:]):
        elements = elements[..., None] * length + axis
    kept = _kept(key, p, rows + key.row, elements.ravel())
    return kept.reshape(len(rows), *elements.shape)


def _kept(key, p, rows, elements):
    """rows (B,), elements (E,), uint32 -> (B, E) bool: which elements of these rows are kept."""
    first, second, threshold = mask_words(key, p)
    rows = rows[:, None]
    bits = _scramble(elements ^ _scramble(rows ^ first), _scramble(rows ^ second))
    return bits >= threshold


def mask_words(key, p):
    """-> the two words of a key's masks, and the threshold: an element is kept if its bits are at
    least that. All are below 2**32."""
    words = _hash_words((key.seed % WORD, key.seed // WORD, key.step, *key.site))
    return *words, min(round(p * WORD), WORD - 1)


def _hash_words(words):
    """Integers below 2**32 -> two hashes below 2**32, as Python ints."""
    state = np.array([0x9E3779B9, 0x85EBCA6B], dtype=np.uint32)
    for word in words:
        state = _scramble(state ^ word)
    return state.tolist()


def _scramble(z, salt=0):
    """z, a uint32 array -> z itself, hashed in place: each input bit affects all output bits."""
    z ^= z >> 16
    z *= 0x7FEB352D
    z += salt
    z ^= z >> 15
    z *= 0x846CA68B
    z ^= z >> 16
    return z
