"""The configuration of a training run: laptop's values, then those of a TOML file, then flags.

`TrainingConfig` says how to train, `GPTConfig` what; every field of both is a flag with the same
name and a key of a TOML file. A resumed run takes its configuration from the checkpoint.
"""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path

from npgpt.cli.bundle import bundled
from npgpt.cli.options import Options, Parser, checked, describe, flag, option, suggestion
from npgpt.errors import UserError
from npgpt.models.gpt import GPTConfig


@dataclass(frozen=True)
class TrainingConfig(Options):
    """How to train. Tokens in a step: batch_size * grad_accum * block_size.

    Raises UserError, a ValueError, for a value that cannot be and for values that contradict.
    """

    batch_size: int = option(12, "sequences computed at once", at_least=1, at_most=10**6)
    grad_accum: int = option(1, "batches whose gradients make one step", at_least=1, at_most=10**5)
    max_iters: int = option(2000, "steps", at_least=1, at_most=10**8)
    learning_rate: float = option(1e-3, "AdamW's highest rate", above=0, at_most=100)
    muon_lr: float = option(0.03, "Muon's highest rate; its other rates follow AdamW's", above=0,
                            at_most=100)
    muon_momentum: float = option(0.95, "Muon's memory of gradients", at_least=0, below=1)
    min_lr: float = option(1e-4, "the rate that it falls to", at_least=0)
    hold: float = option(0.0, "share of lr_decay_iters until which the rate stays highest",
                         at_least=0, at_most=1)
    decay: str = option("cosine", "how the rate falls then", choices=("cosine", "linear"))
    warmup_iters: int | None = option(
        None, "steps in which the rate rises (default: a twentieth of all, at most 100)", at_least=0
    )
    lr_decay_iters: int | None = option(None, "steps until min_lr (default: max_iters)", at_least=1)
    weight_decay: float = option(0.1, "of matrices and embeddings", at_least=0, at_most=100)
    beta1: float = option(0.9, "AdamW's memory of gradients", at_least=0, below=1)
    beta2: float = option(0.99, "AdamW's memory of their squares", at_least=0, below=1)
    grad_clip: float = option(1.0, "largest norm of the gradients, 0: any", at_least=0)
    optimizer: str = option("adamw", "how parameters move; muon: the blocks' matrices by Muon, the "
                            "rest by AdamW", choices=("adamw", "muon"))
    eval_interval: int = option(250, "steps between evaluations", at_least=1)
    eval_iters: int = option(20, "batches to evaluate each split on", at_least=1, at_most=10**6)
    log_interval: int = option(10, "steps between lines of metrics.jsonl", at_least=1)
    seed: int = option(1337, "of weights, batches and dropout", at_least=0, at_most=2**63 - 1)
    data: str | None = option(None, "shakespeare, pydocs or the path of a UTF-8 text (default: "
                              "shakespeare, or pydocs where that cannot be had)")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "gpu"))
    dtype: str | None = option(
        None, "what products of matrices are computed in; tf32 and bfloat16 need a GPU (default: "
        "tf32 where there is one that has it, else float32)",
        choices=("float32", "tf32", "bfloat16"),
    )
    workers: int | None = option(
        None, "processes that share the work on a CPU (default: the cores; for a large model one "
        "computes, with BLAS's threads, and the others update)", at_least=1, at_most=1000
    )
    fused: bool = option(False, "a GPU's fused kernels, which no GPU has run yet")

    def __post_init__(self):
        super().__post_init__()
        if self.lr_decay_iters is None:
            object.__setattr__(self, "lr_decay_iters", self.max_iters)
        if self.warmup_iters is None:
            object.__setattr__(self, "warmup_iters", min(100, self.lr_decay_iters // 20))
        if self.min_lr > self.learning_rate:
            raise UserError(f"min_lr {self.min_lr} is above learning_rate {self.learning_rate}")
        if self.warmup_iters > self.lr_decay_iters:
            raise UserError(
                f"warmup_iters {self.warmup_iters} is above lr_decay_iters {self.lr_decay_iters}, "
                "by which the rate has fallen; lower --warmup-iters"
            )


# The text of a resumed run may have moved; its hash tells that it is the same.
RESUMABLE = {"data", "max_iters", "eval_interval", "eval_iters", "log_interval", "device", "dtype",
             "fused", "workers"}
MODEL_FIELDS = {f.name: f for f in dataclasses.fields(GPTConfig) if f.name != "vocab_size"}
TRAINING_FIELDS = {f.name: f for f in dataclasses.fields(TrainingConfig)}
FIELDS = MODEL_FIELDS | TRAINING_FIELDS


@dataclass
class Request:
    """What the command line asks for."""

    config_name: str                # "laptop": what the run and its directory are called
    values: dict                    # name -> value, from the TOML file and the flags
    flags: dict                     # name -> value, from the flags alone
    out_dir: Path | None
    resume: bool
    overwrite: bool

    def resumed(self, saved):
        """The same request, with the values of a checkpoint under the flags.
        Raises UserError that names a flag which a resumed run cannot change."""
        for name, value in self.flags.items():
            if name not in RESUMABLE and value != saved[name]:
                raise UserError(
                    f"a resumed run keeps its {flag(name)} of {saved[name]}; to train with "
                    f"{value}, start a new run without --resume"
                )
        return dataclasses.replace(self, values=saved | self.flags)

    def training(self):
        """-> TrainingConfig."""
        return TrainingConfig(**{n: v for n, v in self.values.items() if n in TRAINING_FIELDS})

    def model(self, vocab_size):
        """-> GPTConfig."""
        return GPTConfig(
            vocab_size=vocab_size, **{n: v for n, v in self.values.items() if n in MODEL_FIELDS}
        )


def read_command_line(arguments, default_config):
    """Arguments, as words -> Request.

    default_config: the device's name as given ("auto", "cpu", "gpu") -> name of the configuration.
    Raises UserError for anything that is unknown or cannot be.
    """
    first = Parser(add_help=False)
    first.add_argument("--config")
    first.add_argument("--device", default="auto")
    early, _ = first.parse_known_args(arguments)
    checked(TRAINING_FIELDS["device"], early.device)
    wants_help = "-h" in arguments or "--help" in arguments
    named = getattr(early, "config", None)
    if named is None:
        named = default_config("cpu" if wants_help else early.device)
    path = _config_path(named)
    values = read_toml(bundled("configs") / "laptop.toml") | read_toml(path)

    given = _parser(path.stem, values).parse(arguments, FIELDS.values())
    flags = {name: value for name, value in given.items() if name in FIELDS}
    if given.get("out_dir") == "":
        raise UserError("--out-dir is empty")
    request = Request(
        path.stem, values | flags, flags, Path(given["out_dir"]) if "out_dir" in given else None,
        given.get("resume", False), given.get("overwrite", False),
    )
    if request.resume and hasattr(early, "config"):
        raise UserError("--resume keeps the configuration of the run; leave out --config")
    if request.resume and request.overwrite:
        raise UserError("--resume keeps a run and --overwrite replaces it; choose one")
    return request


def read_toml(path):
    """A TOML file of keys that are field names -> checked values. Raises UserError."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML: {error}") from None
    for name, value in found.items():
        if name not in FIELDS:
            raise UserError(f"{path}: unknown key {name!r}{suggestion(name, FIELDS)}")
        if value is None or isinstance(value, (dict, list)):
            raise UserError(f"{path}: {name} must be {describe(FIELDS[name])}")
    return {name: checked(FIELDS[name], value) for name, value in found.items()}


def _config_path(name):
    """A path, or the name of one of the configurations that npgpt brings."""
    folder = bundled("configs")
    if (folder / f"{name}.toml").is_file():
        return folder / f"{name}.toml"
    if not Path(name).is_file():
        raise UserError(f"there is no configuration {name!r}; --config takes a TOML file or one of "
                        + ", ".join(_known_configs()))
    return Path(name)


def _known_configs():
    return sorted(path.stem for path in bundled("configs").glob("*.toml"))


def _parser(name, values):
    """The parser of train.py, its defaults shown as the configuration has them."""
    parser = Parser(
        prog="train.py",
        usage="train.py [--config FILE] [--device {auto,cpu,gpu}] [--data TEXT] ...",
        description="Train a GPT on a text. With no arguments: a small one on Tiny Shakespeare. "
                    "Ctrl-C stops it, --resume goes on.",
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--config", metavar="FILE", help="a TOML file of the values below, or one of "
                     f"{', '.join(_known_configs())} [laptop; with a GPU baby]")
    run.add_argument("--out-dir", metavar="DIR", help="where the run is kept [a new one in out/]")
    run.add_argument("--resume", action="store_true",
                     help="go on with the run in --out-dir [the newest in out/]")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --out-dir")
    parser.add_options(f"the model, as in {name}", MODEL_FIELDS.values(), values)
    parser.add_options(f"the training, as in {name}", TRAINING_FIELDS.values(), values)
    return parser
