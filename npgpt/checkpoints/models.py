"""A model directory: config.json and model.safetensors, in the format of the model's family; or
adapters, with the path of their base model; or a GGUF file, which npgpt reads and does
not write. What is read from adapters is their base model with the adapters merged into it."""

from itertools import chain
from pathlib import Path

from npgpt.checkpoints import adapter, gguf, gpt2, llama, transformer
from npgpt.checkpoints.hugging_face import find_weights
from npgpt.checkpoints.tensors import write_tensors
from npgpt.durable import SUMS, atomic_directory, verify, write_json
from npgpt.errors import UserError
from npgpt.models.gpt import GPT
from npgpt.models.llama import Llama
from npgpt.models.trained import merged
from npgpt.models.transformer import Transformer
from npgpt.reading import read_json
from npgpt.text import tokenizer as tokenizers

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


def write_model(model, folder, tokenizer=None, base=None):
    """Write config.json and model.safetensors into an `atomic_directory`. tokenizer: the model's;
    config.json then names the tokens between which a text is. base: that of the model's adapters,
    as for `adapter.write`; then these alone are written. None: they are merged."""
    form = _format(type(model))
    if base:
        return adapter.write(model, folder, form.PREFIX, form.TRANSPOSED, base)
    model = model.merged()
    ends = {"bos_token_id": tokenizer.bos, "eos_token_id": _end(tokenizer)} if tokenizer else {}
    write_json(folder / CONFIG, form.write_config(model.config) | ends)
    write_tensors(folder / WEIGHTS, form.write_weights(model))


def load_model(path, family, **options):
    """Verify and read a model directory, or read a GGUF file -> a model of the family; of a base of
    several families, of the one that is found. options: as for a new model."""
    path = Path(path)
    if path.is_dir():
        runs = sorted(file.parent for name in (CONFIG, adapter.CONFIG)
                      for file in path.glob("checkpoint-*/" + name))
        if runs and not (path / CONFIG).exists():
            raise UserError(f"{path} is a run, not a model; its models are its checkpoints: "
                            f"{', '.join(map(str, runs))}")
        verify(path)
    elif not path.is_file():
        raise UserError(f"the model directory {path} does not exist")
    return read_model(path, family, **options)


def read_model(path, family, **options):
    """Read a GGUF file, or a directory that has been verified -> a model, as by `load_model`. With
    a `lora_rank` in the options, adapters are not merged."""
    family = family_in(path, family)
    config, values = read_values(path, family, separate=bool(options.get("lora_rank")))
    return family(config, values=values, **options)


def read_values(path, family, separate=False):
    """Read a GGUF file, or a directory that has been verified -> the configuration of its family,
    and pairs of names and NumPy arrays, the parameters. separate: adapters are not merged."""
    if path.is_file():
        return gguf.read(path)
    if adapter.is_adapter(path):
        base = adapter.base_of(path)
        adapter.check_base(path, base)
        verify(base)
        config, values = read_values(base, family)
        changes = adapter.read(path, config, _format(family_in(base, family)).PREFIX)
        return config, (chain(values, changes.items()) if separate else
                        merged(config, values, changes))
    return _format(family_in(path, family)).read(path / CONFIG, path / WEIGHTS)


def family_in(path, base):
    """-> the family of the model in a directory or in a GGUF file: base itself, or one of those
    that have it as their base. Raises UserError if it is another one."""
    if adapter.is_adapter(path):
        path = adapter.base_of(path)
    if path.is_file():
        if issubclass(base, Llama) or issubclass(Llama, base):
            return base if issubclass(base, Llama) else Llama
        raise UserError(f"{path} holds a Llama, not a {base.__name__}; npgpt.from_pretrained opens "
                        "every family")
    if _format(base):
        return base
    if not (path / CONFIG).exists():
        find_weights(path / WEIGHTS)              # says more if there is a model of its own
    found = read_json(path / CONFIG).get("model_type")
    known = {kind: family for family, form in FORMATS.items() if issubclass(family, base)
             for kind in form.MODEL_TYPES}
    if not isinstance(found, str) or found not in known:
        raise UserError(f"{path / CONFIG}: model_type is {found!r}, expected one of "
                        f"{', '.join(known)}")
    return known[found]


def tokenizer_of(path):
    """-> the tokenizer in a directory or in a GGUF file. Adapters without one have that of their
    model, and a text ends where it ends in their model. Raises UserError."""
    if not adapter.is_adapter(path):
        return tokenizers.load_tokenizer(path)
    base = adapter.base_of(path)
    if not tokenizers.holds_tokenizer(path):
        return tokenizers.load_tokenizer(base)
    tokenizer = tokenizers.load_tokenizer(path)
    ends = (tokenizers.load_tokenizer(base).ends if base.is_file() else
            tokenizers.ends_of_the_model(base, tokenizer))
    tokenizer.ends = tuple(sorted({*tokenizer.ends, *ends}))
    return tokenizer


def _end(tokenizer):
    """-> the token that ends a text, as config.json names it: a list if there are several."""
    ends = sorted(tokenizer.ends, key=lambda token: token != tokenizer.end)
    return ends if len(ends) > 1 else next(iter(ends), None)


def _format(family):
    """-> the format of a family; None for a base of several."""
    return next((FORMATS[base] for base in family.__mro__ if base in FORMATS), None)
