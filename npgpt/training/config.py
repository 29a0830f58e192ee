"""The configuration of a training run. `TrainingConfig` says how to train, the configuration of a
family of models what."""

import dataclasses
from dataclasses import dataclass

from npgpt.cli.fields import data_cache_field, device_field, dtype_field
from npgpt.cli.options import Options, option
from npgpt.errors import UserError
from npgpt.models.gpt import GPT
from npgpt.models.llama import Llama
from npgpt.models.model import ATTENTION
from npgpt.models.trained import FREEZE

FAMILIES = {"gpt": GPT, "llama": Llama}


@dataclass(frozen=True)
class TrainingConfig(Options):
    """How to train. Tokens in a step: batch_size * grad_accum * block_size.

    Raises UserError, a ValueError, for an invalid value and for values that contradict each other.
    """

    family: str = option("gpt", "the architecture: GPT-2's, or Llama's", choices=tuple(FAMILIES))
    batch_size: int = option(12, "sequences in a batch", at_least=1, at_most=10**6)
    grad_accum: int = option(1, "batches per step, whose gradients are summed", at_least=1,
                             at_most=10**5)
    max_iters: int = option(2000, "training steps", at_least=1, at_most=10**8)
    learning_rate: float = option(1e-3, "AdamW's peak learning rate", above=0, at_most=100)
    muon_lr: float = option(0.03, "Muon's peak learning rate; it follows AdamW's schedule", above=0,
                            at_most=100)
    muon_momentum: float = option(0.95, "Muon's momentum", at_least=0, below=1)
    min_lr: float = option(1e-4, "AdamW's learning rate after the decay", at_least=0)
    hold: float = option(0.0, "when the decay starts, as a fraction of `lr_decay_iters`; 0: after "
                         "the warm-up", at_least=0, at_most=1)
    decay: str = option("cosine", "shape of the decay", choices=("cosine", "linear"))
    warmup_iters: int | None = option(
        None, "steps of linear warm-up (default: a twentieth of `lr_decay_iters`, at most 100)",
        at_least=0,
    )
    lr_decay_iters: int | None = option(
        None, "step at which the decay ends (default: `max_iters`)", at_least=1
    )
    weight_decay: float = option(0.1, "weight decay of matrices and embeddings", at_least=0,
                                 at_most=100)
    beta1: float = option(0.9, "AdamW's decay rate of the first moment", at_least=0, below=1)
    beta2: float = option(0.99, "AdamW's decay rate of the second moment", at_least=0, below=1)
    grad_clip: float = option(1.0, "largest norm of the gradients; larger ones are scaled down to "
                              "it (0: no clipping)", at_least=0)
    optimizer: str = option("adamw", "with muon, Muon updates the blocks' matrices and AdamW the "
                            "other parameters", choices=("adamw", "muon"))
    eval_interval: int = option(250, "steps between evaluations, each with a checkpoint",
                                at_least=1)
    eval_iters: int = option(20, "batches of each split in an evaluation", at_least=1,
                             at_most=10**6)
    final_windows: int = option(10_000, "windows of the validation split in the last evaluation, "
                                "evenly spaced; 0: all", at_least=0)
    log_interval: int = option(10, "steps between lines of metrics.jsonl", at_least=1)
    seed: int = option(1337, "seed of the initial weights, the batches and dropout", at_least=0,
                       at_most=2**63 - 1)
    data: str | None = option(None, "shakespeare, pydocs, a text in UTF-8, a directory or a "
                              "pattern of texts, or a token file (default: shakespeare, or pydocs "
                              "if it cannot be downloaded)", metavar="PATH")
    tokenizer: str | None = option(None, "chars, or the directory of a byte-level BPE (default: "
                                   "that of a token file or of `init_from`, else chars)",
                                   metavar="DIR")
    data_cache: str = data_cache_field()
    device: str = device_field()
    dtype: str | None = dtype_field()
    workers: int | None = option(
        None, "processes on a CPU (default: one per core; for a large model only one computes, "
        "with BLAS's threads, and the others only update)", at_least=1, at_most=1000
    )
    fused: bool | None = option(None, "the fused kernels, on a GPU (default: yes)")
    attention: str = option("auto", "plain, with all scores in memory, or tiled; auto: tiled on a "
                            "CPU if `block_size` is 512 or more", choices=ATTENTION)
    recompute: bool = option(False, "compute each block again in the backward, to use less memory")
    lora_rank: int = option(0, "with `init_from`: train adapters of this rank, LoRA, and nothing "
                            "else; 0: train the model itself", at_least=0, at_most=10**5)
    freeze: str = option("nothing", "what is not trained; embeddings: these and the head",
                         choices=FREEZE)

    def __post_init__(self):
        super().__post_init__()
        if self.lr_decay_iters is None:
            object.__setattr__(self, "lr_decay_iters", self.max_iters)
        if self.warmup_iters is None:
            object.__setattr__(self, "warmup_iters", min(100, self.lr_decay_iters // 20))
        for name, highest in (("min_lr", "learning_rate"), ("warmup_iters", "lr_decay_iters")):
            value, limit = getattr(self, name), getattr(self, highest)
            if value > limit:
                raise UserError(f"`{name}` must be at most `{highest}`, which is {limit}, got "
                                f"{value}")


# Options that may change when a run is resumed; `data` too, because the text has a SHA-256.
RESUMABLE = {"data", "data_cache", "max_iters", "eval_interval", "eval_iters", "final_windows",
             "log_interval", "device", "dtype", "fused", "workers", "attention", "recompute"}
FAMILY_FIELDS = {                    # family -> name -> field; a name means the same in all
    family: {f.name: f for f in dataclasses.fields(model.Config) if f.name != "vocab_size"}
    for family, model in FAMILIES.items()}
MODEL_FIELDS = FAMILY_FIELDS["llama"] | FAMILY_FIELDS["gpt"]
TRAINING_FIELDS = {f.name: f for f in dataclasses.fields(TrainingConfig)}
FIELDS = MODEL_FIELDS | TRAINING_FIELDS
