"""Attention in tiles: the function of attention.py without its Tq × Tk scores in memory
(FlashAttention: Dao et al. 2022, arXiv:2205.14135, and Dao 2023, arXiv:2307.08691).

A softmax needs the largest score and the sum of all exponentials. Both can be computed while the
keys are read, a tile at a time. When a larger score is found, the sums so far are scaled down. With
total = 0, part = 0 and m below all scores before the first tile of keys, for each tile

    scores = q @ k.T / √D                      -inf where a key is hidden
    top    = max(m, max(scores))
    w      = exp(scores - top)
    shrink = exp(m - top)
    total  = total * shrink + sum(w)
    part   = part * shrink + dropout(w) @ v
    m      = top

and after the last one y = part / total. With one number for each query, lse = m + log(total), the
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

from npgpt.backend import array_module, device_of, slices
from npgpt.layers.dropout import keep_tile
from npgpt.layers.rows import row_max, row_sum


def tiled_attention_forward(q, k, v, mask=None, p=0.0, key=None, causal=False, tile=None):
    """q (B, H, Tq, D), k and v (B, G, Tk, D) -> y (B, H, Tq, D), as attention_forward.

    tile: the number of queries, and of keys, in a tile; None: as many as stay in the cache.
    """
    xp, tiles = array_module(q), Tiles(q, k, mask, p, key, causal, tile)
    q, k, v = tiles.grouped(q), k[:, :, None], v[:, :, None]     # (B, G, H/G or 1, T, D)
    B, *heads, Tq, _ = q.shape
    y = xp.zeros((B, Tq, *heads, v.shape[-1]), q.dtype)          # in memory as heads are merged
    y = y.transpose(0, 2, 3, 1, 4)
    lse = xp.zeros((*q.shape[:-1], 1), q.dtype)
    for rows in tiles.of_queries():
        scaled = q[rows] * tiles.scale
        m = xp.full(lse[rows].shape, xp.finfo(q.dtype).min)      # below all scores
        total = part = 0
        for columns in tiles.of_keys(rows):
            scores = tiles.scores(scaled, k, rows, columns)      # (b, G, H/G, n, t)
            top = xp.maximum(m, row_max(scores.real))
            scores -= top
            w = xp.exp(scores, out=scores)                       # in the memory of scores
            shrink = xp.exp(m - top)
            total = total * shrink + row_sum(w)
            kept = tiles.kept(rows, columns)
            part = part * shrink + tiles.dropout(w, kept) @ v[columns]
            m = top
        total += total == 0                                      # where no key is seen
        y[rows] = part / total
        lse[rows] = m + xp.log(total)
    return tiles.ungrouped(y), (q, k, v, y, lse, tiles)


def tiled_attention_backward(dy, cache):
    """dy (B, H, Tq, D) -> dq (B, H, Tq, D), dk and dv (B, G, Tk, D)."""
    q, k, v, y, lse, tiles = cache
    xp, dy = array_module(dy), tiles.grouped(dy)
    dq, dk, dv = xp.zeros(q.shape, q.dtype), xp.zeros(k.shape, k.dtype), xp.zeros(v.shape, v.dtype)
    for rows in tiles.of_queries():
        scaled, part = q[rows] * tiles.scale, 0
        mean = row_sum(dy[rows] * y[rows])                       # of datt, under the weights att
        for columns in tiles.of_keys(rows):
            scores = tiles.scores(scaled, k, rows, columns)
            scores -= lse[rows]
            att = xp.exp(scores, out=scores)
            kept = tiles.kept(rows, columns)
            dv_part = tiles.dropout(att, kept).swapaxes(-1, -2) @ dy[rows]     # (b, G, H/G, t, D)
            dv[columns] += dv_part.sum(2, keepdims=True)         # the heads that share a key
            dscores = tiles.dropout(dy[rows] @ v[columns].swapaxes(-1, -2), kept)
            dscores -= mean
            dscores *= att
            part = part + dscores @ k[columns]
            dk[columns] += (dscores.swapaxes(-1, -2) @ scaled).sum(2, keepdims=True)
        dq[rows] = part * tiles.scale
    return tiles.ungrouped(dq), dk[:, :, 0], dv[:, :, 0]


class Tiles:
    """The tiles of an attention. `rows` and `columns` are the index of a tile's queries in q, y and
    lse, and that of its keys in k and v. The H/G heads that share a key have an axis of their own.
    """

    def __init__(self, q, k, mask, p, key, causal, size):
        (B, H, Tq, D), (G, Tk) = q.shape, k.shape[1:3]
        self.xp, self.scale = array_module(q), 1 / math.sqrt(D)
        self.shape, self.groups = (B, H, Tq, Tk), (B, G, H // G)
        self.p, self.key, self.causal, self.mask = p, key, causal, mask
        if mask is not None:
            self.mask = self.xp.broadcast_to(mask, self.shape).reshape(*self.groups, Tq, Tk)
        self.b, self.n, self.t = tile_shape(device_of(q).tile // H, Tq, Tk, size)

    def grouped(self, x):
        """(B, H, T, D) -> (B, G, H/G, T, D)."""
        return x.reshape(*self.groups, *x.shape[2:])

    def ungrouped(self, x):
        """(B, G, H/G, T, D) -> (B, H, T, D)."""
        return x.reshape(*self.shape[:2], *x.shape[3:])

    def of_queries(self):
        """Yield the index of each tile of queries."""
        B, _, Tq, _ = self.shape
        for batch in slices(0, B, self.b):
            for i in slices(0, Tq, self.n):
                yield batch, slice(None), slice(None), i

    def of_keys(self, rows):
        """Yield the index of each tile of keys that some of these queries may see."""
        *axes, i = rows
        _, _, Tq, Tk = self.shape
        for j in slices(0, Tk - Tq + i.stop if self.causal else Tk, self.t):
            yield *axes, j

    def scores(self, scaled, k, rows, columns):
        """-> (b, G, H/G, n, t), -inf where a key is hidden. scaled: the tile's queries / √D."""
        xp, i, j = self.xp, rows[-1], columns[-1]
        before = self.shape[3] - self.shape[2]       # query i sees key before + i, its own position
        scores = scaled @ k[columns].swapaxes(-1, -2)
        if self.mask is not None:
            xp.copyto(scores, -math.inf, where=~self.mask[(*rows, j)])
        if self.causal and j.stop > before + i.start + 1:        # the tile is on the diagonal
            position = xp.arange(before + i.start, before + i.stop)[:, None]
            xp.copyto(scores, -math.inf, where=xp.arange(j.start, j.stop) > position)
        return scores

    def kept(self, rows, columns):
        """-> (b, G, H/G, n, t) bool: which weights dropout keeps. None: all."""
        if self.key is None or self.p == 0:
            return None
        tile = rows[0], slice(0, self.shape[1]), rows[-1], columns[-1]
        kept = keep_tile(self.xp, self.key, self.p, self.shape, tile)
        return kept.reshape(-1, *self.groups[1:], *kept.shape[2:])

    def dropout(self, x, kept):
        """x (b, G, H/G, n, t) -> its dropout, and of a gradient the backward of dropout."""
        return x if kept is None else x * (1 / (1 - self.p)) * kept


def tile_shape(room, Tq, Tk, size):
    """-> the numbers of sequences, queries and keys in a tile. room: of the scores of a head; size:
    of queries and of keys, None: as many as there is room for."""
    side = size or 1 << room.bit_length() // 2
    n = max(1, min(Tq, side))
    t = max(1, min(Tk, size or side * side // n))
    return max(1, room // (n * t)), n, t
