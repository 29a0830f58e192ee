"""From a command line to everything that training works with: new, or restored from a checkpoint.

All that can be wrong with a request is found here, before anything is written.
"""

import math
from dataclasses import dataclass, replace

from npgpt.backend import Device, get_device
from npgpt.errors import UserError
from npgpt.models.checkpoint import read_tensors
from npgpt.models.gpt import GPT
from npgpt.text.data import Dataset, Text, load_text
from npgpt.training import estimate
from npgpt.training.config import TrainingConfig, read_command_line
from npgpt.training.optim import AdamW
from npgpt.training.run import TENSORS, Run

FORMAT = 1     # of training.json


@dataclass
class Training:
    """A run while it runs: what it works with, and how far it has come."""

    config_name: str
    config: TrainingConfig
    run: Run
    text: Text
    data: Dataset
    model: GPT
    optimizer: AdamW
    step: int = 0                        # steps done
    seconds: float = 0.0                 # spent on them
    best_val_loss: float = math.inf      # nats per token

    @property
    def device(self) -> Device:
        """Where all of it is."""
        return self.model.device

    def facts(self):
        """name -> text: what a person wants to know before it starts."""
        model, c = self.model.config, self.config
        tokens = c.batch_size * c.grad_accum * model.block_size
        trial = estimate.step_seconds(self.model, self.data, c.batch_size)
        left = estimate.run_seconds(trial, c, self.step)
        note = {"note": self.text.note} if self.text.note else {}
        return note | {
            "npgpt": f"config {self.config_name} on {self.device.description}",
            "data": f"{self.text.name}: {len(self.text.text):,} characters, "
                    f"{model.vocab_size} of them distinct",
            "sha256": self.text.sha256,
            "model": f"{self.model.params.flat.size:,} parameters: layers {model.n_layer}, heads "
                     f"{model.n_head}, channels {model.n_embd}, context {model.block_size}",
            "memory": f"about {estimate.size(estimate.memory_needed(model, c))}",
            "time": f"about {estimate.duration(left)} for {c.max_iters - self.step:,} steps "
                    f"of {tokens:,} tokens",
            "writes": str(self.run.path),
        }

    def save(self, is_best=False):
        """Write a checkpoint of this moment."""
        values = vars(self.config) | vars(self.model.config) | {"data": self.text.name}
        del values["vocab_size"]                     # the tokenizer says it
        self.run.save(self.model, self.data.tokenizer, self.optimizer, is_best=is_best, state={
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "best_val_loss": self.best_val_loss,
            "config_name": self.config_name,
            "sha256": self.text.sha256,
            "values": values,
        })


def prepare(arguments, default_config):
    """Command line, as words -> Training. default_config: as for read_command_line.

    Raises UserError for whatever cannot be; nothing is written."""
    request = read_command_line(arguments, default_config)
    return _resumed(request) if request.resume else _new(request)


def _new(request):
    config = request.training()
    architecture = request.model(vocab_size=1)              # the text tells how many there are
    device = get_device(config.device)
    text = load_text(config.data)
    data = Dataset(text.text, architecture.block_size, device)
    architecture = replace(architecture, vocab_size=data.tokenizer.vocab_size)
    estimate.check_memory(estimate.memory_needed(architecture, config), device)
    run = Run.new(request.out_dir, request.config_name, request.overwrite)
    model = GPT(architecture, seed=config.seed, device=device)
    return Training(request.config_name, config, run, text, data, model, _optimizer(model, config))


def _resumed(request):
    run = Run.existing(request.out_dir)
    state, tokenizer, checkpoint = run.load_state()
    try:
        if state["format"] > FORMAT:
            raise UserError(f"{checkpoint} was written by a newer npgpt; update this one")
        request = request.resumed(state["values"])
        config = request.training()
        text = load_text(config.data)
        if text.sha256 != state["sha256"]:
            raise UserError(f"the text {text.name} is not the one that {run.path} was trained on")
        if state["step"] >= config.max_iters:
            raise UserError(f"the run in {run.path} has done its {state['step']} steps; a larger "
                            "--max-iters goes on")
        progress = state["config_name"], state["step"], state["seconds"], state["best_val_loss"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{checkpoint} is damaged: its training.json lacks {error}") from error

    device = get_device(config.device)
    model = GPT.from_pretrained(checkpoint, device=device)
    estimate.check_memory(estimate.memory_needed(model.config, config), device)
    data = Dataset(text.text, model.config.block_size, device, tokenizer)
    optimizer = _optimizer(model, config)
    shapes = {name: array.shape for name, array in optimizer.state.items()}
    for name, value in read_tensors(checkpoint / TENSORS, shapes).items():
        optimizer.state[name][...] = device.to_device(value)
    name, *done = progress
    return Training(name, config, run, text, data, model, optimizer, *done)


def _optimizer(model, config):
    return AdamW(model.params, model.device, config.beta1, config.beta2, config.weight_decay)
