"""The transformer block of Llama and its parts (Touvron et al. 2023, arXiv:2302.13971): layers
composed, forward over backward, with the arguments of blocks.py.

    x = x + grouped_attention(rmsnorm(x))
    y = x + gated_mlp(rmsnorm(x))

    grouped_attention(x) = attention(rope(q), rope(k), v) @ o_proj       q, k, v = x @ qkv_proj
    gated_mlp(x)         = swiglu(gate, up) @ down_proj                  gate, up = x @ gate_up_proj

H heads of queries share G heads of keys and values. In Qwen3 (arXiv:2505.09388) each head of q and
k is normalised before its rotation; then there are two more weights. Biases are optional.
"""

from npgpt import layers
from npgpt.backend import array_module
from npgpt.models.blocks import merge_heads, split_heads
from npgpt.models.projection import projection_backward, projection_forward

QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")      # side by side


def gated_mlp_forward(x, p, dropout=0.0, key=None, layers=layers):
    """x (B, T, C) -> y (B, T, C), each token on its own, through F channels."""
    h, gate_up_proj = projection_forward(x, p, "gate_up_proj", layers, GATE_UP)  # (B, T, 2F)
    F = h.shape[-1] // 2
    h, swiglu = layers.swiglu_forward(h[..., :F], h[..., F:])                    # (B, T, F)
    y, down_proj = projection_forward(h, p, "down_proj", layers)                 # (B, T, C)
    y, drop = layers.dropout_forward(y, dropout, key)
    return y, (gate_up_proj, swiglu, down_proj, drop, layers)


def gated_mlp_backward(dy, cache):
    """dy (B, T, C) -> dx (B, T, C), dp like p."""
    gate_up_proj, swiglu, down_proj, drop, layers = cache
    dp = {}
    dy = layers.dropout_backward(dy, drop)
    dh = projection_backward(dy, down_proj, dp)
    dh = array_module(dh).concatenate(layers.swiglu_backward(dh, swiglu), axis=-1)
    dx = projection_backward(dh, gate_up_proj, dp)
    return dx, dp


def grouped_attention_forward(x, p, n_head, n_kv_head, rotation, mask=None, dropout=0.0, key=None,
                              kv=None, layers=layers, attn_dropout=None, eps=1e-5, causal=False):
    """x (B, T, C) -> y (B, T, C). Every token attends to those that the mask allows, and if causal
    to none after it.
    rotation: the cos and sin of the angles at these T positions. attn_dropout: the rate for the
    weights of attention; None: that of the output. eps: of the norms of q and k."""
    qkv, qkv_proj = projection_forward(x, p, "qkv_proj", layers, QKV)
    (qkv,) = split_heads(qkv, 1, n_head + 2 * n_kv_head)   # (B, H + 2G, T, D)
    q, k, v = qkv[:, :n_head], qkv[:, n_head:-n_kv_head], qkv[:, -n_kv_head:]
    q_norm = k_norm = None
    if "q_norm.weight" in p:
        q, q_norm = layers.rmsnorm_forward(q, p["q_norm.weight"], eps)
        k, k_norm = layers.rmsnorm_forward(k, p["k_norm.weight"], eps)
    q, q_rope = layers.rope_forward(q, *rotation)
    k, k_rope = layers.rope_forward(k, *rotation)
    if kv is not None:
        k, v = kv.extend(k, v)                             # (B, G, Tk, D)
    rate = dropout if attn_dropout is None else attn_dropout
    heads, attn = layers.attention_forward(q, k, v, mask, rate, key and key.at(0), causal)
    y, o_proj = projection_forward(merge_heads(heads), p, "o_proj", layers)
    y, drop = layers.dropout_forward(y, dropout, key and key.at(1))
    return y, (qkv_proj, q_norm, k_norm, q_rope, k_rope, attn, o_proj, drop, n_head, layers)


def grouped_attention_backward(dy, cache):
    """dy (B, T, C) -> dx (B, T, C), dp like p."""
    qkv_proj, q_norm, k_norm, q_rope, k_rope, attn, o_proj, drop, n_head, layers = cache
    dp = {}
    dy = layers.dropout_backward(dy, drop)
    dheads = projection_backward(dy, o_proj, dp)
    (dheads,) = split_heads(dheads, 1, n_head)             # (B, H, T, D)
    dq, dk, dv = layers.attention_backward(dheads, attn)
    dq = layers.rope_backward(dq, q_rope)
    dk = layers.rope_backward(dk, k_rope)
    if q_norm is not None:
        dq, dp["q_norm.weight"] = layers.rmsnorm_backward(dq, q_norm)
        dk, dp["k_norm.weight"] = layers.rmsnorm_backward(dk, k_norm)
    dx = projection_backward(merge_heads(dq, dk, dv), qkv_proj, dp)
    return dx, dp


def llama_block_forward(x, p, n_head, n_kv_head, rotation, mask=None, dropout=0.0, key=None,
                        kv=None, layers=layers, attn_dropout=None, eps=1e-5, causal=False):
    """x (B, T, C) -> y (B, T, C). eps: of all norms."""
    h, norm_1 = layers.rmsnorm_forward(x, p["input_layernorm.weight"], eps)
    h, attn = grouped_attention_forward(
        h, p["self_attn"], n_head, n_kv_head, rotation, mask, dropout, key and key.at(0), kv,
        layers, attn_dropout, eps, causal,
    )
    x = x + h                                              # residual
    h, norm_2 = layers.rmsnorm_forward(x, p["post_attention_layernorm.weight"], eps)
    h, mlp = gated_mlp_forward(h, p["mlp"], dropout, key and key.at(1), layers)
    return x + h, (norm_1, attn, norm_2, mlp, layers)


def llama_block_backward(dy, cache):
    """dy (B, T, C) -> dx (B, T, C), dp like p."""
    norm_1, attn, norm_2, mlp, layers = cache
    dp = {}
    dh, dp["mlp"] = gated_mlp_backward(dy, mlp)
    dh, dp["post_attention_layernorm.weight"] = layers.rmsnorm_backward(dh, norm_2)
    dx = dy + dh                                           # residual: gradients add
    dh, dp["self_attn"] = grouped_attention_backward(dx, attn)
    dh, dp["input_layernorm.weight"] = layers.rmsnorm_backward(dh, norm_1)
    return dx + dh, dp
