"""The format of Hugging Face's GPT-2: names of transformers' GPT2Config, weights (in, out).

An option that GPT-2 does not have is converted if that is exact (attn_bias = false is stored as
zeros), and marked otherwise (head_bias = true has a model_type of its own).
"""

from dataclasses import replace

import numpy as np

from npgpt.backend import to_host
from npgpt.checkpoints.tensors import read_tensors
from npgpt.durable import read_json
from npgpt.errors import UserError
from npgpt.models.gpt import GPTConfig

ACTIVATION_NAMES = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}

# Options of GPT2Config that npgpt does not have, with the values that it supports.
FIXED = {
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def write_config(config):
    """GPTConfig -> the keys of transformers' GPT2Config."""
    plain = not config.head_bias                       # GPT-2's head has no bias
    return {
        "model_type": "gpt2" if plain else "npgpt",
        "architectures": ["GPT2LMHeadModel" if plain else "GPT"],
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "activation_function": "gelu_new" if config.activation == "gelu" else config.activation,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": None,
        "eos_token_id": None,
        "npgpt_attn_bias": config.attn_bias,
        "npgpt_head_bias": config.head_bias,
    }


def write_weights(model):
    """-> name in the file -> array."""
    tensors = {name: to_host(array) for name, array in model.params.items()}
    for name, shape in replace(model.config, attn_bias=True).shapes().items():
        if name not in tensors:                        # a bias of GPT-2: zeros are equivalent
            tensors[name] = np.zeros(shape, model.params.flat.dtype)
    return tensors


def read(config_path, weights_path):
    """-> GPTConfig, pairs of names and arrays. Raises UserError that says what is missing, unknown,
    damaged or not supported."""
    values = _read_config(config_path)

    def canonical(name):
        name = name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")):    # the causal mask, in old files
            return None
        if name == "lm_head.weight" and values["tie_weights"]:    # the same as wte.weight
            return None
        return name

    try:
        config = GPTConfig(**values)
    except UserError as error:
        raise UserError(f"{config_path}: {error}") from None
    full = replace(config, attn_bias=True)
    tensors = read_tensors(weights_path, full.shapes(), canonical)
    biases = tensors.keys() - config.shapes().keys()
    if any(tensors[name].any() for name in biases):               # trained by another program
        config = full
    return config, [(name, tensors[name]) for name in config.shapes()]


def _read_config(path):
    """config.json -> values for GPTConfig. Raises UserError for what npgpt does not support. GPT-2
    has three dropout rates, which matter only in training; npgpt uses resid_pdrop for all."""
    found = read_json(path)
    if found.get("model_type") not in ("gpt2", "npgpt"):
        raise UserError(f"{path}: model_type is {found.get('model_type')!r}, expected gpt2")
    for name, known in FIXED.items():
        if found.get(name, known[0]) not in known:
            raise UserError(f"{path}: npgpt does not support {name} = {found[name]}")
    n_embd, n_inner = found.get("n_embd", 768), found.get("n_inner")
    if n_inner is not None and not (isinstance(n_embd, int) and n_inner == 4 * n_embd):
        raise UserError(f"{path}: n_inner must be 4 * n_embd, got {n_inner}")
    activation = found.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATION_NAMES:
        raise UserError(f"{path}: npgpt does not support the activation {activation!r}")
    return {
        "vocab_size": found.get("vocab_size", 50257),
        "block_size": found.get("n_positions", 1024),
        "n_layer": found.get("n_layer", 12),
        "n_head": found.get("n_head", 12),
        "n_embd": n_embd,
        "dropout": found.get("resid_pdrop", 0.1),
        "activation": ACTIVATION_NAMES[activation],
        "tie_weights": found.get("tie_word_embeddings", True),
        "attn_bias": found.get("npgpt_attn_bias", True),
        "head_bias": found.get("npgpt_head_bias", False),
    }
