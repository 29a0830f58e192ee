"""The two stacks of the original Transformer: encoder and decoder (Vaswani et al. 2017, section 3).

    memory = √C * wte[source] + sinusoid        then L encoder blocks
    x      = √C * wte[idx]    + sinusoid        then L decoder blocks, which all read memory

A stack takes its own part of the parameters, and its backward adds the gradients to `grads` under
the stack's name. A block's cache is removed from its list when it is used, so a cache can be used
for one backward only. All decoder blocks read the same memory, so their gradients of it are added.

Sequences of unequal length are padded with PAD, which is masked in attention.
"""

import math

from npgpt import layers
from npgpt.backend import array_module
from npgpt.models.postnorm import (
    decoder_block_backward,
    decoder_block_forward,
    encoder_block_backward,
    encoder_block_forward,
)
from npgpt.models.recompute import recomputed

PAD = 0
ENCODER_BLOCK = encoder_block_forward, encoder_block_backward
DECODER_BLOCK = decoder_block_forward, decoder_block_backward


def sinusoid(xp, T, C):
    """-> (T, C) float64: the positional encoding of the paper, section 3.5.

        table[t, 2i]     = sin(t / 10000^(2i/C))
        table[t, 2i + 1] = cos(t / 10000^(2i/C))

    Each pair of channels is a point on a circle. The first makes a full turn in 2π tokens, the
    others turn more and more slowly. In k tokens each point turns by an angle that depends only on
    k. So the same linear map leads from any position to the one k tokens later.
    """
    channel = xp.arange(C)
    turn = 10000.0 ** -(channel // 2 * 2 / C)                # radians per token
    angle = xp.arange(T)[:, None] * turn                     # (T, C)
    return xp.where(channel % 2 == 0, xp.sin(angle), xp.cos(angle))


def embed_forward(idx, w, dropout=0.0, key=None, layers=layers):
    """idx (B, T), w (V, C) -> x (B, T, C): the tokens and their positions."""
    (_, T), C = idx.shape, w.shape[1]
    x, wte = layers.embedding_forward(idx, w)
    scale = math.sqrt(C)        # the head, which may share w, needs smaller values than the table
    x = x * scale + sinusoid(array_module(x), T, C).astype(x.dtype)
    x, drop = layers.dropout_forward(x, dropout, key)
    return x, (wte, scale, drop, layers)


def embed_backward(dx, cache):
    """dx (B, T, C) -> dw (V, C)."""
    wte, scale, drop, layers = cache
    return layers.embedding_backward(layers.dropout_backward(dx, drop) * scale, wte)


def seen(idx):
    """idx (B, T) -> (B, 1, 1, T) bool, the attention mask: False for padding."""
    return (idx != PAD)[:, None, None]


def encoder_forward(source, p, config, key=None, layers=layers, recompute=False):
    """source (B, S) -> memory (B, S, C). recompute: the backward computes the blocks again."""
    x, embed = embed_forward(source, p["wte.weight"], config.dropout, key and key.at(0), layers)
    forward, backward = recomputed(ENCODER_BLOCK) if recompute else ENCODER_BLOCK
    blocks = []
    for layer in range(config.n_layer):
        x, block = forward(
            x, p["h"][layer], config.n_head, seen(source), config.dropout,
            key and key.at(1 + layer), layers,
        )
        blocks.append(block)
    return x, (embed, blocks, backward)


def encoder_backward(dmemory, cache, grads):
    """dmemory (B, S, C) -> None."""
    embed, blocks, backward = cache
    dx = dmemory
    for layer in reversed(range(len(blocks))):
        dx, dp = backward(dx, blocks.pop())
        grads.add(f"encoder.h.{layer}", dp)
    if "encoder.wte.weight" in grads:                # it is not frozen
        grads.add("encoder.wte.weight", embed_backward(dx, embed))


def decoder_forward(idx, memory, memory_mask, p, config, key=None, maps=None, layers=layers,
                    recompute=False):
    """idx (B, T), memory (B, S, C) -> x (B, T, C). recompute: as in encoder_forward."""
    x, embed = embed_forward(idx, p["wte.weight"], config.dropout, key and key.at(0), layers)
    forward, backward = recomputed(DECODER_BLOCK) if recompute else DECODER_BLOCK
    blocks = []
    for layer in range(config.n_layer):
        x, block = forward(
            x, memory, p["h"][layer], config.n_head, seen(idx), memory_mask, config.dropout,
            key and key.at(1 + layer), maps, layers, causal=True,
        )
        blocks.append(block)
    return x, (embed, blocks, backward)


def decoder_backward(dx, cache, grads):
    """dx (B, T, C) -> dmemory (B, S, C)."""
    embed, blocks, backward = cache
    dmemory = 0
    for layer in reversed(range(len(blocks))):
        dx, dread, dp = backward(dx, blocks.pop())
        dmemory = dmemory + dread                    # every block reads it: gradients are added
        grads.add(f"decoder.h.{layer}", dp)
    if "decoder.wte.weight" in grads:                # it is not frozen
        grads.add("decoder.wte.weight", embed_backward(dx, embed))
    return dmemory
