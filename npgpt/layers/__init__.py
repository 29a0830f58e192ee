"""The layers: the mathematics of npgpt, a file each, every forward with its backward under it.

A layer is a pair of pure functions on arrays:

    y, cache   = f_forward(x, w, b)       the cache keeps what the backward needs
    dx, dw, db = f_backward(dy, cache)    gradients in the order of the arguments

`dname` is the gradient of the loss with respect to `name`, and has its shape. Nothing is changed
that was passed in, nothing is remembered between calls, and the dtype that comes in goes out. The
letters in the shapes:

    B   sequences in a batch          V   tokens in the vocabulary
    T   tokens in a sequence          C   channels of a token, n_embd
    D   channels of a head, C / H     H   heads
    L   blocks in the model           N   tokens in all, wherever they stand
    Tq, Tk   queries and keys         ... any leading axes

The files hold plain functions of arrays from any module. The names exported here dispatch on the
type of their first argument, so that a faster version for one kind of array can be registered
beside the plain one (`linear_forward.register(cupy.ndarray, ...)`) and nothing else changes.
"""

from functools import singledispatch

from npgpt.layers import (
    activations,
    attention,
    cross_entropy,
    dropout,
    embedding,
    layernorm,
    linear,
    positional,
)
from npgpt.layers.attention import causal_mask
from npgpt.layers.dropout import Key

linear_forward = singledispatch(linear.linear_forward)
linear_backward = singledispatch(linear.linear_backward)
embedding_forward = singledispatch(embedding.embedding_forward)
embedding_backward = singledispatch(embedding.embedding_backward)
positional_forward = singledispatch(positional.positional_forward)
positional_backward = singledispatch(positional.positional_backward)
layernorm_forward = singledispatch(layernorm.layernorm_forward)
layernorm_backward = singledispatch(layernorm.layernorm_backward)
relu_forward = singledispatch(activations.relu_forward)
relu_backward = singledispatch(activations.relu_backward)
gelu_forward = singledispatch(activations.gelu_forward)
gelu_backward = singledispatch(activations.gelu_backward)
dropout_forward = singledispatch(dropout.dropout_forward)
dropout_backward = singledispatch(dropout.dropout_backward)
attention_forward = singledispatch(attention.attention_forward)
attention_backward = singledispatch(attention.attention_backward)
cross_entropy_forward = singledispatch(cross_entropy.cross_entropy_forward)
cross_entropy_backward = singledispatch(cross_entropy.cross_entropy_backward)

LAYERS = {     # in reading order: name -> forward, backward
    "linear": (linear_forward, linear_backward),
    "embedding": (embedding_forward, embedding_backward),
    "positional": (positional_forward, positional_backward),
    "layernorm": (layernorm_forward, layernorm_backward),
    "relu": (relu_forward, relu_backward),
    "gelu": (gelu_forward, gelu_backward),
    "dropout": (dropout_forward, dropout_backward),
    "attention": (attention_forward, attention_backward),
    "cross_entropy": (cross_entropy_forward, cross_entropy_backward),
}

__all__ = [
    "LAYERS",
    "Key",
    "causal_mask",
    *(f"{name}_{way}" for name in LAYERS for way in ("forward", "backward")),
]
