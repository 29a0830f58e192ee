"""The layers: the mathematics of npgpt, one file each, every forward with its backward below it.

A layer is a pair of pure functions on arrays:

    y, cache   = f_forward(x, w, b)       the cache keeps what the backward needs
    dx, dw, db = f_backward(dy, cache)    gradients in the order of the arguments

`dname` is the gradient of the loss with respect to `name`, and has its shape. The functions do not
modify their arguments, keep no state between calls, and return arrays of the dtype of their inputs.
The letters in the shapes:

    B   sequences in a batch          V   tokens in the vocabulary
    T   tokens in a sequence          C   channels of a token, n_embd
    D   channels of a head            H   heads of queries
    L   blocks in the model           G   heads of keys and values; H in GPT
    Tq, Tk   queries and keys         N   tokens in total, over all leading axes
                                      ... any leading axes

A model's functions take this module as their argument `layers`, or an object with the same names
and faster versions of some layers: see npgpt.kernels.
"""

from collections.abc import Callable
from typing import NamedTuple

from npgpt.layers.activations import gelu_backward, gelu_forward, relu_backward, relu_forward
from npgpt.layers.attention import attention_backward, attention_forward, causal_mask
from npgpt.layers.cross_entropy import cross_entropy_backward, cross_entropy_forward
from npgpt.layers.dropout import Key, dropout_backward, dropout_forward
from npgpt.layers.embedding import embedding_backward, embedding_forward
from npgpt.layers.layernorm import layernorm_backward, layernorm_forward
from npgpt.layers.linear import linear_backward, linear_forward
from npgpt.layers.linear_cross_entropy import (
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
)
from npgpt.layers.lora import lora_backward, lora_forward
from npgpt.layers.positional import positional_backward, positional_forward
from npgpt.layers.rmsnorm import rmsnorm_backward, rmsnorm_forward
from npgpt.layers.rope import rope_backward, rope_forward, rotation
from npgpt.layers.swiglu import swiglu_backward, swiglu_forward
from npgpt.layers.tiled_attention import tiled_attention_backward, tiled_attention_forward


class Layer(NamedTuple):
    """A layer. Its name is also that of its gradient check, its explanation, its section in
    docs/backprop.md and its mutants."""

    forward: Callable
    backward: Callable


LAYERS = {     # in reading order
    "linear": Layer(linear_forward, linear_backward),
    "embedding": Layer(embedding_forward, embedding_backward),
    "positional": Layer(positional_forward, positional_backward),
    "layernorm": Layer(layernorm_forward, layernorm_backward),
    "relu": Layer(relu_forward, relu_backward),
    "gelu": Layer(gelu_forward, gelu_backward),
    "dropout": Layer(dropout_forward, dropout_backward),
    "attention": Layer(attention_forward, attention_backward),
    "cross_entropy": Layer(cross_entropy_forward, cross_entropy_backward),
    "rmsnorm": Layer(rmsnorm_forward, rmsnorm_backward),          # of Llama, from here on
    "rope": Layer(rope_forward, rope_backward),
    "swiglu": Layer(swiglu_forward, swiglu_backward),
    "tiled_attention": Layer(tiled_attention_forward, tiled_attention_backward),   # less memory
    "linear_cross_entropy": Layer(linear_cross_entropy_forward, linear_cross_entropy_backward),
    "lora": Layer(lora_forward, lora_backward),                                    # fine-tuning
}

__all__ = [
    "LAYERS",
    "Key",
    "Layer",
    "causal_mask",
    "rotation",
    *(f"{name}_{way}" for name in LAYERS for way in ("forward", "backward")),
]
