"""Llama from a GGUF file. Its matrices are [out, in]; q, k and v are apart, and so are gate and up.

llama.cpp rotates the channels 2i and 2i + 1 of a head together, npgpt i and i + D/2, as Hugging
Face does. So the rows of q and k were reordered when the file was made, and are put back here.

A file that npgpt would compute differently than llama.cpp is refused.
"""

import math

import numpy as np

from npgpt.checkpoints.hugging_face import configuration
from npgpt.errors import UserError
from npgpt.gguf_file import GGUFFile
from npgpt.gguf_header import shown
from npgpt.models.llama import LlamaConfig
from npgpt.reading import require_memory

ARCHITECTURE = "llama"
TABLE, HEAD = "token_embd.weight", "output.weight"
MISSING = object()       # instead of a default

# Field of LlamaConfig -> name of the metadata after "llama.", the value if it is absent.
KEYS = {
    "block_size": ("context_length", MISSING),
    "n_layer": ("block_count", MISSING),
    "n_head": ("attention.head_count", MISSING),
    "n_kv_head": ("attention.head_count_kv", None),
    "n_embd": ("embedding_length", MISSING),
    "head_dim": ("attention.key_length", None),
    "n_inner": ("feed_forward_length", MISSING),
    "rope_theta": ("rope.freq_base", 10_000.0),
    "norm_eps": ("attention.layer_norm_rms_epsilon", MISSING),
}

# Metadata for what npgpt does not have, with the values that change nothing.
FIXED = {
    "general.type": ("model",),
    "split.count": (0, 1),
    "llama.expert_count": (0,),
    "llama.attention.sliding_window": (0,),
    "llama.attention.scale": (0.0,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
    "llama.attention.causal": (True,),
    "llama.use_parallel_residual": (False,),
    "llama.logit_scale": (0.0,),
    "llama.rope.scaling.type": ("none",),
    "llama.rope.scaling.factor": (0.0, 1.0),
    "llama.rope.scaling.attn_factor": (1.0,),
    "llama.rope.scaling.yarn_attn_factor": (1.0,),
    "llama.rope.scale_linear": (0.0, 1.0),
}

# A linear layer in a block of Llama -> the tensors that it consists of, side by side.
LINEAR = {
    "self_attn.qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "self_attn.o_proj": ("attn_output",),
    "mlp.gate_up_proj": ("ffn_gate", "ffn_up"),
    "mlp.down_proj": ("ffn_down",),
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
OTHERS = {"embed_tokens.weight": TABLE, "norm.weight": "output_norm.weight",
          "lm_head.weight": HEAD}


def read(path):
    """-> LlamaConfig, pairs of names and float32 arrays, each of which is read when it is its turn.
    Raises UserError that says what is missing, unknown, damaged or not supported."""
    file = GGUFFile(path)
    config = _read_config(file)
    _check_tensors(file, config)
    require_memory(f"{path} as float32",
                   4 * sum(math.prod(tensor.shape) for tensor in file.tensors.values()))
    return config, ((name, _array(file, config, name)) for name in config.shapes())


def _read_config(file):
    path, found, tensors = file.path, file.metadata, file.tensors
    architecture = found.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UserError(f"{path}: the architecture is {shown(architecture)}; npgpt reads "
                        f"{ARCHITECTURE}")
    for name, known in FIXED.items():
        if found.get(name, known[0]) not in known:
            raise UserError(f"{path}: npgpt does not support {name} = {shown(found[name])}")
    values = {field: _number(file, key, default) for field, (key, default) in KEYS.items()}
    if TABLE not in tensors:
        raise UserError(f"{path}: {TABLE} is missing")
    values |= {"vocab_size": tensors[TABLE].shape[0], "tie_weights": HEAD not in tensors,
               "attention_bias": _any_bias(tensors, "self_attn."),
               "mlp_bias": _any_bias(tensors, "mlp.")}
    names = {field: f"{ARCHITECTURE}.{key}" for field, (key, _) in KEYS.items()}
    config = configuration(path, LlamaConfig, values, names)
    for key, expected, meaning in (
            ("vocab_size", config.vocab_size, f"the rows of {TABLE}"),
            ("attention.value_length", config.head_dim, "as long as the keys"),
            ("rope.dimension_count", config.head_dim, "all channels of a head")):
        value = _number(file, key, expected)
        if value != expected:
            raise UserError(f"{path}: {ARCHITECTURE}.{key} must be {expected}, {meaning}, got "
                            f"{value}")
    return config


def _number(file, key, default):
    """-> the number in the metadata. Of float32 the shortest decimal number that is stored so:
    1e-05, not 9.999999747378752e-06."""
    name = f"{ARCHITECTURE}.{key}"
    value = file.metadata.get(name, default)
    if value is MISSING:
        raise UserError(f"{file.path}: {name} is missing")
    if isinstance(value, (str, list)):
        raise UserError(f"{file.path}: {name} must be a number, got {shown(value)}")
    is_single = isinstance(value, float) and abs(value) <= np.finfo(np.float32).max
    return float(str(np.float32(value))) if is_single else value


def _any_bias(tensors, layers):
    """Whether one of these linear layers has a bias in the first block."""
    return any(f"blk.0.{part}.bias" in tensors for name, parts in LINEAR.items()
               if name.startswith(layers) for part in parts)


def _check_tensors(file, config):
    """Raise UserError that names the first tensor that is missing, unknown or of another shape."""
    C, F = config.n_embd, config.n_inner
    q, kv = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    weights = {"attn_q": (q, C), "attn_k": (kv, C), "attn_v": (kv, C), "attn_output": (C, q),
               "ffn_gate": (F, C), "ffn_up": (F, C), "ffn_down": (C, F)}
    expected = {}
    for name, shape in config.shapes().items():
        for part in _parts(name):
            *_, layer, kind = part.split(".")
            weight = weights.get(layer, shape)
            expected[part] = weight[:1] if kind == "bias" else weight
    for name, shape in expected.items():
        if name not in file.tensors:
            raise UserError(f"{file.path}: {name} {shape} is missing")
        if file.tensors[name].shape != shape:
            raise UserError(f"{file.path}: {name} has the shape {file.tensors[name].shape}, "
                            f"expected {shape}")
    for name in file.tensors:
        if name not in expected:
            raise UserError(f"{file.path}: {name} is unknown")


def _parts(name):
    """The name of a parameter -> the names of the tensors that it consists of."""
    if name in OTHERS:
        return [OTHERS[name]]
    _, layer, *module, kind = name.split(".")
    module = ".".join(module)
    parts = LINEAR.get(module) or (NORMS[module],)
    return [f"blk.{layer}.{part}.{kind}" for part in parts]


def _array(file, config, name):
    """-> the parameter."""
    if name in OTHERS:
        return file.tensors[OTHERS[name]].array()
    arrays = []
    for part in _parts(name):
        array = file.tensors[part].array()                         # (out, in), or (out,)
        if ".attn_q." in part or ".attn_k." in part:
            array = _halves(array, config.head_dim)
        arrays.append(array)
    return np.concatenate(arrays).T


def _halves(array, D):
    """(heads * D, ...) with pairs of channels beside each other in a head -> with the first channel
    of each pair in its first half."""
    pairs = array.reshape(-1, D // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
