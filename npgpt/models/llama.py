"""Llama: today's decoder-only transformer (Touvron et al. 2023, arXiv:2302.13971), as functions and
as a class. SmolLM2 and Qwen3 are the same model.

    x      = dropout(embed_tokens[idx])
    x      = block(x, rotation)          L times
    logits = rmsnorm(x) @ head.T         the head is embed_tokens if the weights are tied

`llama_forward` and `llama_backward` are functions like every layer's; `Llama` adds parameters and a
device. Parameters have Hugging Face's names, but q, k and v are one matrix, and so are gate and up.
A cache is named after the parameters of its layer. The positions are in the rotation: there is no
table of them.
"""

import math
from dataclasses import dataclass
from types import MappingProxyType

from npgpt import layers
from npgpt.backend import array_module
from npgpt.cli.options import option
from npgpt.errors import UserError
from npgpt.models.language_model import LanguageModel
from npgpt.models.llama_blocks import (
    GATE_UP,
    QKV,
    llama_block_backward,
    llama_block_forward,
)
from npgpt.models.model import ModelConfig
from npgpt.models.parameters import STD, flatten, linear, rms_norm, table
from npgpt.models.recompute import recomputed

BLOCK = llama_block_forward, llama_block_backward


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """The architecture. The default sizes are those of SmolLM2 with 135 million parameters, but for
    its n_kv_head = 3 and rope_theta = 100_000. After construction no size is None.

    Raises UserError, a ValueError, for an invalid value.
    """

    modules = MappingProxyType({"qkv_proj": QKV, "gate_up_proj": GATE_UP})

    vocab_size: int = option(49152, "tokens in the vocabulary, V", at_least=1, at_most=10**7)
    block_size: int = option(8192, "tokens in the context, T", at_least=1, at_most=10**7)
    n_layer: int = option(30, "transformer blocks, L", at_least=1, at_most=1000)
    n_head: int = option(9, "attention heads in a block, H", at_least=1, at_most=10**4)
    n_kv_head: int | None = option(None, "heads of keys and values, G (default: `n_head`)",
                                   at_least=1, at_most=10**4)
    n_embd: int = option(576, "channels of a token, C", at_least=1, at_most=10**5)
    head_dim: int | None = option(None, "channels of a head (default: `n_embd` / `n_head`)",
                                  at_least=2, at_most=10**5)
    n_inner: int | None = option(None, "channels in the MLP (default: 8/3 `n_embd`, rounded up to "
                                 "a multiple of 32)", at_least=1, at_most=10**6)
    dropout: float = option(0.0, "fraction of elements dropped in training", at_least=0, below=1)
    attn_dropout: float | None = option(
        None, "the fraction of attention's weights dropped (default: `dropout`)", at_least=0,
        below=1)
    tie_weights: bool = option(True, "one matrix is both token embedding and head")
    attention_bias: bool = option(False, "the linear layers of attention have biases")
    mlp_bias: bool = option(False, "the linear layers of the MLP have biases")
    qk_norm: bool = option(False, "queries and keys are normalised, as in Qwen3")
    rope_theta: float = option(10_000.0, "the base of the angles of RoPE", at_least=1)
    norm_eps: float = option(1e-5, "added to the mean of squares in RMSNorm", above=0,
                             at_most=1)

    def __post_init__(self):
        super().__post_init__()
        if self.n_embd % self.n_head and not (self.qk_norm and self.head_dim):
            raise UserError(f"`n_embd` must be a multiple of `n_head`, got {self.n_embd} and "
                            f"{self.n_head}")
        defaults = {"n_kv_head": self.n_head, "head_dim": self.n_embd // self.n_head,
                    "n_inner": -(-8 * self.n_embd // 96) * 32}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.head_dim % 2:
            raise UserError(f"`head_dim` must be even, because RoPE rotates pairs of channels, got "
                            f"{self.head_dim}")
        if self.n_head % self.n_kv_head:
            raise UserError(f"`n_head` must be a multiple of `n_kv_head`, got {self.n_head} and "
                            f"{self.n_kv_head}")
        if self.qk_norm and self.mlp_bias:
            raise UserError("`qk_norm` and `mlp_bias` are of different models, Qwen3 and Llama; "
                            "choose one")

    @property
    def attention_dropout(self):
        """The rate for the weights of attention."""
        return self.dropout if self.attn_dropout is None else self.attn_dropout

    @property
    def head(self):
        """The name of the head's weight, (V, C)."""
        return "embed_tokens.weight" if self.tie_weights else "lm_head.weight"

    def architecture(self):
        """-> name -> Param of every parameter, in the order the model uses them."""
        V, C, D, F = self.vocab_size, self.n_embd, self.head_dim, self.n_inner
        q, kv = self.n_head * D, self.n_kv_head * D
        last = STD / math.sqrt(2 * self.n_layer)     # before each of the 2L residual additions
        head_norm = rms_norm(D)
        head_norms = {"q_norm": head_norm, "k_norm": head_norm} if self.qk_norm else {}
        block = {
            "input_layernorm": rms_norm(C),
            "self_attn": {
                "qkv_proj": linear(C, q + 2 * kv, bias=self.attention_bias, parts=(q, kv, kv)),
                **head_norms,
                "o_proj": linear(q, C, last, bias=self.attention_bias),
            },
            "post_attention_layernorm": rms_norm(C),
            "mlp": {"gate_up_proj": linear(C, 2 * F, bias=self.mlp_bias, parts=(F, F)),
                    "down_proj": linear(F, C, last, bias=self.mlp_bias)},
        }
        return flatten({
            "embed_tokens": table(V, C, uses=2 if self.tie_weights else 1),
            "layers": dict.fromkeys(range(self.n_layer), block),
            "norm": rms_norm(C),
            "lm_head": {} if self.tie_weights else table(V, C),
        })


def llama_forward(idx, p, config, key=None, kv=None, layers=layers, last=False, head=True,
                  recompute=False):
    """idx (B, T) -> logits (B, T, V). kv, last, head, recompute: as in gpt_forward."""
    start, T = kv.length if kv else 0, idx.shape[1]
    x, embed_tokens = layers.embedding_forward(idx, p["embed_tokens.weight"])      # (B, T, C)
    x, drop = layers.dropout_forward(x, config.dropout, key and key.at(0))
    rotation = layers.rotation(array_module(x), T, config.head_dim, config.rope_theta, start,
                               x.real.dtype)
    forward, backward = recomputed(BLOCK) if recompute else BLOCK
    blocks = []
    for layer in range(config.n_layer):
        x, block = forward(
            x, p["layers"][layer], config.n_head, config.n_kv_head, rotation, None, config.dropout,
            key and key.at(1 + layer), kv and kv.layers[layer], layers, config.attention_dropout,
            config.norm_eps, causal=True,
        )
        if kv is None:                               # else there is no backward
            blocks.append(block)
    x = x[:, -1:] if last else x
    x, norm = layers.rmsnorm_forward(x, p["norm.weight"], config.norm_eps)
    lm_head = None
    if head:
        x, lm_head = layers.linear_forward(x, p[config.head].T)                    # (B, T, V)
    return x, (embed_tokens, drop, blocks, backward, norm, lm_head, config, layers)


def llama_backward(dy, cache, grads):
    """dy (B, T, V), of the logits, or (B, T, C), without the head -> None: adds the gradients to
    `grads`. A cache can be used for one backward only, as in gpt_backward."""
    embed_tokens, drop, blocks, backward, norm, lm_head, config, layers = cache
    dx = dy
    del dy
    if lm_head:
        dx, dhead, _ = layers.linear_backward(dx, lm_head)
        grads.add(config.head, dhead.T)
    dx, dw = layers.rmsnorm_backward(dx, norm)
    grads.add("norm.weight", dw)
    for layer in reversed(range(config.n_layer)):
        dx, dp = backward(dx, blocks.pop())
        grads.add(f"layers.{layer}", dp)
    if "embed_tokens.weight" in grads:                               # it is not frozen
        dx = layers.dropout_backward(dx, drop)
        dw = layers.embedding_backward(dx, embed_tokens)
        grads.add("embed_tokens.weight", dw)                         # tied: added to the head's


class Llama(LanguageModel):
    """A Llama with its parameters on a device.

        model = Llama(LlamaConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_kv_head=2,
                                  n_embd=128))
        loss, grads = model.loss_and_grads(idx, targets)
    """

    Config = LlamaConfig
    forward = staticmethod(llama_forward)
    backward = staticmethod(llama_backward)
