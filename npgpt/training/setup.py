"""From a request to a run, new or resumed. Invalid requests are refused here, before anything is
written."""

import errno
import importlib.util
from dataclasses import replace

from npgpt.backend import get_device, problem_with_gpu
from npgpt.cli.bundle import command_line
from npgpt.errors import UserError
from npgpt.host import return_freed_memory
from npgpt.optim import AdamW, Muon, OptimizerGroup
from npgpt.parallel import (
    LARGE,
    can_fork,
    choose_ranks,
    choose_threads,
    make_communicator,
    world,
    world_on,
)
from npgpt.text.dataset import Dataset
from npgpt.text.tokenizer import check_vocabulary, named_tokenizer
from npgpt.training import estimate
from npgpt.training.beginning import (
    check_same,
    in_first_rank,
    load_data,
    open_directory,
    read_start,
    saved_model,
)
from npgpt.training.config import FAMILIES, TRAINING_FIELDS
from npgpt.training.run import Run, check_state, restore


def build_run(request):
    """Request -> Run, whose directory the caller closes. Raises UserError for an invalid request.
    Nothing is written, except for a lock on the directory if there is one. All ranks of a launcher
    call this. The first one reads what is on disk, and the others get it from there."""
    try:
        check_same(request)
        directory = open_directory(request)
        try:
            return (resumed_run if request.resume else new_run)(request, directory)
        except BaseException:
            directory.close()
            raise
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError from error
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}") from error


def new_run(request, directory):
    """-> a new Run in a directory."""
    config = request.training()
    device = get_device(config.device)
    config = supported(config, device, request)
    values = base = None                       # random ones
    if request.init_from:
        (request, architecture, tokenizer, base), values = in_first_rank(
            lambda: read_start(request))
        config = replace(config, family=request.family)
        source = load_data(config, lambda: tokenizer)
    else:
        request.model(vocab_size=1)            # what is invalid is refused before a text is read
        source = load_data(config, lambda: config.tokenizer and named_tokenizer(config.tokenizer))
        architecture = request.model(source.tokenizer.vocab_size)
    return assemble(request, config, directory, source, device, architecture, values, base)


def resumed_run(request, directory):
    """-> the Run of a directory, restored from its latest checkpoint."""
    def read():
        state, tokenizer, checkpoint = directory.load_state()
        check_state(state, checkpoint)
        return state, tokenizer, checkpoint, directory.is_finished(state["step"])

    state, tokenizer, checkpoint, is_finished = world().broadcast(read)
    request = replace(request.resumed(state["values"]), config_name=state["config_name"])
    config = request.training()
    source = load_data(config, lambda: tokenizer)
    if source.fingerprint != state["sha256"]:
        raise UserError(f"the text {source.name} is not the one that {directory.path} was trained "
                        "on; `data` takes the path of that text")
    left = config.max_iters - state["step"]
    if left < 0 or (left == 0 and is_finished):
        raise UserError(f"the run in {directory.path} has finished its {state['step']} steps; to "
                        "continue, raise `max_iters`")
    device = get_device(config.device)
    config = supported(config, device, request)
    architecture, values = in_first_rank(lambda: saved_model(checkpoint, config, request.values))
    check_vocabulary(tokenizer, architecture.vocab_size, checkpoint)
    run = assemble(request, config, directory, source, device, architecture, values,
                   state.get("base"))
    return restore(run, state, checkpoint)


def options_of_model(config, device):
    """-> how a run computes on a device, and what it trains: options of its model."""
    return {"dtype": config.dtype or device.default_dtype,
            "fused": device.fuses if config.fused is None else config.fused,
            "attention": config.attention, "recompute": config.recompute,
            "lora_rank": config.lora_rank, "freeze": config.freeze}


def assemble(request, config, directory, source, device, architecture, values, base):
    """-> the Run of a model. values: its parameters; None: random ones, or those of the first rank.
    base: as for Run."""
    data = Dataset(source, architecture.block_size, device)
    return_freed_memory()                  # what reading the text took does not count
    comm, memory = build_communicator(config, architecture, device)
    model = FAMILIES[config.family](architecture, seed=config.seed, device=device, values=values,
                                    share=comm.share, **options_of_model(config, device))
    optimizer, buffers = distribute(model, config, comm)
    notes = [*request.notes, *notes_on_workers(request, config, model)]
    if config.device == "auto" and model.device.name == "cpu" and (why := problem_with_gpu()):
        notes.append(f"on the CPU, since there is {why}")
    return Run(request.config_name, config, directory, source, data, model, optimizer, comm,
               buffers, memory, notes, base)


def distribute(model, config, comm):
    """Give all ranks the first one's parameters -> the optimiser, and for each rank the buffer of
    its gradients. The parameters are in memory that the ranks share if they can."""
    comm.same(model.params.flat)
    buffers = comm.buffers(model.params.flat[:model.params.n_trainable])
    return build_optimizer(model.params, config, comm), buffers


def build_optimizer(params, config, comm=None):
    """TrainingConfig -> the optimiser of these parameters: AdamW, or Muon for the blocks' matrices
    and AdamW for the rest. comm: as for AdamW."""
    c = config
    is_muon = c.optimizer == "muon"
    adamw = AdamW(params, c.beta1, c.beta2, c.weight_decay,
                  start=params.n_matrices if is_muon else 0, comm=comm)
    if not is_muon:
        return adamw
    muon = Muon(params, c.muon_momentum, c.weight_decay, c.muon_lr / c.learning_rate, comm)
    return OptimizerGroup([muon, adamw])


def build_communicator(config, architecture, device):
    """-> the ranks of a run, and the bytes of memory that all of them need, or each one that has
    memory of its own. Raises UserError if there is less."""
    if world().launched:
        comm = world_on(device)
        arrays = estimate.memory_needed(architecture, config, device, comm.size, separate=True)
        memory = estimate.memory_of_run(arrays, device)
        estimate.check_memory(memory, device, comm.local_size if device.name == "cpu" else 1)
        return comm, memory
    parameters = estimate.trainable(estimate.table_of(architecture, config))
    size, computing = choose_ranks(config.workers, config.batch_size, parameters, device,
                                   config.optimizer == "muon")
    arrays = estimate.memory_needed(architecture, config, device, computing)
    memory = estimate.memory_of_run(arrays, device, forked=size - 1)
    estimate.check_memory(memory, device)
    threads = None
    if device.name == "cpu" and can_fork():        # else BLAS's threads are all that uses the cores
        tokens = config.batch_size * architecture.block_size
        threads = choose_threads(computing, tokens, architecture.n_embd)
    return make_communicator(size, computing, threads), memory


def notes_on_workers(request, config, model):
    """What to tell the user about the number of processes, a list."""
    cores, asked = model.device.cores, request.asks_for("workers") and config.workers
    if not can_fork():
        size = config.workers or min(cores, config.batch_size)
        alone = model.device.name == "cpu" and not world().launched
        if alone and size > 1 and (asked or model.params.n_trainable < LARGE):
            install = "" if importlib.util.find_spec("mpi4py") else 'pip install "npgpt[mpi]" and '
            return [f"1 process, because others are forked on Linux only; to start {size}: "
                    f"{install}mpiexec -n {size} {command_line('train')}"]
    elif asked and asked > cores:
        return [f"{asked} processes share {cores} cores, and are slower than {cores}"]
    return []


def supported(config, device, request):
    """-> the configuration as this device supports it. Settings from a checkpoint of another device
    fall back to their defaults. Raises UserError for those that the request asks for."""
    if world().size > config.batch_size:
        raise UserError(f"{world().size} ranks need a `batch_size` of at least {world().size}, "
                        f"because each computes some of its sequences, got {config.batch_size}")
    if request.asks_for("workers") and config.workers and config.workers > 1:
        if world().launched:
            raise UserError("`workers` is for one machine without a launcher, and here mpiexec has "
                            "started the ranks; leave it out")
        if device.name != "cpu":
            raise UserError(f"`workers` is for a CPU, and this run is on {device.description}, got "
                            f"{config.workers}")
        if config.workers > config.batch_size:
            raise UserError(f"`workers` must be at most `batch_size`, {config.batch_size}, because "
                            f"each computes some of its sequences, got {config.workers}")
    fits = {"dtype": config.dtype in (None, *device.dtypes),
            "fused": not config.fused or device.name != "cpu"}
    for name in (name for name, fit in fits.items() if not fit):
        if request.asks_for(name):
            if name == "fused":
                raise UserError(f"`fused` needs a GPU, and this run is on {device.description}")
            raise UserError(f"`dtype` must be {' or '.join(device.dtypes)} on "
                            f"{device.description}, got {config.dtype}")
        config = replace(config, **{name: TRAINING_FIELDS[name].default})
    return config
