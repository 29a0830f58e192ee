"""GPT: a decoder-only transformer (Radford et al. 2019), as functions and as a class.

    x      = dropout(wte[idx] + wpe)
    x      = block(x)                    L times
    logits = layernorm(x) @ head.T       the head is wte if the weights are tied

`gpt_forward` and `gpt_backward` are functions like every layer's; `GPT` adds parameters and a
device. Parameters have GPT-2's names: wte and wpe are the embeddings of tokens and positions, h.3
is block 3, ln a layernorm, c_attn, c_fc and c_proj are linear layers. A cache is named after the
parameters of its layer.
"""

import math
from dataclasses import dataclass

from npgpt import layers
from npgpt.cli.options import option
from npgpt.errors import UserError
from npgpt.models.blocks import ACTIVATIONS, block_backward, block_forward
from npgpt.models.language_model import LanguageModel
from npgpt.models.model import ModelConfig
from npgpt.models.parameters import STD, Param, flatten, linear, norm, table
from npgpt.models.recompute import recomputed

BLOCK = block_forward, block_backward


@dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """The architecture. The defaults are GPT-2's, 124 million parameters.

    Raises UserError, a ValueError, for an invalid value.
    """

    vocab_size: int = option(50257, "tokens in the vocabulary, V", at_least=1, at_most=10**7)
    block_size: int = option(1024, "tokens in the context, T", at_least=1, at_most=10**7)
    n_layer: int = option(12, "transformer blocks, L", at_least=1, at_most=1000)
    n_head: int = option(12, "attention heads in a block, H", at_least=1, at_most=10**4)
    n_embd: int = option(768, "channels of a token, C", at_least=1, at_most=10**5)
    dropout: float = option(0.0, "fraction of elements dropped in training", at_least=0, below=1)
    activation: str = option("gelu", "activation of the MLP", choices=ACTIVATIONS)
    tie_weights: bool = option(True, "one matrix is both token embedding and head")
    attn_bias: bool = option(True, "queries, keys and values have a bias")
    head_bias: bool = option(False, "the head has a bias")
    n_inner: int | None = option(
        None, "channels in the MLP (default: 4 `n_embd`; in a Llama 8/3 `n_embd`, rounded up "
        "to a multiple of 32)", at_least=1, at_most=10**6)
    embd_dropout: float | None = option(
        None, "the fraction dropped after the embeddings (default: `dropout`)", at_least=0, below=1)
    attn_dropout: float | None = option(
        None, "the fraction of attention's weights dropped (default: `dropout`)", at_least=0,
        below=1)
    norm_eps: float = option(1e-5, "added to the variance in layer norms, or in a Llama to the "
                             "mean of squares", above=0, at_most=1)

    def __post_init__(self):
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise UserError(f"`n_embd` must be a multiple of `n_head`, got {self.n_embd} and "
                            f"{self.n_head}")

    @property
    def inner(self):
        """The channels in the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def embedding_dropout(self):
        """The rate after the embeddings."""
        return self.dropout if self.embd_dropout is None else self.embd_dropout

    @property
    def attention_dropout(self):
        """The rate for the weights of attention."""
        return self.dropout if self.attn_dropout is None else self.attn_dropout

    @property
    def head(self):
        """The name of the head's weight, (V, C)."""
        return "wte.weight" if self.tie_weights else "lm_head.weight"

    def architecture(self):
        """-> name -> Param of every parameter, in the order the model uses them."""
        V, C, F = self.vocab_size, self.n_embd, self.inner
        last = STD / math.sqrt(2 * self.n_layer)     # before each of the 2L residual additions
        block = {
            "ln_1": norm(C),
            "attn": {"c_attn": linear(C, 3 * C, bias=self.attn_bias, parts=(C, C, C)),
                     "c_proj": linear(C, C, last)},
            "ln_2": norm(C),
            "mlp": {"c_fc": linear(C, F), "c_proj": linear(F, C, last)},
        }
        head = {} if self.tie_weights else table(V, C)
        if self.head_bias:
            head["bias"] = Param((V,), "vector")
        return flatten({
            "wte": table(V, C, uses=2 if self.tie_weights else 1),
            "wpe": table(self.block_size, C),
            "h": dict.fromkeys(range(self.n_layer), block),
            "ln_f": norm(C),
            "lm_head": head,
        })


def gpt_forward(idx, p, config, key=None, kv=None, layers=layers, last=False, head=True,
                recompute=False):
    """idx (B, T) -> logits (B, T, V). kv: a KVCache of the tokens before; then there is no
    backward. last: logits of the last position only, (B, 1, V). head: False: not the logits, but
    what the head maps to them, (B, T, C). recompute: the backward computes the blocks again."""
    start = kv.length if kv else 0
    x, wte = layers.embedding_forward(idx, p["wte.weight"])                     # (B, T, C)
    x, wpe = layers.positional_forward(x, p["wpe.weight"], start)
    x, drop = layers.dropout_forward(x, config.embedding_dropout, key and key.at(0))
    forward, backward = recomputed(BLOCK) if recompute else BLOCK
    blocks = []
    for layer in range(config.n_layer):
        x, block = forward(
            x, p["h"][layer], config.n_head, None, config.activation, config.dropout,
            key and key.at(1 + layer), kv and kv.layers[layer], layers, config.attention_dropout,
            config.norm_eps, causal=True,
        )
        if kv is None:                               # else there is no backward
            blocks.append(block)
    x = x[:, -1:] if last else x
    x, ln_f = layers.layernorm_forward(x, p["ln_f.weight"], p["ln_f.bias"], config.norm_eps)
    lm_head = None
    if head:
        x, lm_head = layers.linear_forward(x, p[config.head].T, p.get("lm_head.bias"))   # (B, T, V)
    return x, (wte, wpe, drop, blocks, backward, ln_f, lm_head, config, layers)


def gpt_backward(dy, cache, grads):
    """dy (B, T, V), of the logits, or (B, T, C), without the head -> None: adds the gradients to
    `grads`.

    Arrays are freed as soon as possible: dy, if the caller has no reference to it, and each block's
    cache, which is removed from its list. So a cache can be used for one backward only.
    """
    wte, wpe, drop, blocks, backward, ln_f, lm_head, config, layers = cache
    dx = dy
    del dy
    if lm_head:
        dx, dhead, dbias = layers.linear_backward(dx, lm_head)
        grads.add(config.head, dhead.T)
        grads.add("lm_head.bias", dbias)
    dx, dw, db = layers.layernorm_backward(dx, ln_f)
    grads.add("ln_f.weight", dw)
    grads.add("ln_f.bias", db)
    for layer in reversed(range(config.n_layer)):
        dx, dp = backward(dx, blocks.pop())
        grads.add(f"h.{layer}", dp)
    if "wte.weight" in grads:                                        # it is not frozen, nor is wpe
        dx = layers.dropout_backward(dx, drop)
        dx, dw = layers.positional_backward(dx, wpe)
        grads.add("wpe.weight", dw)
        grads.add("wte.weight", layers.embedding_backward(dx, wte))  # tied: added to the head's


class GPT(LanguageModel):
    """A GPT with its parameters on a device.

        model = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128))
        loss, grads = model.loss_and_grads(idx, targets)
    """

    Config = GPTConfig
    forward = staticmethod(gpt_forward)
    backward = staticmethod(gpt_backward)
