"""Models on disk: a directory in the format of Hugging Face's GPT-2, written whole or not at all.

    config.json          the architecture, under the names of transformers' GPT2Config
    model.safetensors    the parameters
    SHA256SUMS           a line for each file beside it; `sha256sum -c SHA256SUMS` checks them too

A directory is written under another name, flushed to disk and then renamed, so a reader sees the
old one or the new one and nothing between. There is no pickle here: safetensors and JSON hold data
and cannot run code.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from npgpt.backend import to_host
from npgpt.errors import UserError

CONFIG, WEIGHTS, SUMS = "config.json", "model.safetensors", "SHA256SUMS"
C_ATTN, C_ATTN_BIAS = "attn.c_attn.weight", "attn.c_attn.bias"
ACTIVATION_NAMES = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}

# What GPT-2's configuration can ask for beyond npgpt, with the values that npgpt computes.
FIXED = {
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


@contextlib.contextmanager
def atomic_directory(target):
    """A temporary directory to write into; it becomes `target` when the block ends without error.

    Raises UserError if there is a file where the directory should be.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, and a directory is to be written there")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)             # mkdtemp's is for its owner alone
        _seal(temporary)
        replaced = None
        if target.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(replaced / target.name)
        temporary.rename(target)
        _flush(target.parent)
        if replaced:
            shutil.rmtree(replaced)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path, text):
    """Replace a small file: its old text or its new one is there at any moment."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def write_tensors(path, arrays):
    """Write a mapping of names to arrays of any device as a safetensors file."""
    # safetensors writes memory as it lies, so every array must be contiguous.
    host = {name: np.ascontiguousarray(to_host(array)) for name, array in arrays.items()}
    safetensors.numpy.save_file(host, path, metadata={"format": "pt"})


def read_tensors(path, shapes, canonical=lambda name: name):
    """Read a safetensors file that must hold arrays of these shapes -> mapping name -> array.

    canonical: name in the file -> name in `shapes`, or None for an array that is not needed.
    Names, shapes and types are compared before any array is read. Raises UserError if they differ.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored = {canonical(name): name for name in file.keys() if canonical(name)}  # noqa: SIM118
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


def read_json(path):
    """Read a JSON object. Raises UserError if there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged, or no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def verify(directory):
    """Compare every file with its recorded hash. Raises UserError that names the first damaged one.
    A directory without hashes, as others write it, passes."""
    directory = Path(directory)
    if not (directory / SUMS).exists():
        return
    for line in (directory / SUMS).read_text(encoding="utf-8").splitlines():
        recorded, _, name = line.partition("  ")
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing")
        if _sha256(directory / name) != recorded:
            raise UserError(f"{directory / name} is damaged: it is not what was written")


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
    """config.json -> values for GPTConfig. Raises UserError for what npgpt does not compute."""
    found = read_json(path)
    if found.get("model_type") not in ("gpt2", "npgpt"):
        raise UserError(f"{path}: model_type is {found.get('model_type')!r}, and npgpt reads gpt2")
    for name, known in FIXED.items():
        if found.get(name, known[0]) not in known:
            raise UserError(f"{path}: npgpt has no {name} of {found[name]}")
    n_embd = found.get("n_embd", 768)
    if found.get("n_inner") not in (None, 4 * n_embd):
        raise UserError(f"{path}: n_inner is {found['n_inner']}, and npgpt has 4 * n_embd alone")
    activation = found.get("activation_function", "gelu_new")
    if activation not in ACTIVATION_NAMES:
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


def _seal(folder):
    """Record the hash of every file and flush all of it to disk."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{_sha256(path)}  {path.name}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    for path in (*files, folder / SUMS):
        path.chmod(0o644)                  # safetensors makes files for their owner alone
        _flush(path)
    _flush(folder)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path):
    """Return when a file, or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
