"""From a command line to everything that training works with: new, or restored from a checkpoint.

All that can be wrong with a request is found here, before anything is written.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from npgpt.backend import Device, get_device
from npgpt.checkpoints.gpt2 import read_tensors
from npgpt.checkpoints.run import TENSORS, RunDirectory
from npgpt.errors import UserError
from npgpt.layers import LAYERS
from npgpt.models.gpt import GPT
from npgpt.models.parameters import Parameters, count
from npgpt.optim.optim import AdamW, Muon
from npgpt.parallel import ranks
from npgpt.text.data import Dataset, Text, load_text
from npgpt.training import estimate
from npgpt.training.config import FIELDS, TRAINING_FIELDS, TrainingConfig
from npgpt.training.request import read_command_line

FORMAT = 1     # of training.json, whose first files lack these values:
ADDED = {"fused", "workers", "hold", "decay", "muon_lr", "muon_momentum"}


@dataclass
class Training:
    """A run while it runs: what it works with, and how far it has come."""

    config_name: str
    config: TrainingConfig
    directory: RunDirectory
    text: Text
    data: Dataset
    model: GPT
    ranks: ranks.Alone                   # who else trains it
    grads_of: list[Parameters]           # of each rank that computes, for the latest batch
    optimizers: list                     # each moves some of the parameters
    step: int = 0                        # steps done
    seconds: float = 0.0                 # spent on them
    best_val_loss: float = math.inf      # nats per token

    saved_step: int | None = None        # of the latest checkpoint

    @property
    def grads(self):
        """The gradients of this rank, if it computes; the first one's become those of all."""
        return self.grads_of[self.ranks.rank]

    @property
    def is_first(self):
        """Whether this is the rank that a person sees and that writes."""
        return self.ranks.rank == 0

    @cached_property
    def shares(self):
        """For each optimiser, the slices of the flat buffer that this rank moves."""
        return [optimizer.share(self.model.params, self.ranks.rank, self.ranks.size)
                for optimizer in self.optimizers]

    @property
    def device(self) -> Device:
        """Where all of it is."""
        return self.model.device

    @property
    def tokens_in_step(self):
        """How many tokens each step learns from."""
        return self.config.batch_size * self.config.grad_accum * self.data.block_size

    def facts(self):
        """name -> text: what a person wants to know before it starts."""
        model, c = self.model.config, self.config
        start, stop = self.ranks.rows(c.batch_size)
        memory = estimate.memory_needed(model, c, self.device, self.ranks.computing)
        trial = (estimate.step_seconds(self.model, self.data, stop - start, self.grads)
                 if self.ranks.computes else 0.0)
        left = estimate.run_seconds(trial, c, self.step)
        note = {"note": self.text.note} if self.text.note else {}
        return note | {
            "npgpt": f"config {self.config_name} on {self.device.description}, "
                     f"{c.dtype or self.device.default_dtype}"
                     + (self.ranks.description and f", {self.ranks.description}"),
            "data": f"{self.text.name}: {len(self.text.text):,} characters, "
                    f"{model.vocab_size} of them distinct",
            "sha256": self.text.sha256,
            "model": f"{self.model.params.flat.size:,} parameters: layers {model.n_layer}, "
                     f"heads {model.n_head}, channels {model.n_embd}, context {model.block_size}",
            "memory": f"about {estimate.size(memory)}",
            "time": f"about {estimate.duration(left)} for {c.max_iters - self.step:,} steps "
                    f"of {self.tokens_in_step:,} tokens",
            "writes": str(self.directory.path),
        }

    def log(self, **values):
        """A line of metrics.jsonl."""
        if self.is_first:
            self.directory.log(**values)

    def save(self, is_best=False):
        """Write a checkpoint of this moment."""
        self.saved_step = self.step
        if not self.is_first:
            return
        values = vars(self.config) | vars(self.model.config) | {"data": self.text.name}
        del values["vocab_size"]                     # the tokenizer says it
        state = {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "best_val_loss": None if math.isinf(self.best_val_loss) else self.best_val_loss,
            "config_name": self.config_name,
            "sha256": self.text.sha256,
            "values": values,
        }
        tensors = {n: array for o in self.optimizers for n, array in o.state.items()}
        self.directory.save(self.model, self.data.tokenizer, tensors, state, is_best=is_best)

    def checkpoints(self):
        """What is kept so far, in words."""
        return "there is no checkpoint yet" if self.saved_step is None else (
            f"{self.directory.checkpoint('latest')} is whole")


def prepare(arguments, default_config):
    """Command line, as words -> Training. default_config: as for read_command_line.

    Raises UserError for whatever cannot be; nothing is written."""
    request = read_command_line(arguments, default_config)
    try:
        return _resumed(request) if request.resume else _new(request)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


def _new(request):
    device, config = _device(request, request.training())
    architecture = request.model(vocab_size=1)              # the text tells how many there are
    text = load_text(config.data)
    data = Dataset(text.text, architecture.block_size, device)
    architecture = replace(architecture, vocab_size=data.tokenizer.vocab_size)
    team = _team(config, architecture, device)
    directory = RunDirectory.new(request.out_dir, request.config_name, request.overwrite)
    model = GPT(architecture, seed=config.seed, device=device)
    return Training(request.config_name, config, directory, text, data, model, team,
                    *share_out(model, config, team))


def _resumed(request):
    directory = RunDirectory.existing(request.out_dir)
    state, tokenizer, checkpoint = directory.load_state()
    _check_state(state, checkpoint)
    request = request.resumed(state["values"])
    config = request.training()
    text = load_text(config.data)
    if text.sha256 != state["sha256"]:
        raise UserError(f"the text {text.name} is not the one that {directory.path} was trained on")
    if state["step"] >= config.max_iters:
        raise UserError(f"the run in {directory.path} has done its {state['step']} steps; a larger "
                        "--max-iters goes on")

    device, config = _device(request, config)
    model = GPT.from_pretrained(checkpoint, device=device)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"the tokenizer and the model in {checkpoint} do not fit each other")
    team = _team(config, model.config, device)
    data = Dataset(text.text, model.config.block_size, device, tokenizer)
    grads_of, optimizers = share_out(model, config, team)
    tensors = {name: array for o in optimizers for name, array in o.state.items()}
    shapes = {name: array.shape for name, array in tensors.items()}
    for name, value in read_tensors(checkpoint / TENSORS, shapes).items():
        tensors[name][...] = device.to_device(value)
    best = state["best_val_loss"]
    return Training(state["config_name"], config, directory, text, data, model, team, grads_of,
                    optimizers, state["step"], state["seconds"], math.inf if best is None else best,
                    state["step"])


def _device(request, config):
    """-> the device, set to compute as the configuration says, and the configuration. What comes
    from a checkpoint and this device cannot do, since it was another one then, is left out."""
    device = get_device(config.device)
    fits = {"dtype": config.dtype in (None, *device.dtypes),
            "fused": not config.fused or device.name != "cpu"}
    for name in (name for name, fit in fits.items() if not fit):
        if not request.resume or name in request.flags:
            asked = "--fused" if name == "fused" else f"--dtype {config.dtype}"
            instead = ("; --device gpu says what a GPU lacks" if device.name == "cpu"
                       else f", but {', '.join(device.dtypes)}")
            raise UserError(f"{asked} cannot be had on {device.description}{instead}")
        config = replace(config, **{name: TRAINING_FIELDS[name].default})

    return compute_with(device, config.dtype or device.default_dtype, config.fused), config


def compute_with(device, dtype, fused):
    """The device, set to take float32 arrays through a precision of its own, and through fused
    kernels or the layers' plain code, whatever it was set to before. float64 stays what it is."""
    for function in (function for pair in LAYERS.values() for function in pair):
        for kind in device.arrays:
            function.register(kind, function.dispatch(object))        # the plain one
    device.compute_in(dtype)
    if dtype == "bfloat16":
        from npgpt.kernels import bfloat16
        bfloat16.install(device)
    if fused:
        from npgpt import kernels
        kernels.install(device)
    return device


def _team(config, architecture, device):
    """The ranks that a run gets. Raises UserError if there is not the memory for what they do."""
    team = ranks.make(*ranks.choose(config.workers, config.batch_size, count(architecture.shapes()),
                                    device, config.optimizer == "muon"))
    estimate.check_memory(
        estimate.memory_needed(architecture, config, device, team.computing), device)
    return team


def share_out(model, config, team):
    """What training needs beside a model -> gradients of each rank that computes, optimisers: with
    all that the ranks write to where every rank sees it, the parameters too."""
    device = model.device
    model.params = params = model.params.on(team.shared(model.params.flat))
    grads_of = [params.on(team.shared(device.xp.zeros(params.flat.size, params.flat.dtype)))
                for _ in range(team.computing)]
    adamw = AdamW(params, device, config.beta1, config.beta2, config.weight_decay,
                  start=params.n_matrices if config.optimizer == "muon" else 0)
    adamw.m, adamw.v = team.shared(adamw.m), team.shared(adamw.v)
    if config.optimizer == "adamw":
        return grads_of, [adamw]
    muon = Muon(params, device, config.muon_momentum, config.weight_decay,
                config.muon_lr / config.learning_rate)
    muon.m = team.shared(muon.m)
    return grads_of, [muon, adamw]


def _check_state(state, checkpoint):
    """Raise UserError if training.json does not say what a run needs to go on."""
    kinds = {"format": int, "step": int, "seconds": (int, float), "values": dict, "sha256": str,
             "best_val_loss": (int, float, type(None)), "config_name": str}
    for name, kind in kinds.items():
        if not isinstance(state.get(name), kind):
            raise UserError(f"{checkpoint / 'training.json'} is damaged: {name} is "
                            f"{state.get(name)!r}")
    if state["format"] > FORMAT:
        raise UserError(f"{checkpoint} was written by a newer npgpt; update this one")
    if state["step"] < 1 or not state["values"].keys() >= FIELDS.keys() - ADDED:
        raise UserError(f"{checkpoint / 'training.json'} is damaged: values are missing")
