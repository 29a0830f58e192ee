"""Attention in tiles: the function of attention.py without its Tq × Tk scores in memory
(FlashAttention: Dao et al. 2022, arXiv:2205.14135, and Dao 2023, arXiv:2307.08691).

A softmax needs the largest score and the sum of all exponentials. Both can be computed while the
keys are read, a tile at a time. When a larger score is found, the sums so far are scaled down. With
m = -inf, total = 0 and y = 0 before the first tile of keys, for each tile

    scores = q @ k.T / √D                      -inf where a key is hidden
    top    = max(m, max(scores))
    w      = exp(scores - top)
    shrink = exp(m - top)
    total  = total * shrink + sum(w)
    y      = y * shrink + dropout(w) @ v
    m      = top

and after the last one y = y / total. With one number for each query, lse = m + log(total), the
weights of any tile can be computed again. The backward does so, and keeps no weights in memory:

    att     = exp(scores - lse)                = exp(scores - m) / total
    dv      = sum of dropout(att).T @ dy       over the tiles of queries
    dscores = att * (dropout(dy @ v.T) - sum(dy * y))
    dq      = sum of dscores @ k / √D          over the tiles of keys
    dk      = sum of dscores.T @ q / √D        over the tiles of queries

The gradients of a query need the sum over all keys of datt * att before the last tile is known.
It is sum(dy * y), as derived in attention.py.

A tile stays in the cache of a processor. If attention is causal, the tiles above the diagonal are
left out, almost half of them. Dropout hashes the position of each weight, so that its mask does not
depend on the tiles.
"""

import math

from npgpt.backend import array_module, device_of
from npgpt.layers.dropout import keep_tile


def tiled_attention_forward(q, k, v, mask=None, p=0.0, key=None, causal=False, tile=None):
    """q (B, H, Tq, D), k and v (B, G, Tk, D) -> y (B, H, Tq, D), as attention_forward.

    tile: the number of queries, and of keys, in a tile; None: as many as stay in the cache.
    """
    xp, tiles = array_module(q), Tiles(q, k, mask, p, key, causal, tile)
    q, k, v = tiles.grouped(q), k[:, :, None], v[:, :, None]     # (B, G, H/G or 1, T, D)
    y = xp.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    lse = xp.empty((*q.shape[:-1], 1), q.dtype)
    for rows in tiles.of_queries():
        m = xp.full(lse[rows].shape, xp.finfo(q.dtype).min, q.real.dtype)      # below all scores
        total, part = xp.zeros_like(lse[rows]), xp.zeros_like(y[rows])
        for columns in tiles.of_keys(rows):
            w = tiles.scores(q, k, rows, columns)
            top = xp.maximum(m, w.real.max(-1, keepdims=True))
            w -= top
            w = xp.exp(w, out=w)
            shrink = xp.exp(m - top)
            total = total * shrink + w.sum(-1, keepdims=True)
            part = part * shrink + tiles.dropout(rows, columns)(w) @ v[columns]
            m = top
        total += total == 0                                      # where no key is seen
        y[rows] = part / total
        lse[rows] = m + xp.log(total)
    return tiles.ungrouped(y), (q, k, v, y, lse, tiles)


def tiled_attention_backward(dy, cache):
    """dy (B, H, Tq, D) -> dq (B, H, Tq, D), dk and dv (B, G, Tk, D)."""
    q, k, v, y, lse, tiles = cache
    xp, dy = array_module(dy), tiles.grouped(dy)
    dq, dk, dv = (xp.zeros(x.shape, x.dtype) for x in (q, k, v))
    for rows in tiles.of_queries():
        mean = (dy[rows] * y[rows]).sum(-1, keepdims=True)
        for columns in tiles.of_keys(rows):
            att = tiles.scores(q, k, rows, columns)
            att -= lse[rows]
            att = xp.exp(att, out=att)
            dropout = tiles.dropout(rows, columns)
            dv[columns] += (dropout(att).swapaxes(-1, -2) @ dy[rows]).sum(2, keepdims=True)
            dscores = dropout(dy[rows] @ v[columns].swapaxes(-1, -2))
            dscores -= mean
            dscores *= att
            dscores *= tiles.scale
            dq[rows] += dscores @ k[columns]
            dk[columns] += (dscores.swapaxes(-1, -2) @ q[rows]).sum(2, keepdims=True)
    return tiles.ungrouped(dq), dk[:, :, 0], dv[:, :, 0]


class Tiles:
    """The tiles of an attention. The H/G heads that share a key have an axis of their own. `rows`
    and `columns` are indices of q and y and of k and v, for the queries and the keys of a tile."""

    def __init__(self, q, k, mask, p, key, causal, size):
        (B, H, Tq, D), (G, Tk) = q.shape, k.shape[1:3]
        self.xp, self.scale = array_module(q), 1 / math.sqrt(D)
        self.shape, self.groups = (B, H, Tq, Tk), (B, G, H // G)
        self.mask = mask
        if mask is not None:
            self.mask = self.xp.broadcast_to(mask, self.shape).reshape(*self.groups, Tq, Tk)
        self.p, self.key, self.causal = p, key, causal
        room = device_of(q).tile // H             # scores of a head and a sequence that fit
        side = size or 1 << max(room.bit_length() // 2, 1)
        self.n = min(Tq, side)
        self.t = size or side * side // max(self.n, 1)
        self.b = max(1, room // max(self.n * self.t, 1))

    def grouped(self, x):
        """(B, H, T, D) -> (B, G, H/G, T, D)."""
        return x.reshape(*self.groups, *x.shape[2:])

    def ungrouped(self, x):
        """(B, G, H/G, T, D) -> (B, H, T, D)."""
        return x.reshape(*self.shape[:2], *x.shape[3:])

    def of_queries(self):
        """Yield the index of each tile of queries."""
        B, _, Tq, _ = self.shape
        for batch in slices(B, self.b):
            for rows in slices(Tq, self.n):
                yield batch, slice(None), slice(None), rows

    def of_keys(self, rows):
        """Yield the index of each tile of keys that these queries may see."""
        _, _, Tq, Tk = self.shape
        seen = Tk - Tq + rows[-1].stop if self.causal else Tk
        for columns in slices(seen, self.t):
            yield *rows[:-1], columns

    def scores(self, q, k, rows, columns):
        """-> (b, G, H/G, n, t), -inf where a key is hidden."""
        _, _, Tq, Tk = self.shape
        i, j = rows[-1], columns[-1]
        scores = (q[rows] * self.scale) @ k[columns].swapaxes(-1, -2)
        if self.mask is not None:
            self.xp.copyto(scores, -math.inf, where=~self.mask[(*rows, j)])
        if self.causal and j.stop - 1 > Tk - Tq + i.start:
            position = self.xp.arange(Tk - Tq + i.start, Tk - Tq + i.stop)[:, None]
            self.xp.copyto(scores, -math.inf, where=self.xp.arange(j.start, j.stop) > position)
        return scores

    def dropout(self, rows, columns):
        """-> a function of the weights of a tile: dropout, and its backward."""
        if self.key is None or self.p == 0:
            return lambda x: x
        batch, i, j = rows[0], rows[-1], columns[-1]
        tile = batch, slice(0, self.shape[1]), i, j
        kept = keep_tile(self.xp, self.key, self.p, self.shape, tile)
        scale = 1 / (1 - self.p)
        return lambda x: x * scale * kept.reshape(x.shape)


def slices(stop, length):
    """-> slices of at most this length that cover range(stop)."""
    return [slice(at, min(at + length, stop)) for at in range(0, stop, max(length, 1))]
