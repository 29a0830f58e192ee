"""What the formats of Hugging Face's model directories have in common: which file has the weights,
and what config.json may say."""

import re

import numpy as np

from npgpt.checkpoints.shards import INDEX
from npgpt.errors import UserError

ROWS = 1024     # of two matrices that are compared at a time
SHARD = r"model-\d+-of-\d+\.safetensors"

# Pattern of a file's name -> what it is, arguments with which transformers reads it.
OTHER_WEIGHTS = {
    r"model\.([\w-]+?)(?:-\d+-of-\d+)?\.safetensors": ("a variant", ", variant='{}'"),
    r"model-\d+-of-\d+\.([\w-]+)\.safetensors": ("a shard of a variant", ", variant='{}'"),
    r"pytorch_model(?:-\d+-of-\d+)?\.bin(?:\.index\.json)?": ("PyTorch's pickle format", ""),
    r"pytorch_model\.([\w-]+)\.bin": ("a variant in PyTorch's pickle format", ", variant='{}'"),
    r"tf_model\.h5": ("TensorFlow's format, which transformers 4 reads", ", from_tf=True"),
    r"flax_model\.msgpack": ("Flax's format, which transformers 4 reads", ", from_flax=True"),
}


def find_weights(path):
    """The path of model.safetensors -> the path to read: itself, or the index of several files.
    Raises UserError if the directory has the weights in another format."""
    if path.exists():                                  # of both, transformers takes the file
        return path
    if (path.parent / INDEX).exists():
        return path.parent / INDEX
    _refuse_other_weights(path.parent)
    return path


def check_type(path, found, known):
    """Raise UserError unless config.json, whose contents are `found`, is of a known model_type."""
    if found.get("model_type") not in known:
        raise UserError(f"{path}: model_type is {found.get('model_type')!r}, expected {known[0]}; "
                        "npgpt.from_pretrained opens every family")


def configuration(path, family, values, names):
    """-> the configuration of a family. names: field -> key in config.json, as errors name it.
    Raises UserError for an invalid value."""
    try:
        return family(**values)
    except UserError as error:
        message = re.sub(r"`(\w+)`", lambda field: names.get(field[1], field[1]), error.message)
        raise UserError(f"{path}: {message}") from None


def check_tied(tensors, head, table, weights_path, config_path):
    """Raise UserError if a model whose head is its table of tokens has another head as well:
    transformers uses both arrays, and so would not compute the same."""
    if head in tensors and not _equal(tensors[head], tensors[table]):
        raise UserError(f"{weights_path}: {head} differs from {table}, but {config_path} says "
                        "that they are one matrix; if both are meant, set tie_word_embeddings to "
                        "false there")


def _equal(a, b):
    """Whether two matrices are equal. In parts, because array_equal copies what is not NaN."""
    return all(np.array_equal(a[i:i + ROWS], b[i:i + ROWS], equal_nan=True)
               for i in range(0, len(a), ROWS))


def _refuse_other_weights(directory):
    """Raise UserError if the directory has the weights in a format that npgpt does not read, or
    shards without their index."""
    files = sorted(path for path in directory.iterdir() if path.is_file())   # no link to nowhere
    for path in files:
        if re.fullmatch(SHARD, path.name):
            raise UserError(f"{directory} has no model.safetensors, but {path.name} (one of "
                            f"several shards), and not their index; copy {INDEX} there too")
    for path in files:
        if path.suffix == ".gguf":
            raise UserError(f"{directory} has no model.safetensors, but {path.name}; give the path "
                            "of that file")
    for pattern, (kind, options) in OTHER_WEIGHTS.items():
        for path in files:
            match = re.fullmatch(pattern, path.name)
            if match:
                options = options.format(*match.groups())
                raise UserError(
                    f"{directory} has no model.safetensors, but {path.name} ({kind}); convert it "
                    f"with transformers: AutoModelForCausalLM.from_pretrained({str(directory)!r}"
                    f"{options}).save_pretrained('NEW')")
