"""The pre-norm transformer block of GPT-2 and its parts: layers composed, forward over backward.
Cross-attention is for the original Transformer, whose blocks are in postnorm.py.

    x = x + self_attention(layernorm(x))
    y = x + mlp(layernorm(x))

A composite takes its parameters as a mapping `p` and returns their gradients under the same names;
a block's mapping contains those of its parts. If a value is used twice, as at each residual, the
gradients of both uses are added.

`key` is the key of dropout, None in evaluation; `key and key.at(1)` is the key of one dropout
inside, or None. `kv` caches keys and values during generation. `maps` is a list that collects the
weights of each cross-attention, for plots. `layers` has the layers' functions, and the cache passes
the same ones to the backward.
"""

from npgpt import layers
from npgpt.backend import array_module
from npgpt.models.projection import projection_backward, projection_forward

ACTIVATIONS = ("gelu", "relu")


def mlp_forward(x, p, activation="gelu", dropout=0.0, key=None, layers=layers):
    """x (B, T, C) -> y (B, T, C), each token on its own, through F channels; in GPT-2 F = 4C."""
    act_forward, act_backward = layers.LAYERS[activation]
    h, c_fc = projection_forward(x, p, "c_fc", layers)                                 # (B, T, F)
    h, act = act_forward(h)
    y, c_proj = projection_forward(h, p, "c_proj", layers)                             # (B, T, C)
    y, drop = layers.dropout_forward(y, dropout, key)
    return y, (c_fc, act, act_backward, c_proj, drop, layers)


def mlp_backward(dy, cache):
    """dy (B, T, C) -> dx (B, T, C), dp like p."""
    c_fc, act, act_backward, c_proj, drop, layers = cache
    dp = {}
    dy = layers.dropout_backward(dy, drop)
    dh = projection_backward(dy, c_proj, dp)
    dh = act_backward(dh, act)
    dx = projection_backward(dh, c_fc, dp)
    return dx, dp


def self_attention_forward(x, p, n_head, mask=None, dropout=0.0, key=None, kv=None, layers=layers,
                           attn_dropout=None, causal=False):
    """x (B, T, C) -> y (B, T, C). Every token attends to those that the mask allows, and if causal
    to none after it. attn_dropout: the rate for the weights of attention; None: that of the output.
    """
    qkv, c_attn = projection_forward(x, p, "c_attn", layers)
    q, k, v = split_heads(qkv, 3, n_head)                                   # (B, H, T, D) each
    if kv is not None:
        k, v = kv.extend(k, v)                                              # (B, H, Tk, D)
    rate = dropout if attn_dropout is None else attn_dropout
    heads, attn = layers.attention_forward(q, k, v, mask, rate, key and key.at(0), causal)
    y, c_proj = projection_forward(merge_heads(heads), p, "c_proj", layers)
    y, drop = layers.dropout_forward(y, dropout, key and key.at(1))
    return y, (c_attn, attn, c_proj, drop, n_head, layers)


def self_attention_backward(dy, cache):
    """dy (B, T, C) -> dx (B, T, C), dp like p."""
    c_attn, attn, c_proj, drop, n_head, layers = cache
    dp = {}
    dy = layers.dropout_backward(dy, drop)
    dheads = projection_backward(dy, c_proj, dp)
    (dheads,) = split_heads(dheads, 1, n_head)                              # (B, H, T, D)
    dq, dk, dv = layers.attention_backward(dheads, attn)
    dqkv = merge_heads(dq, dk, dv)                                          # (B, T, 3C)
    dx = projection_backward(dqkv, c_attn, dp)
    return dx, dp


def cross_attention_forward(x, memory, p, n_head, mask=None, dropout=0.0, key=None, maps=None,
                            layers=layers):
    """x (B, Tq, C), memory (B, Tk, M) -> y (B, Tq, C). Every token attends to another sequence.

    Queries are computed from x, keys and values from memory. So dx depends only on dq, and dmemory
    on dk and dv. Each block that reads the memory returns its own dmemory, and these are added.
    """
    q, q_attn = projection_forward(x, p, "q_attn", layers)
    kv, c_attn = projection_forward(memory, p, "c_attn", layers)
    (q,) = split_heads(q, 1, n_head)                                        # (B, H, Tq, D)
    k, v = split_heads(kv, 2, n_head)                                       # (B, H, Tk, D) each
    if maps is not None:
        maps.append(attention_weights(q, k, mask))
    heads, attn = layers.attention_forward(q, k, v, mask, dropout, key and key.at(0))
    y, c_proj = projection_forward(merge_heads(heads), p, "c_proj", layers)
    y, drop = layers.dropout_forward(y, dropout, key and key.at(1))
    return y, (q_attn, c_attn, attn, c_proj, drop, n_head, layers)


def cross_attention_backward(dy, cache):
    """dy (B, Tq, C) -> dx (B, Tq, C), dmemory (B, Tk, M), dp like p."""
    q_attn, c_attn, attn, c_proj, drop, n_head, layers = cache
    dp = {}
    dy = layers.dropout_backward(dy, drop)
    dheads = projection_backward(dy, c_proj, dp)
    (dheads,) = split_heads(dheads, 1, n_head)                              # (B, H, Tq, D)
    dq, dk, dv = layers.attention_backward(dheads, attn)
    dkv = merge_heads(dk, dv)                                               # (B, Tk, 2C)
    dmemory = projection_backward(dkv, c_attn, dp)
    dx = projection_backward(merge_heads(dq), q_attn, dp)
    return dx, dmemory, dp


def attention_weights(q, k, mask=None):
    """q (B, H, Tq, D), k (B, H, Tk, D) -> (B, H, Tq, Tk): the weights of the values in attention.
    If the values are the identity, the output is the weights. Always with the plain layer, because
    a faster one may not support values that are wider than the keys."""
    values = array_module(q).eye(k.shape[2], dtype=q.dtype)
    return layers.attention_forward(q, k, values, mask)[0]


def split_heads(x, n, n_head):
    """x (B, T, n * C), n arrays side by side -> n views (B, H, T, D)."""
    B, T, nC = x.shape
    x = x.reshape(B, T, n, n_head, nC // (n * n_head))
    return [x[:, :, i].swapaxes(1, 2) for i in range(n)]


def merge_heads(*heads):
    """Arrays (B, heads, T, D) -> (B, T, n * D), for n heads in all: the inverse of split_heads, and
    so its backward."""
    (B, _, T, D), H = heads[0].shape, sum(h.shape[1] for h in heads)
    y, *others = [h.swapaxes(1, 2) for h in heads]
    if others:
        xp, parts = array_module(y), [y, *others]
        y = xp.empty((B, T, H, D), y.dtype)          # else the heads come first in memory
        xp.concatenate(parts, axis=2, out=y)
    return y.reshape(B, T, H * D)


def block_forward(x, p, n_head, mask=None, activation="gelu", dropout=0.0, key=None, kv=None,
                  layers=layers, attn_dropout=None, eps=1e-5, causal=False):
    """x (B, T, C) -> y (B, T, C). eps: of the layer norms."""
    h, ln_1 = layers.layernorm_forward(x, p["ln_1.weight"], p["ln_1.bias"], eps)
    h, attn = self_attention_forward(
        h, p["attn"], n_head, mask, dropout, key and key.at(0), kv, layers, attn_dropout, causal
    )
    x = x + h                                        # residual
    h, ln_2 = layers.layernorm_forward(x, p["ln_2.weight"], p["ln_2.bias"], eps)
    h, mlp = mlp_forward(h, p["mlp"], activation, dropout, key and key.at(1), layers)
    return x + h, (ln_1, attn, ln_2, mlp, layers)


def block_backward(dy, cache):
    """dy (B, T, C) -> dx (B, T, C), dp like p."""
    ln_1, attn, ln_2, mlp, layers = cache
    dp = {}
    dh, dp["mlp"] = mlp_backward(dy, mlp)
    dh, dp["ln_2.weight"], dp["ln_2.bias"] = layers.layernorm_backward(dh, ln_2)
    dx = dy + dh                                     # residual: gradients add
    dh, dp["attn"] = self_attention_backward(dx, attn)
    dh, dp["ln_1.weight"], dp["ln_1.bias"] = layers.layernorm_backward(dh, ln_1)
    return dx + dh, dp
