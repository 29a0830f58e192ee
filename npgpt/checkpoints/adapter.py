"""Adapters on disk, in the format of Hugging Face's peft: adapter_config.json, which names the
base model, and adapter_model.safetensors, with A (r, I) and B (O, r) for each matrix.

peft computes x Aᵀ Bᵀ * lora_alpha / r. Here B contains that factor, and is written with lora_alpha
equal to r. The format does not tell one version of a model from another. So npgpt adds a file,
base.json with the SHA-256 of the model, and refuses another one in the same place.
"""

import hashlib
import math
import os
from pathlib import Path

import numpy as np

from npgpt.backend import to_host
from npgpt.checkpoints import hub
from npgpt.checkpoints.tensors import read_tensors, write_tensors
from npgpt.durable import SUMS, write_json
from npgpt.errors import UserError
from npgpt.models.trained import A, B, adapters
from npgpt.reading import open_regular, read_json

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
FILES = {CONFIG, WEIGHTS, BASE}
PREFIX = "base_model.model."

# Settings of peft that npgpt does not support, each with the values at which it has no effect; the
# first is the default. Initialisations that also change the base model are not among them.
FIXED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "lora_bias": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica"),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}


def is_adapter(path):
    """Whether a path is a directory of adapters."""
    return (Path(path) / CONFIG).is_file()


def write(model, folder, prefix, transposed, base):
    """Write the adapters of a model into an `atomic_directory`. prefix: of a block's names in
    transformers. transposed: whether its matrices are (in, out) there. base: the name or the path
    of the model that they change, and its `digest`."""
    name, sha256 = base
    table = adapters(model.config, model.lora_rank)
    write_json(folder / CONFIG, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": name,
        "r": model.lora_rank, "lora_alpha": model.lora_rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({name.split(".")[-2] for name in table}),
        "fan_in_fan_out": transposed, "inference_mode": True,
    })
    write_json(folder / BASE, {"sha256": sha256})
    write_tensors(folder / WEIGHTS, {f"{PREFIX}{prefix}{name}.weight": to_host(model.params[name]).T
                                     for name in table})


def read(folder, config, prefix):
    """-> name -> array, the adapters in a directory, of some or all matrices of the model with this
    configuration. Raises UserError for adapters of another model, or that npgpt does not support.
    """
    rank, scale = _read_config(folder / CONFIG)
    try:
        table = adapters(config, rank)
    except UserError as error:
        message = error.message.replace("`lora_rank`", "r")
        raise UserError(f"{folder / CONFIG}: {message}") from None
    names = {f"{PREFIX}{prefix}{name}.weight": name for name in table}
    shapes = {there: table[name].shape[::-1] for there, name in names.items()}
    tensors = read_tensors(folder / WEIGHTS, shapes, optional=set(shapes))
    found = {names[there]: array.T.astype(np.result_type(array, np.float32))
             for there, array in tensors.items()}
    modules = {name.rpartition(".")[0] for name in found}
    for module in sorted(modules):
        for kind in (A, B):
            if f"{module}.{kind}" not in found:
                raise UserError(f"{folder / WEIGHTS}: {kind} of {module} is missing")
        found[f"{module}.{B}"] *= scale
    if not found:
        raise UserError(f"{folder / WEIGHTS} has no adapters")
    return found


def base_of(folder):
    """-> the path of the model that the adapters in a directory change. Raises UserError if it is
    not there. `check_base` compares it with the one that was adapted."""
    name = _name_of_base(folder)
    path = Path(name)
    if not os.path.exists(name):             # False for a name that is too long
        missing = f"{folder / CONFIG}: the base model {name} does not exist"
        if not hub.is_name(name):
            sums = f" and delete {SUMS}" if (folder / SUMS).exists() else ""
            raise UserError(f"{missing}; if it has moved, change base_model_name_or_path{sums}")
        path = hub.download(name, missing)
    if is_adapter(path):
        raise UserError(f"{folder / CONFIG}: {name} contains adapters itself; merge them with "
                        "npgpt merge first")
    return path


def check_base(folder, path):
    """Raise UserError if the model in a path is not the one that the adapters were trained for."""
    if (folder / BASE).exists() and read_json(folder / BASE).get("sha256") != digest(path):
        raise UserError(f"{path} is not the base model of the adapters in {folder}: its SHA-256 is "
                        f"not that in {BASE}; restore that version, or change "
                        f"base_model_name_or_path in {CONFIG}")


def reference(folder):
    """-> the name and the digest of the model that the adapters in a directory change, as for
    `write`."""
    name = _name_of_base(folder)
    if (folder / BASE).exists():
        return name, read_json(folder / BASE).get("sha256")
    return name, digest(base_of(folder))


def digest(path):
    """The SHA-256 of a model: of the file, or of those in its directory that contain its weights.
    For a directory with SHA256SUMS it is that of this file."""
    files = [path] if path.is_file() else [path / SUMS] if (path / SUMS).exists() else sorted(
        path.glob("*.safetensors"))
    whole = hashlib.sha256()
    for name in files:
        with open_regular(name) as file:
            whole.update(hashlib.file_digest(file, hashlib.sha256).digest())
    return whole.hexdigest()


def _name_of_base(folder):
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{folder / CONFIG}: base_model_name_or_path must name the model that is "
                        f"adapted, got {name!r}")
    return name


def _read_config(path):
    """-> r, and the factor of B. Raises UserError for what npgpt does not support."""
    found = read_json(path)
    for name, known in FIXED.items():
        if found.get(name, known[0]) not in known:
            raise UserError(f"{path}: npgpt does not support {name} = {found[name]!r}")
    rank, alpha = found.get("r", 8), found.get("lora_alpha", 8)            # peft's defaults
    if type(rank) is not int or rank < 1:
        raise UserError(f"{path}: r must be a whole number of at least 1, got {rank!r}")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise UserError(f"{path}: lora_alpha must be a number, got {alpha!r}")
    return rank, alpha / (math.sqrt(rank) if found.get("use_rslora") is True else rank)
