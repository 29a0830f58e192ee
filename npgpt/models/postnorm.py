"""The post-norm blocks of the original Transformer (Vaswani et al. 2017, section 3.1).

    encoder    x = layernorm(x + self_attention(x))
               y = layernorm(x + mlp(x))

    decoder    x = layernorm(x + self_attention(x))
               x = layernorm(x + cross_attention(x, memory))
               y = layernorm(x + mlp(x))

GPT-2 normalises the input of a sublayer; here the residual sum after it is normalised. In the
backward, the gradient of the sum s = x + f(x) reaches x by both paths:

    ds = layernorm_backward(dy)        dx = ds + f_backward(ds)

So even the path that skips every sublayer goes through all the norms, unlike in GPT-2. This is why
post-norm models need a warm-up (Xiong et al. 2020, arXiv:2002.04745).
"""

from npgpt import layers
from npgpt.models.blocks import (
    cross_attention_backward,
    cross_attention_forward,
    mlp_backward,
    mlp_forward,
    self_attention_backward,
    self_attention_forward,
)


def encoder_block_forward(x, p, n_head, mask=None, dropout=0.0, key=None, layers=layers):
    """x (B, T, C) -> y (B, T, C)."""
    h, attn = self_attention_forward(
        x, p["attn"], n_head, mask, dropout, key and key.at(0), layers=layers
    )
    x, ln_1 = layers.layernorm_forward(x + h, p["ln_1.weight"], p["ln_1.bias"])
    h, mlp = mlp_forward(x, p["mlp"], "relu", dropout, key and key.at(1), layers)
    y, ln_2 = layers.layernorm_forward(x + h, p["ln_2.weight"], p["ln_2.bias"])
    return y, (attn, ln_1, mlp, ln_2, layers)


def encoder_block_backward(dy, cache):
    """dy (B, T, C) -> dx (B, T, C), dp like p."""
    attn, ln_1, mlp, ln_2, layers = cache
    dp = {}
    ds, dp["ln_2.weight"], dp["ln_2.bias"] = layers.layernorm_backward(dy, ln_2)
    dh, dp["mlp"] = mlp_backward(ds, mlp)
    ds, dp["ln_1.weight"], dp["ln_1.bias"] = layers.layernorm_backward(ds + dh, ln_1)
    dh, dp["attn"] = self_attention_backward(ds, attn)
    return ds + dh, dp


def decoder_block_forward(x, memory, p, n_head, mask=None, memory_mask=None, dropout=0.0, key=None,
                          maps=None, layers=layers, causal=False):
    """x (B, T, C), memory (B, S, M) -> y (B, T, C). mask, causal: of x; memory_mask: of the
    memory."""
    h, attn = self_attention_forward(
        x, p["attn"], n_head, mask, dropout, key and key.at(0), layers=layers, causal=causal
    )
    x, ln_1 = layers.layernorm_forward(x + h, p["ln_1.weight"], p["ln_1.bias"])
    h, cross = cross_attention_forward(
        x, memory, p["crossattention"], n_head, memory_mask, dropout, key and key.at(1), maps,
        layers,
    )
    x, ln_cross = layers.layernorm_forward(
        x + h, p["ln_cross_attn.weight"], p["ln_cross_attn.bias"]
    )
    h, mlp = mlp_forward(x, p["mlp"], "relu", dropout, key and key.at(2), layers)
    y, ln_2 = layers.layernorm_forward(x + h, p["ln_2.weight"], p["ln_2.bias"])
    return y, (attn, ln_1, cross, ln_cross, mlp, ln_2, layers)


def decoder_block_backward(dy, cache):
    """dy (B, T, C) -> dx (B, T, C), dmemory (B, S, M), dp like p."""
    attn, ln_1, cross, ln_cross, mlp, ln_2, layers = cache
    dp = {}
    ds, dp["ln_2.weight"], dp["ln_2.bias"] = layers.layernorm_backward(dy, ln_2)
    dh, dp["mlp"] = mlp_backward(ds, mlp)
    ds, dp["ln_cross_attn.weight"], dp["ln_cross_attn.bias"] = layers.layernorm_backward(
        ds + dh, ln_cross
    )
    dh, dmemory, dp["crossattention"] = cross_attention_backward(ds, cross)
    ds, dp["ln_1.weight"], dp["ln_1.bias"] = layers.layernorm_backward(ds + dh, ln_1)
    dh, dp["attn"] = self_attention_backward(ds, attn)
    return ds + dh, dmemory, dp
