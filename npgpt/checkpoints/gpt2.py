"""The format of Hugging Face's GPT-2: names of transformers' GPT2Config, weights (in, out).

An option that GPT-2 does not have is converted if that is exact (attn_bias = false is stored as
zeros), and marked otherwise (head_bias = true has a model_type of its own). A file that npgpt would
compute differently than transformers is refused.
"""

import re
from dataclasses import replace

import numpy as np

from npgpt.backend import to_host
from npgpt.checkpoints.shards import INDEX
from npgpt.checkpoints.tensors import read_tensors
from npgpt.errors import UserError
from npgpt.models.gpt import GPTConfig
from npgpt.reading import read_json

ACTIVATION_NAMES = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
TABLE, HEAD = "wte.weight", "lm_head.weight"
ROWS = 1024     # of two matrices that are compared at a time

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

SHARD = r"model-\d+-of-\d+\.safetensors"

# Pattern of a file's name -> what it is, arguments with which transformers reads it.
OTHER_WEIGHTS = {
    r"model\.([\w-]+?)(?:-\d+-of-\d+)?\.safetensors": ("a variant", ", variant='{}'"),
    r"model-\d+-of-\d+\.([\w-]+)\.safetensors": ("a shard of a variant", ", variant='{}'"),
    r"pytorch_model(?:-\d+-of-\d+)?\.bin(?:\.index\.json)?": ("PyTorch's pickle format", ""),
    r"pytorch_model\.([\w-]+)\.bin": ("a variant in PyTorch's pickle format", ", variant='{}'"),
    r"(.+\.gguf)": ("GGUF", ", gguf_file='{}'"),
    r"tf_model\.h5": ("TensorFlow's format, which transformers 4 reads", ", from_tf=True"),
    r"flax_model\.msgpack": ("Flax's format, which transformers 4 reads", ", from_flax=True"),
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
    if not weights_path.exists():                      # of both, transformers takes the file
        if (weights_path.parent / INDEX).exists():
            weights_path = weights_path.parent / INDEX
        else:
            _refuse_other_weights(weights_path.parent)
    config = _read_config(config_path)
    full = replace(config, attn_bias=True)
    shapes = full.shapes()
    tensors = read_tensors(weights_path, shapes | {HEAD: shapes[TABLE]}, _canonical,
                           optional={HEAD} if config.tie_weights else ())
    # transformers uses both arrays in this case, and so would not compute the same.
    if config.tie_weights and HEAD in tensors and not _same(tensors[HEAD], tensors[TABLE]):
        raise UserError(f"{weights_path}: {HEAD} differs from {TABLE}, but {config_path} says "
                        "that they are one matrix; if both are meant, set tie_word_embeddings to "
                        "false there")
    biases = shapes.keys() - config.shapes().keys()
    if any(tensors[name].any() for name in biases):               # trained by another program
        config = full
    return config, ((name, tensors[name]) for name in config.shapes())


def _same(a, b):
    """Whether two matrices are equal. In parts, because array_equal copies what is not NaN."""
    return all(np.array_equal(a[i:i + ROWS], b[i:i + ROWS], equal_nan=True)
               for i in range(0, len(a), ROWS))


def _canonical(name):
    """A name in the file -> the parameter's, or None for the causal mask in old files."""
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    return name.removeprefix("transformer.")


def _read_config(path):
    """config.json -> GPTConfig. Raises UserError for what npgpt does not support."""
    found = read_json(path)
    if found.get("model_type") not in ("gpt2", "npgpt"):
        raise UserError(f"{path}: model_type is {found.get('model_type')!r}, expected gpt2")
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
    try:
        return GPTConfig(**values | {"activation": ACTIVATION_NAMES[activation]})
    except UserError as error:
        message = error.message
        for key, (field, _) in KEYS.items():
            message = message.replace(f"`{field}`", key)
        raise UserError(f"{path}: {message}") from None


def _refuse_other_weights(directory):
    """Raise UserError if the directory has the weights in a format that npgpt does not read, or
    shards without their index."""
    files = sorted(path for path in directory.iterdir() if path.is_file())   # no link to nowhere
    for path in files:
        if re.fullmatch(SHARD, path.name):
            raise UserError(f"{directory} has no model.safetensors, but {path.name} (one of "
                            f"several shards), and not their index; copy {INDEX} there too")
    for pattern, (kind, options) in OTHER_WEIGHTS.items():
        for path in files:
            match = re.fullmatch(pattern, path.name)
            if match:
                options = options.format(*match.groups())
                raise UserError(
                    f"{directory} has no model.safetensors, but {path.name} ({kind}); convert it "
                    f"with transformers: GPT2LMHeadModel.from_pretrained({str(directory)!r}"
                    f"{options}).save_pretrained('NEW')")
