"""Models on disk: a directory in the format of Hugging Face's GPT-2.

    config.json          the architecture, under the names of transformers' GPT2Config
    model.safetensors    the parameters

There is no pickle here: safetensors and JSON hold data and cannot run code. How a directory is
written whole or not at all is told in npgpt.durable.
"""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from npgpt.backend import to_host
from npgpt.durable import SUMS, read_json, verify, write_json
from npgpt.errors import RunError, UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = {CONFIG, WEIGHTS, SUMS}
C_ATTN, C_ATTN_BIAS = "attn.c_attn.weight", "attn.c_attn.bias"
ACTIVATION_NAMES = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}

# What GPT-2's configuration can ask for beyond npgpt, with the values that npgpt computes.
FIXED = {
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def write_tensors(path, arrays):
    """Write a mapping of names to arrays of any device as a safetensors file. Raises RunError if
    that fails, on a full disk say."""
    # safetensors writes memory as it lies, so every array must be contiguous.
    host = {name: np.ascontiguousarray(to_host(array)) for name, array in arrays.items()}
    try:
        safetensors.numpy.save_file(host, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise RunError(f"{path.name} cannot be written: {error}") from None


def read_tensors(path, shapes, canonical=lambda name: name):
    """Read a safetensors file that must hold arrays of these shapes -> mapping name -> array.

    canonical: name in the file -> name in `shapes`, or None for an array that is not needed.
    Names, shapes and types are compared before any array is read. Raises UserError if they differ.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored = {}
            for name in file.keys():  # noqa: SIM118
                if canonical(name) in stored:
                    raise UserError(f"{path} holds {canonical(name)} twice")
                if canonical(name):
                    stored[canonical(name)] = name
            headers = {name: file.get_slice(stored[name]) for name in stored}
            _compare(path, {name: tuple(h.get_shape()) for name, h in headers.items()}, shapes)
            for name, header in headers.items():
                if header.get_dtype() not in ("F64", "F32", "F16"):
                    raise UserError(f"{path}: {name} is of type {header.get_dtype()}, and npgpt "
                                    "reads F64, F32 and F16")
            return {name: file.get_tensor(stored[name]) for name in shapes}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged, or no safetensors file: {error}") from error
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None


def write_model(folder, model):
    """Write config.json and model.safetensors of a model that has `config` and `params`."""
    write_json(folder / CONFIG, _to_gpt2(model.config))
    tensors = {name: to_host(array) for name, array in model.params.items()}
    if not model.config.attn_bias:                     # GPT-2 has one: zeros say the same
        for name in [name for name in tensors if name.endswith(C_ATTN)]:
            tensors[name.replace(C_ATTN, C_ATTN_BIAS)] = np.zeros_like(tensors[name][0])
    write_tensors(folder / WEIGHTS, tensors)


def read_model(directory, shapes_of):
    """Read a model directory -> values for GPTConfig, pairs of names and NumPy arrays.

    shapes_of: values for GPTConfig -> the shapes to expect in the file.
    Raises UserError that says what is missing, unknown or damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"there is no model directory {directory}")
    verify(directory)
    values = _from_gpt2(directory / CONFIG)

    def canonical(name):
        name = name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")):    # the causal mask, in old files
            return None
        if name == "lm_head.weight" and values["tie_weights"]:    # wte.weight once more
            return None
        return name

    shapes = shapes_of(values | {"attn_bias": True})
    tensors = read_tensors(directory / WEIGHTS, shapes, canonical)
    if not values["attn_bias"]:
        biases = [name for name in tensors if name.endswith(C_ATTN_BIAS)]
        if any(tensors[name].any() for name in biases):           # trained since, elsewhere
            values["attn_bias"] = True
        else:
            tensors = {name: tensors[name] for name in tensors if name not in biases}
    return values, tensors.items()


def _to_gpt2(config):
    """GPTConfig -> the keys of transformers' GPT2Config."""
    plain = not config.head_bias                       # GPT-2's head has none
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


def _from_gpt2(path):
    """config.json -> values for GPTConfig. Raises UserError for what npgpt does not compute. GPT-2
    has three dropouts, which matter in training alone; resid_pdrop is taken for all."""
    found = read_json(path)
    if found.get("model_type") not in ("gpt2", "npgpt"):
        raise UserError(f"{path}: model_type is {found.get('model_type')!r}, and npgpt reads gpt2")
    for name, known in FIXED.items():
        if found.get(name, known[0]) not in known:
            raise UserError(f"{path}: npgpt has no {name} of {found[name]}")
    n_embd, n_inner = found.get("n_embd", 768), found.get("n_inner")
    if n_inner is not None and not (isinstance(n_embd, int) and n_inner == 4 * n_embd):
        raise UserError(f"{path}: n_inner is {n_inner}, and npgpt has 4 * n_embd alone")
    activation = found.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATION_NAMES:
        raise UserError(f"{path}: npgpt has no activation {activation!r}")
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


def _compare(path, found, expected):
    """Raise UserError that names the first array which is missing, unknown or misshapen."""
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{path}: {name} {shape} is missing")
        if found[name] != tuple(shape):
            raise UserError(f"{path}: {name} has the shape {found[name]}, and {shape} is expected")
    for name in found:
        if name not in expected:
            raise UserError(f"{path}: {name} is unknown")
