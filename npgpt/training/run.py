"""A training run, and how to save it to a checkpoint and restore it."""

import errno
import math
from contextlib import contextmanager
from dataclasses import dataclass

from npgpt.checkpoints.run import TENSORS, RunDirectory
from npgpt.checkpoints.tensors import Parts, read_tensors
from npgpt.errors import RunError, UserError
from npgpt.models.model import Model
from npgpt.optim import Optimizer, OptimizerGroup
from npgpt.parallel import Communicator
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource
from npgpt.training.config import FAMILY_FIELDS, TRAINING_FIELDS, TrainingConfig

FORMAT = 1     # the version of training.json; older files may lack these values:
ADDED = {"fused", "workers", "hold", "decay", "muon_lr", "muon_momentum", "tokenizer", "data_cache",
         "final_windows", "n_inner", "embd_dropout", "attn_dropout", "norm_eps", "family",
         "attention", "recompute", "lora_rank", "freeze"}


@dataclass
class Run:
    """A training run."""

    config_name: str
    config: TrainingConfig
    directory: RunDirectory
    source: TokenSource
    data: Dataset
    model: Model
    optimizer: Optimizer | OptimizerGroup
    comm: Communicator
    buffers: list                        # rank -> the buffer of its gradients
    memory: int                          # bytes that it is expected to need, for the header
    notes: list[str]                     # for the header
    base: tuple[str, str] | None = None  # name and digest of the base model of its adapters
    step: int = 0                        # steps done
    seconds: float = 0.0                 # spent on them
    best_val_loss: float = math.inf      # nats per token
    saved_step: int | None = None        # of the latest checkpoint
    evaluated_step: int | None = None    # of the latest evaluation

    @property
    def evaluation_is_due(self):
        """Whether the evaluation of this step has not been made yet."""
        c = self.config
        return self.step != self.evaluated_step and (
            self.step % c.eval_interval == 0 or self.step == c.max_iters)

    @property
    def kept(self):
        """Which checkpoint remains, as text; before the first one, that of a run to overwrite."""
        if not self.directory.holds_a_run():
            return "there is no checkpoint yet"
        try:
            return f"{self.directory.checkpoint('latest')} is complete"
        except UserError as error:               # somebody else has written there
            return error.message

    @property
    def best(self):
        """The path of the best checkpoint. Raises RunError if it is damaged by now."""
        try:
            return self.directory.checkpoint("best")
        except UserError as error:
            raise RunError(error.message) from error


def save(run, val_loss=math.inf):
    """Write a checkpoint; it is the best one if the validation loss is below all before. All ranks
    call it, and the first one writes."""
    run.best_val_loss = min(val_loss, run.best_val_loss)
    state = {name: Parts(shape, array.dtype, run.comm.collect(array, slices))
             for name, (shape, array, slices) in sorted(run.optimizer.whole_state.items())}
    if run.comm.is_first:
        with failing_write(run, f"the checkpoint of step {run.step}"):
            _write(run, state)
    run.saved_step = run.step


@contextmanager
def failing_write(run, what):
    """Context manager: an error of writing `what` becomes a RunError that says what is kept."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError from error
        raise RunError(f"{what} cannot be written to {run.directory.path}: "
                       f"{error.strerror or error}; {run.kept}") from error
    except RunError as error:
        raise RunError(f"{error.message}; {run.kept}") from error


def _write(run, tensors):
    values = vars(run.config) | vars(run.model.config) | {"data": run.source.name}
    del values["vocab_size"]                     # it follows from the tokenizer
    state = {
        "format": FORMAT,
        "step": run.step,
        "evaluated_step": run.evaluated_step,
        "seconds": run.seconds,
        "best_val_loss": None if math.isinf(run.best_val_loss) else run.best_val_loss,
        "config_name": run.config_name,
        "sha256": run.source.fingerprint,
        "values": values,
    }
    run.directory.save(run.model, run.source.tokenizer, tensors, state, run.base)


def restore(run, state, checkpoint):
    """Restore a checkpoint into a new run. state: as `RunDirectory.load_state` returns it."""
    shapes = {name: shape for name, (shape, *_) in run.optimizer.whole_state.items()}
    tensors = read_tensors(checkpoint / TENSORS, shapes) if run.comm.is_first else None
    run.optimizer.load_state(tensors, state["step"])
    run.step = run.saved_step = state["step"]
    run.evaluated_step = state.get("evaluated_step", run.step)
    run.seconds = state["seconds"]
    run.best_val_loss = state["best_val_loss"]
    return run


def check_state(state, checkpoint):
    """Raise UserError if training.json lacks something that a resumed run needs."""
    kinds = {"format": int, "step": int, "seconds": (int, float), "values": dict, "sha256": str,
             "config_name": str}
    for name, kind in kinds.items():
        if not isinstance(state.get(name), kind):
            raise UserError(f"{checkpoint / 'training.json'} is damaged: {name} is "
                            f"{state.get(name)!r}")
    if state["format"] > FORMAT:
        raise UserError(f"{checkpoint} was written by a newer version of npgpt; update npgpt")
    family = state["values"].get("family", "gpt")
    if not isinstance(family, str) or family not in FAMILY_FIELDS:
        raise UserError(f"{checkpoint / 'training.json'} is damaged: family is {family!r}")
    fields = FAMILY_FIELDS[family] | TRAINING_FIELDS
    if state["step"] < 1 or not state["values"].keys() >= fields.keys() - ADDED:
        raise UserError(f"{checkpoint / 'training.json'} is damaged: values are missing")
