"""A model directory: config.json and model.safetensors, in the format of the model's family."""

from pathlib import Path

from npgpt.checkpoints import gpt2, transformer
from npgpt.checkpoints.tensors import write_tensors
from npgpt.durable import SUMS, atomic_directory, verify, write_json
from npgpt.errors import UserError
from npgpt.models.gpt import GPT
from npgpt.models.transformer import Transformer

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = {CONFIG, WEIGHTS, SUMS}
FORMATS = {GPT: gpt2, Transformer: transformer}      # family -> write_config, write_weights, read


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
    """Verify and read a model directory -> a model of the family. options: as for a new model."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"the model directory {directory} does not exist")
    runs = sorted(path.parent for path in directory.glob("checkpoint-*/" + CONFIG))
    if runs and not (directory / CONFIG).exists():
        raise UserError(f"{directory} is a run, not a model; its models are its checkpoints: "
                        f"{', '.join(map(str, runs))}")
    verify(directory)
    return read_model(directory, family, **options)


def read_model(directory, family, **options):
    """Read a model directory that has been verified -> a model of the family."""
    config, values = read_values(directory, family)
    return family(config, values=values, **options)


def read_values(directory, family):
    """Read a model directory that has been verified -> the configuration of its family, and pairs
    of names and NumPy arrays, the parameters."""
    return _format(family).read(directory / CONFIG, directory / WEIGHTS)


def _format(family):
    return next(FORMATS[base] for base in family.__mro__ if base in FORMATS)
