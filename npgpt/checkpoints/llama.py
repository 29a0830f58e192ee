"""The formats of Hugging Face's Llama and Qwen3: names of transformers' LlamaConfig and
Qwen3Config, weights (out, in), with q, k and v in three arrays, and gate and up in two.

What npgpt does not compute is refused by name: another rotation than the default, a sliding window,
another activation, quantised weights. Qwen3 is a Llama with `qk_norm`.
"""

import numpy as np

from npgpt.backend import to_host
from npgpt.checkpoints.hugging_face import check_tied, check_type, configuration, find_weights
from npgpt.checkpoints.tensors import read_tensors
from npgpt.errors import UserError
from npgpt.models.llama import LlamaConfig
from npgpt.reading import read_json

MODEL_TYPES = ("llama", "qwen3")
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"
PREFIX, TRANSPOSED = "model.", False           # of all arrays but the head; (out, in)

# Key of config.json -> field of LlamaConfig, and the values that LlamaConfig and Qwen3Config have
# if the key is absent.
KEYS = {
    "vocab_size": ("vocab_size", 32000, 151936),
    "max_position_embeddings": ("block_size", 2048, 32768),
    "num_hidden_layers": ("n_layer", 32, 32),
    "num_attention_heads": ("n_head", 32, 32),
    "num_key_value_heads": ("n_kv_head", None, 32),
    "hidden_size": ("n_embd", 4096, 4096),
    "head_dim": ("head_dim", None, 128),
    "intermediate_size": ("n_inner", 11008, 22016),
    "attention_dropout": ("attn_dropout", 0.0, 0.0),
    "npgpt_dropout": ("dropout", 0.0, 0.0),
    "tie_word_embeddings": ("tie_weights", False, False),
    "attention_bias": ("attention_bias", False, False),
    "mlp_bias": ("mlp_bias", False, False),
    "rms_norm_eps": ("norm_eps", 1e-6, 1e-6),
}
NAMES = {field: key for key, (field, *_) in KEYS.items()} | {"qk_norm": "model_type"}
THETA = 10000.0                                # of both, if config.json does not give it

# Options that npgpt does not have, with the values that it supports; the first is the default.
FIXED = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True,),
    "use_sliding_window": (False,),
    "quantization_config": (None,),
}


def write_config(config):
    """LlamaConfig -> the keys of transformers' LlamaConfig, or Qwen3Config."""
    c = config
    family = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": c.mlp_bias}
    if c.qk_norm:
        family = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    return family | {
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.block_size,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "hidden_size": c.n_embd,
        "head_dim": c.head_dim,
        "intermediate_size": c.n_inner,
        "hidden_act": "silu",
        "attention_dropout": c.attention_dropout,
        "npgpt_dropout": c.dropout,
        "tie_word_embeddings": c.tie_weights,
        "attention_bias": c.attention_bias,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,                       # of transformers 4, and of 5
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "bos_token_id": None,
        "eos_token_id": None,
    }


def write_weights(model):
    """-> name in the file -> array."""
    tensors = {}
    for name, array in model.params.items():
        param = model.params.architecture[name]
        pieces = np.split(to_host(array), np.cumsum(param.widths)[:-1], axis=-1)
        for part, piece in zip(_names_in_file(name), pieces):
            tensors[part] = piece.T if param.group == "matrix" else piece
    return tensors


def read(config_path, weights_path):
    """-> LlamaConfig, pairs of names and arrays, each of which is read when it is its turn. Raises
    UserError that says what is missing, unknown, damaged or not supported."""
    weights_path = find_weights(weights_path)
    config = _read_config(config_path)
    architecture = config.architecture()
    shapes = {}
    for name, param in architecture.items():
        for part, width in zip(_names_in_file(name), param.widths):
            shape = (*param.shape[:-1], width)
            shapes[part] = shape[::-1] if param.group == "matrix" else shape
    table = PREFIX + TABLE
    tensors = read_tensors(weights_path, shapes | {HEAD: shapes[table]}, _canonical,
                           optional={HEAD} if config.tie_weights else ())
    if config.tie_weights:
        check_tied(tensors, HEAD, table, weights_path, config_path)

    def value(name):
        arrays = [tensors[part] for part in _names_in_file(name)]
        if architecture[name].group == "matrix":
            arrays = [array.T for array in arrays]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)

    return config, ((name, value(name)) for name in architecture)


def _names_in_file(name):
    """The name of a parameter -> the names of its parts in the file."""
    *path, layer, kind = name.split(".")
    prefix = "" if name == HEAD else PREFIX
    parts = LlamaConfig.modules.get(layer, (layer,))
    return [prefix + ".".join([*path, part, kind]) for part in parts]


def _canonical(name):
    """A name in the file -> the same with the prefix, which LlamaModel's files lack; None for the
    rotation's angles in old files."""
    if name.endswith(".rotary_emb.inv_freq"):
        return None
    return name if name == HEAD or name.startswith(PREFIX) else PREFIX + name


def _read_config(path):
    """config.json -> LlamaConfig. Raises UserError for what npgpt does not support."""
    found = read_json(path)
    check_type(path, found, MODEL_TYPES)
    is_qwen3 = found["model_type"] == "qwen3"
    for name, known in FIXED.items():
        if found.get(name, known[0]) not in known:
            raise UserError(f"{path}: npgpt does not support {name} = {found[name]!r}")
    kinds = found.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise UserError(f"{path}: npgpt does not support layer_types = {kinds!r}")
    if is_qwen3:
        found.pop("mlp_bias", None)                    # it has none
    values = {field: found.get(key, defaults[is_qwen3]) for key, (field, *defaults) in KEYS.items()}
    if values["attn_dropout"] is None:
        values["attn_dropout"] = 0.0
    if values["attn_dropout"] == values["dropout"]:
        values["attn_dropout"] = None                  # in npgpt: as the other
    values |= {"qk_norm": is_qwen3, "rope_theta": _theta(path, found)}
    return configuration(path, LlamaConfig, values, NAMES)


def _theta(path, found):
    """The base of the rotation's angles, in either spelling. Raises UserError for another rotation
    than the default."""
    theta = found.get("rope_theta")
    if found.get("rope_scaling") and found.get("rope_parameters"):
        raise UserError(f"{path}: rope_scaling and rope_parameters are both given; remove the one "
                        "that is wrong")
    for name in ("rope_scaling", "rope_parameters"):
        rotation = found.get(name) or {}
        if not isinstance(rotation, dict):
            raise UserError(f"{path}: {name} must be an object, got {rotation!r}")
        kind = rotation.get("rope_type", rotation.get("type", "default"))
        if kind != "default":
            raise UserError(f"{path}: npgpt does not support the rotation rope_type = {kind!r}")
        if rotation.get("partial_rotary_factor", 1) != 1:
            raise UserError(f"{path}: npgpt does not support partial_rotary_factor = "
                            f"{rotation['partial_rotary_factor']!r}")
        given = rotation.get("rope_theta")
        if given is not None and theta not in (None, given):
            raise UserError(f"{path}: rope_theta is {theta!r}, but {given!r} in {name}; remove the "
                            "one that is wrong")
        theta = theta if given is None else given
    return THETA if theta is None else theta
