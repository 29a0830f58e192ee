"""Bugs of the layers that compute their result in parts."""

import numpy as np

from npgpt.backend import slices
from npgpt.layers import (
    attention_forward,
    causal_mask,
    cross_entropy_forward,
    linear_cross_entropy_forward,
    linear_forward,
    tiled_attention_forward,
)
from npgpt.layers import linear_cross_entropy as linear_cross_entropy_layer
from npgpt.layers import tiled_attention as tiled_attention_layer
from tests.gallery.bug import Bug
from tests.gallery.layers import normal

BUGS = []


# --- attention in tiles ---------------------------------------------------------------------------

def heads(Tq, Tk):
    """-> q, k, v."""
    return [normal(1, 2, T, 4, seed=seed) for seed, T in enumerate((Tq, Tk, Tk))]


def keys_in_tiles(q, k, v, mask, tile):
    return tiled_attention_forward(q, k, v, mask, tile=tile)[0]


def zero_for_no_maximum(q, k, v, mask, tile):
    m, total, y = -np.inf, 0, 0
    for columns in slices(0, k.shape[2], tile):
        scores = q @ k[:, :, columns].swapaxes(-1, -2) / q.shape[-1] ** 0.5
        scores = np.where(mask[:, columns], scores, -np.inf)
        top = np.maximum(m, scores.max(-1, keepdims=True))
        top = np.where(top == -np.inf, 0.0, top)
        w, shrink = np.exp(scores - top), np.exp(m - top)
        total = total * shrink + w.sum(-1, keepdims=True)
        y = y * shrink + w @ v[:, :, columns]
        m = top
    return y / np.where(total == 0, 1, total)


def scores_after_a_hidden_tile(attend, size):
    q, k, v = heads(5, 6)
    q, k = size * np.abs(q), -np.abs(k)                      # all scores are below 0
    mask = np.broadcast_to(np.arange(6) >= 2, (5, 6))        # as a padded sequence
    np.testing.assert_allclose(attend(q, k, v, mask, 2), attention_forward(q, k, v, mask)[0])


def large_scores_after_a_hidden_tile(attend):
    """scores far below 0, after a tile whose keys are all hidden."""
    scores_after_a_hidden_tile(attend, 1e4)


def small_scores_after_a_hidden_tile(attend):
    """the same at scores of the size that random numbers give."""
    scores_after_a_hidden_tile(attend, 1.0)


BUGS.append(Bug(
    "A tile without any key sets the maximum to 0",
    "Where every key of a tile is hidden, the largest score is −inf, and −inf − (−inf) is NaN. So "
    "the code replaces such a maximum by 0, and keeps it: for all later tiles the maximum is at "
    "least 0. If the true scores are far below 0, as in a model with large activations, every "
    "exponential underflows, and the head returns zeros. Starting from the smallest number of the "
    "dtype needs no replacement.",
    right="m = xp.full(lse[rows].shape, xp.finfo(q.dtype).min)",
    wrong="top = np.where(top == -np.inf, 0.0, top)",
    correct=keys_in_tiles, broken=zero_for_no_maximum, source=tiled_attention_layer,
    check=large_scores_after_a_hidden_tile, blind=small_scores_after_a_hidden_tile,
))


def causal_in_tiles(q, k, v, tile):
    return tiled_attention_forward(q, k, v, causal=True, tile=tile)[0]


def tiles_until_the_query(q, k, v, tile):
    Tq, Tk = q.shape[2], k.shape[2]
    y = np.zeros(q.shape)
    for i in slices(0, Tq, tile):
        stop = min(i.stop, Tk)
        mask = causal_mask(np, Tq, Tk)[i, :stop]
        y[:, :, i] = attention_forward(q[:, :, i], k[:, :, :stop], v[:, :, :stop], mask)[0]
    return y


def queries_after_a_cache(attend):
    """three queries after four earlier keys, as in generation with a cache."""
    arrays = heads(3, 7)
    np.testing.assert_allclose(attend(*arrays, 2), attention_forward(*arrays, causal=True)[0])


def as_many_queries_as_keys(attend):
    """as many queries as keys, as in training."""
    arrays = heads(7, 7)
    np.testing.assert_allclose(attend(*arrays, 2), attention_forward(*arrays, causal=True)[0])


BUGS.append(Bug(
    "Tiles are left out as if the keys began with the queries",
    "With causal attention the tiles above the diagonal are left out. The last key that query i "
    "sees is i only if there are as many queries as keys. With a cache of earlier keys it is "
    "Tk − Tq + i, and without that offset the newest keys are never read. In training both are "
    "the same.",
    right="for j in slices(0, Tk - Tq + i.stop if self.causal else Tk, self.t):",
    wrong="stop = min(i.stop, Tk)",
    correct=causal_in_tiles, broken=tiles_until_the_query, source=tiled_attention_layer,
    check=queries_after_a_cache, blind=as_many_queries_as_keys,
))


# --- the head and the loss in parts ---------------------------------------------------------------

def loss_in_parts(x, w, b, targets, tokens):
    return linear_cross_entropy_forward(x, w, b, targets, tokens=tokens)[0]


def sum_of_means(x, w, b, targets, tokens):
    loss = 0
    for part in slices(0, len(x), tokens):
        logits, _ = linear_forward(x[part], w, b)
        loss = loss + cross_entropy_forward(logits, targets[part])[0]
    return loss


def loss_is_that_of_the_whole(loss_of, tokens):
    x, w, b = normal(7, 4), normal(4, 5, seed=1), normal(5, seed=2)
    targets = np.array([0, -1, 4, 2, -1, 1, 3])
    expected, _ = cross_entropy_forward(linear_forward(x, w, b)[0], targets)
    np.testing.assert_allclose(loss_of(x, w, b, targets, tokens), expected)


def parts_of_a_batch(loss_of):
    """a batch of several parts, against the two layers on the whole batch."""
    loss_is_that_of_the_whole(loss_of, 3)


def batch_of_one_part(loss_of):
    """a batch that is smaller than a part, as batches in tests are."""
    loss_is_that_of_the_whole(loss_of, 100)


BUGS.append(Bug(
    "The means of the parts are added",
    "The loss is computed for some tokens at a time, each time as a mean, and the means are "
    "added. Loss and gradients are too large by the number of parts, which changes with the "
    "length of a sequence, and a part with few targets counts as much as a full one. Each part "
    "must be divided by the number of targets in the whole batch.",
    right="loss = loss + losses_in_place(logits, targets[part], valid[part] / count)",
    wrong="loss = loss + cross_entropy_forward(logits, targets[part])[0]",
    correct=loss_in_parts, broken=sum_of_means, source=linear_cross_entropy_layer,
    check=parts_of_a_batch, blind=batch_of_one_part,
))
