"""The format of Hugging Face's GPT-2: names of transformers' GPT2Config, weights (in, out).

An option that GPT-2 does not have is converted if that is exact (attn_bias = false is stored as
zeros), and marked otherwise (head_bias = true has a model_type of its own). A file that npgpt would
compute differently than transformers is refused.
"""

from dataclasses import replace

import numpy as np

from npgpt.backend import to_host
from npgpt.checkpoints.hugging_face import check_tied, check_type, configuration, find_weights
from npgpt.checkpoints.tensors import read_tensors
from npgpt.errors import UserError
from npgpt.models.gpt import GPTConfig
from npgpt.reading import read_json

MODEL_TYPES = ("gpt2", "npgpt")
PREFIX, TRANSPOSED = "transformer.", True      # of a block's names in transformers; (in, out)
ACTIVATION_NAMES = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
TABLE, HEAD = "wte.weight", "lm_head.weight"

# Key of config.json -> field of GPTConfig, value if the key is absent: GPT2Config's default.
KEYS = {
    "vocab_size": ("vocab_size", 50257),
    "n_positions": ("block_size", 1024),
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    "n_embd": ("n_embd", 768),
    "n_inner": ("n_inner", None),
    "resid_pdrop": ("dropout", 0.1),
    "embd_pdrop": ("embd_dropout", 0.1),
    "attn_pdrop": ("attn_dropout", 0.1),
    "layer_norm_epsilon": ("norm_eps", 1e-5),
    "activation_function": ("activation", "gelu_new"),
    "tie_word_embeddings": ("tie_weights", True),
    "npgpt_attn_bias": ("attn_bias", True),
    "npgpt_head_bias": ("head_bias", False),
}

# GPT2Config.attribute_map. n_ctx of older files is not in it: the length of the causal mask.
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# Options of GPT2Config that npgpt does not have, with the values that it supports.
FIXED = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, None),
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
        "n_inner": config.n_inner,
        "activation_function": "gelu_new" if config.activation == "gelu" else config.activation,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "layer_norm_epsilon": config.norm_eps,
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
    """-> GPTConfig, pairs of names and arrays, each of which is read when it is its turn. Raises
    UserError that says what is missing, unknown, damaged or not supported."""
    weights_path = find_weights(weights_path)
    config = _read_config(config_path)
    full = replace(config, attn_bias=True)
    shapes = full.shapes()
    tensors = read_tensors(weights_path, shapes | {HEAD: shapes[TABLE]}, _canonical,
                           optional={HEAD} if config.tie_weights else ())
    if config.tie_weights:
        check_tied(tensors, HEAD, TABLE, weights_path, config_path)
    biases = shapes.keys() - config.shapes().keys()
    if any(tensors[name].any() for name in biases):               # trained by another program
        config = full
    return config, ((name, tensors[name]) for name in config.shapes())


def _canonical(name):
    """A name in the file -> the parameter's, or None for the causal mask in old files."""
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    return name.removeprefix("transformer.")


def _read_config(path):
    """config.json -> GPTConfig. Raises UserError for what npgpt does not support."""
    found = read_json(path)
    check_type(path, found, MODEL_TYPES)
    for name, known in FIXED.items():
        if found.get(name, known[0]) not in known:
            raise UserError(f"{path}: npgpt does not support {name} = {found[name]}")
    for alias, name in ALIASES.items():
        if alias in found and found.setdefault(name, found[alias]) != found[alias]:
            raise UserError(f"{path}: {name} is {found[name]!r}, but {alias}, which means the "
                            f"same, is {found[alias]!r}; remove the one that is wrong")
    values = {field: found.get(key, default) for key, (field, default) in KEYS.items()}
    for name in ("embd_pdrop", "attn_pdrop"):          # in npgpt None: as the other
        if values[KEYS[name][0]] == values["dropout"]:
            values[KEYS[name][0]] = None
        elif values[KEYS[name][0]] is None:
            raise UserError(f"{path}: {name} must be a number, got None")
    activation = values["activation"]
    if not isinstance(activation, str) or activation not in ACTIVATION_NAMES:
        raise UserError(f"{path}: npgpt does not support the activation {activation!r}")
    names = {field: key for key, (field, _) in KEYS.items()}
    return configuration(path, GPTConfig, values | {"activation": ACTIVATION_NAMES[activation]},
                         names)
