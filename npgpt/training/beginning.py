"""What a run begins with: a request, a directory, a text, perhaps a model. The first rank of a
launcher reads it, and the others get it from there; an error of one rank is raised in all."""

import socket
from dataclasses import replace

from npgpt.checkpoints.adapter import digest, is_adapter
from npgpt.checkpoints.contents import STATE
from npgpt.checkpoints.find import find_model
from npgpt.checkpoints.models import family_in, read_values, tokenizer_of
from npgpt.checkpoints.run import RunDirectory
from npgpt.cli.bar import Bar
from npgpt.cli.options import version
from npgpt.durable import verify
from npgpt.errors import UserError
from npgpt.models.language_model import LanguageModel
from npgpt.models.trained import trained
from npgpt.parallel import world
from npgpt.text.source import load_source
from npgpt.text.tokenizer import CHARS, check_vocabulary
from npgpt.training.config import FAMILIES, FIELDS, MODEL_FIELDS

DROPOUTS = {"dropout", "embd_dropout", "attn_dropout"}


def in_first_rank(read):
    """read() -> what all ranks get, and what the first rank keeps. Calls it in the first rank only
    -> the two; the second is None in other ranks."""
    kept = None

    def make():
        nonlocal kept
        shared, kept = read()
        return shared

    shared = world().broadcast(make)
    return shared, kept


def check_same(request):
    """Raise UserError if the ranks of a launcher have different requests or versions of npgpt."""
    asked = {"config": request.config_name, "out_dir": request.out_dir, "resume": request.resume,
             "overwrite": request.overwrite, "init_from": request.init_from, **request.values}
    (this, ours), *others = world().exchange((version(), asked))
    for rank, (theirs, values) in enumerate(others, 1):
        if theirs != this:
            raise UserError(f"rank {rank} has {theirs}, and rank 0 has {this}; install the same "
                            "version on every host")
        for name in {**ours, **values}:
            found, expected = (v.get(name, getattr(FIELDS.get(name), "default", None))
                               for v in (values, ours))
            if found != expected:
                raise UserError(f"`{name}` is {found} in rank {rank}, and {expected} in rank 0; "
                                "give all ranks the same options")


def open_directory(request):
    """-> the RunDirectory of a request. The first rank holds its lock."""
    def read():
        opened = (RunDirectory.existing(request.out_dir) if request.resume else
                  RunDirectory.new(request.out_dir, request.config_name, request.overwrite))
        return opened.path, opened

    path, opened = in_first_rank(read)
    return opened or RunDirectory(path)


def load_data(config, tokenizer):
    """-> TokenSource, the same in every rank. tokenizer(): the tokenizer, as for `load_source`. The
    first rank reads and encodes the text, and a bar shows how far it is. If the ids are in a file,
    the other ranks map the one that they find at the same path."""
    def read():
        with Bar() as bar:
            source = load_source(config.data, tokenizer(), config.data_cache, bar)
        if config.tokenizer == CHARS and source.tokenizer.kind != "characters":
            raise UserError(f"{source.name} was encoded with a {source.tokenizer.kind}, and "
                            f"`tokenizer` is {CHARS}")
        return source.without_file(), source

    found, source = in_first_rank(read)
    comm, problem = world(), None
    try:
        source = source or found.with_file()
    except UserError as error:
        problem = f"rank {comm.rank} on {socket.gethostname()}: {error.message}"
    for told in comm.exchange(problem):
        if told:
            raise UserError(told)
    return source


def read_start(request):
    """-> the request for the family of the model in `init_from`, the model's configuration, its
    tokenizer, and if adapters of it are trained, its name and digest; and its parameters."""
    start = find_model(request.init_from, "init_from")
    if is_adapter(start) and request.values.get("lora_rank"):
        raise UserError(f"{start} contains adapters itself; merge them with npgpt merge "
                        "first, or continue their run with `resume`")
    found = family_in(start, LanguageModel)
    request = request.of(next(f for f in FAMILIES if FAMILIES[f] is found), start)
    architecture, values = fine_tuned(start, request)
    training = request.training()
    trained(architecture, training.lora_rank, training.freeze)  # refused before a text is read
    tokenizer = tokenizer_of(start)
    check_vocabulary(tokenizer, architecture.vocab_size, start)
    base = None
    if request.values.get("lora_rank"):
        if (start / STATE).is_file():
            request = check_run_of_base(request, start)
        here = request.init_from.exists()                  # else it is a name on Hugging Face
        base = str(start.resolve() if here else request.init_from), digest(start)
    return (request, architecture, tokenizer, base), values


def check_run_of_base(request, checkpoint):
    """-> the request, with a note that the run of this checkpoint, whose adapters are trained, may
    remove it. Raises UserError if the run that is requested would."""
    if request.out_dir and request.out_dir.resolve() == checkpoint.resolve().parent:
        raise UserError(f"the run in {request.out_dir} has the model whose adapters are trained, "
                        "which `overwrite` would remove; choose another `out_dir`")
    note = f"the adapters need {checkpoint}, which its run may remove if it is resumed"
    return replace(request, notes=[*request.notes, note])


def fine_tuned(directory, request):
    """-> configuration and parameters of a model directory, as a request asks for it: with other
    dropout rates, or with fewer positions. Raises UserError if it asks for another architecture."""
    verify(directory)
    found, values = read_values(directory, FAMILIES[request.family])
    asked = {name: value for name, value in request.chosen.items() if name in MODEL_FIELDS}
    for name, value in asked.items():
        kept = getattr(found, name)
        fits = value <= kept if name == "block_size" else name in DROPOUTS or value == kept
        if not fits:
            raise UserError(f"`{name}` is {kept} in the model in {directory}, got {value}; leave "
                            "it out")
    return changed(found, values, asked)


def saved_model(checkpoint, config, options):
    """TrainingConfig -> configuration and parameters of a checkpoint. That of adapters does not say
    what their run has changed of the model: it is in the options, name -> value."""
    found, values = read_values(checkpoint, FAMILIES[config.family], bool(config.lora_rank))
    return changed(found, values, {name: value for name, value in options.items()
                                   if config.lora_rank and hasattr(found, name)
                                   and name in DROPOUTS | {"block_size"}})


def changed(config, values, options):
    """Configuration and parameters of a model -> those with other dropout rates, or with fewer
    positions. options: name -> value."""
    config = replace(config, **options)
    return config, ((name, array[:config.block_size] if name == "wpe.weight" else array)
                    for name, array in values)
