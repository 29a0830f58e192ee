"""Dropout with the kernel of dropout.cu. The cache has no mask: the backward computes it again."""

from typing import NamedTuple

import numpy as np

from npgpt.kernels.launch import LANES, require_like, takes
from npgpt.layers import dropout

CHUNK = 1024     # elements of a row that one warp processes, as in dropout.cu


class Mask(NamedTuple):
    """What determines a mask, as arguments of a kernel."""

    first: np.uint32
    second: np.uint32
    row: np.uint32
    threshold: np.uint32
    scale: float

    @classmethod
    def of(cls, p, key):
        """The mask of layers.dropout; everything is kept if key is None or p is 0."""
        if key is None or p == 0:
            return cls(*(np.uint32(0),) * 4, 1.0)
        first, second, threshold = dropout.mask_words(key, p)
        return cls(*map(np.uint32, (first, second, key.row, threshold)), 1 / (1 - p))

    def arguments(self, dtype):
        """-> the arguments of a kernel for arrays of this dtype."""
        return *self[:4], dtype.type(self.scale)


def fused_dropout(xp, launch):
    """-> forward, backward. launch: from npgpt.kernels.launch. The cache contains its backward,
    which is the plain one for arrays that the kernel does not support."""

    def dropped(x, mask):
        x = xp.ascontiguousarray(x)
        y = xp.empty(x.shape, x.dtype)
        B, E = len(x), x.size // len(x)
        launch("dropout", x.dtype, B * -(-E // CHUNK) * LANES,
               x, np.int64(B), np.int64(E), *mask.arguments(x.dtype), y)
        return y

    def dropout_forward(x, p, key):
        """x (B, ...), p in [0, 1), key or None -> y (B, ...); without dropout, y is x itself."""
        if key is None or p == 0 or not takes(x):
            y, cache = dropout.dropout_forward(x, p, key)
            return y, (dropout.dropout_backward, cache)
        mask = Mask.of(p, key)
        return dropped(x, mask), (fused_backward, (x.shape, x.dtype, mask))

    def fused_backward(dy, cache):
        shape, dtype, mask = cache
        require_like(dy, shape, dtype)
        return dropped(dy, mask)

    def dropout_backward(dy, cache):
        """dy (B, ...) -> dx (B, ...)."""
        backward, cache = cache
        return backward(dy, cache)

    return dropout_forward, dropout_backward
