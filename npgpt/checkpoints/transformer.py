"""The format of the original Transformer, which is npgpt's own: the fields of its configuration and
its parameters under their names. transformers does not have this architecture."""

import dataclasses

from npgpt.backend import to_host
from npgpt.checkpoints.tensors import read_tensors
from npgpt.errors import UserError
from npgpt.models.transformer import TransformerConfig
from npgpt.reading import read_json

MODEL_TYPES = ("npgpt-transformer",)
PREFIX, TRANSPOSED = "", True      # of a block's names; (in, out)


def write_config(config):
    """-> the contents of config.json."""
    return {"model_type": MODEL_TYPES[0], **dataclasses.asdict(config)}


def write_weights(model):
    """-> name in the file -> array."""
    return {name: to_host(array) for name, array in model.params.items()}


def read(config_path, weights_path):
    """-> TransformerConfig, pairs of names and arrays. Raises UserError that says what is wrong."""
    found = read_json(config_path)
    if found.pop("model_type", None) not in MODEL_TYPES:
        raise UserError(f"{config_path} does not describe an npgpt Transformer")
    names = {field.name for field in dataclasses.fields(TransformerConfig)}
    if found.keys() != names:
        different = ", ".join(sorted(found.keys() ^ names))
        raise UserError(f"{config_path} has missing or unknown keys: {different}")
    try:
        config = TransformerConfig(**found)
    except UserError as error:
        raise UserError(f"{config_path}: {error}") from None
    return config, read_tensors(weights_path, config.shapes()).items()
