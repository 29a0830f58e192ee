"""A model directory: config.json and model.safetensors, in the format of the model's family; or a
GGUF file, which npgpt reads and does not write."""

from pathlib import Path

from npgpt.checkpoints import gguf, gpt2, llama, transformer
from npgpt.checkpoints.hugging_face import find_weights
from npgpt.checkpoints.tensors import write_tensors
from npgpt.durable import SUMS, atomic_directory, verify, write_json
from npgpt.errors import UserError
from npgpt.models.gpt import GPT
from npgpt.models.llama import Llama
from npgpt.models.transformer import Transformer
from npgpt.reading import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = {CONFIG, WEIGHTS, SUMS}
FORMATS = {      # family -> MODEL_TYPES, write_config, write_weights, read
    GPT: gpt2,
    Llama: llama,
    Transformer: transformer,
}


def save_model(model, directory):
    """Write a model directory atomically. Raises UserError if it contains other files."""
    with atomic_directory(directory, FILES) as folder:
        write_model(model, folder)


def write_model(model, folder, end=None):
    """Write config.json and model.safetensors into an `atomic_directory`. end: the end-of-text
    token, at which transformers stops generating."""
    form = _format(type(model))
    ends = {} if end is None else {"bos_token_id": end, "eos_token_id": end}
    write_json(folder / CONFIG, form.write_config(model.config) | ends)
    write_tensors(folder / WEIGHTS, form.write_weights(model))


def load_model(directory, family, **options):
    """Verify and read a model directory, or a GGUF file -> a model of the family; of a base of
    several families, of the one that config.json names. options: as for a new model."""
    directory = Path(directory)
    if directory.is_file():
        return _load_file(directory, family, **options)
    if not directory.is_dir():
        raise UserError(f"the model directory {directory} does not exist")
    runs = sorted(path.parent for path in directory.glob("checkpoint-*/" + CONFIG))
    if runs and not (directory / CONFIG).exists():
        raise UserError(f"{directory} is a run, not a model; its models are its checkpoints: "
                        f"{', '.join(map(str, runs))}")
    verify(directory)
    return read_model(directory, family, **options)


def _load_file(path, family, **options):
    """Read a GGUF file -> a Llama. Raises UserError unless the family is Llama or a base of it."""
    if not issubclass(Llama, family) and not issubclass(family, Llama):
        raise UserError(f"{path} is a file, and not the directory of a {family.__name__}")
    config, values = gguf.read(path)
    return (family if issubclass(family, Llama) else Llama)(config, values=values, **options)


def read_model(directory, family, **options):
    """Read a model directory that has been verified -> a model, as by `load_model`."""
    family = family_in(directory, family)
    config, values = _format(family).read(directory / CONFIG, directory / WEIGHTS)
    return family(config, values=values, **options)


def read_values(directory, family):
    """Read a model directory that has been verified -> the configuration of its family, and pairs
    of names and NumPy arrays, the parameters."""
    return _format(family_in(directory, family)).read(directory / CONFIG, directory / WEIGHTS)


def family_in(directory, base):
    """-> the family of the model in a directory: base itself, or one of those that have it as their
    base. Raises UserError if config.json names another one."""
    if _format(base):
        return base
    if not (directory / CONFIG).exists():
        find_weights(directory / WEIGHTS)              # says more if there is a model of its own
    found = read_json(directory / CONFIG).get("model_type")
    known = {kind: family for family, form in FORMATS.items() if issubclass(family, base)
             for kind in form.MODEL_TYPES}
    if not isinstance(found, str) or found not in known:
        raise UserError(f"{directory / CONFIG}: model_type is {found!r}, expected one of "
                        f"{', '.join(known)}")
    return known[found]


def _format(family):
    """-> the format of a family; None for a base of several."""
    return next((FORMATS[base] for base in family.__mro__ if base in FORMATS), None)
