"""The command line of train.py: laptop's values, overridden by a TOML file, overridden by flags.

Every field of `TrainingConfig` and of a family's configuration is a flag with the same name and a
key of a TOML file. A resumed run takes its values from the checkpoint.
"""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from npgpt.cli.bundle import bundled
from npgpt.cli.options import Parser, checked, suggestion
from npgpt.errors import UserError
from npgpt.reading import read_bytes
from npgpt.training.config import (
    FAMILIES,
    FAMILY_FIELDS,
    FIELDS,
    MODEL_FIELDS,
    RESUMABLE,
    TRAINING_FIELDS,
    TrainingConfig,
)

MUON_FIELDS = ("muon_lr", "muon_momentum")
ADAMW_RATES = ("learning_rate", "min_lr")
FINE_TUNING = "finetune"             # the default configuration with `init_from`
ADAPTING = "lora"                    # the default configuration with `init_from` and `lora_rank`


@dataclass
class Request:
    """What the command line requests."""

    config_name: str                # "laptop": what the run and its directory are called
    values: dict                    # name -> value, from laptop, the TOML file and the flags
    flags: dict                     # name -> value, from the flags alone
    out_dir: Path | None
    resume: bool
    overwrite: bool
    notes: list[str] = field(default_factory=list)      # for the header of the run
    chosen: dict = field(default_factory=dict)      # the same, without those of laptop
    init_from: Path | None = None

    def asks_for(self, name):
        """Whether the user asks for the value of an option, and not an old checkpoint."""
        return not self.resume or name in self.flags

    def resumed(self, saved):
        """The same request, with the values of a checkpoint, overridden by the flags.
        One from before `attention` was an option keeps plain attention. Raises UserError for a flag
        that a resumed run cannot change."""
        self._check_family(saved.get("family", "gpt"), self.flags)
        for name, value in self.flags.items():
            kept = saved.get(name, FIELDS[name].default)      # an old checkpoint may lack it
            if name not in RESUMABLE and value != kept:
                raise UserError(
                    f"a resumed run keeps its `{name}` of {kept}, got {value}; to change it, start "
                    "a new run without `resume`"
                )
        return dataclasses.replace(self, values={"attention": "plain"} | saved | self.flags)

    def training(self):
        """-> TrainingConfig."""
        return TrainingConfig(**{n: v for n, v in self.values.items() if n in TRAINING_FIELDS})

    @property
    def family(self):
        """The name of the family of the model."""
        return self.values.get("family", FIELDS["family"].default)

    def model(self, vocab_size):
        """-> the model's configuration. Raises UserError for an option of another family."""
        fields = FAMILY_FIELDS[self.family]
        self._check_family(self.family, self.chosen, "choose `family` {}, or leave it out")
        return FAMILIES[self.family].Config(
            vocab_size=vocab_size, **{n: v for n, v in self.values.items() if n in fields})

    def of(self, found, directory):
        """The same request, for the family of a model that was found in a directory. Raises
        UserError if it asks for another, or for an option of another."""
        if self.chosen.get("family", found) != found:
            raise UserError(f"`family` is {found} in the model in {directory}, got {self.family}; "
                            "leave it out")
        self._check_family(found, self.chosen)
        return dataclasses.replace(self, values=self.values | {"family": found})

    @staticmethod
    def _check_family(family, given, advice="leave it out"):
        """Raise UserError if an option of another family is given. advice: what to do then; {}: the
        other family."""
        for name in given:
            if name in MODEL_FIELDS and name not in FAMILY_FIELDS[family]:
                other = next(f for f, fields in FAMILY_FIELDS.items() if name in fields)
                raise UserError(f"`{name}` is an option of the family {other}, and the model is of "
                                f"the family {family}; {advice.format(other)}")


def read_command_line(arguments, default_config):
    """Command-line arguments -> Request.

    default_config: the values of `device` ("auto", "cpu", "gpu") and of `family` (None if it is not
    given) -> name of the configuration.
    Raises UserError for an unknown option, an invalid value and mutually exclusive options.
    """
    first = Parser(add_help=False)
    first.add_argument("--config")
    first.add_argument("--init-from")
    first.add_argument("--lora-rank", default="0")
    first.add_argument("--device", default="auto")
    first.add_argument("--family")
    early, _ = first.parse_known_args(arguments)
    checked(TRAINING_FIELDS["device"], early.device)
    wants_help = "-h" in arguments or "--help" in arguments
    named = getattr(early, "config", None)
    if named is None and hasattr(early, "init_from"):
        named = FINE_TUNING if early.lora_rank == "0" else ADAPTING
    elif named is None:
        named = default_config("cpu" if wants_help else early.device,
                               getattr(early, "family", None))
    path = _config_path(named)
    chosen = read_toml(path)
    values, notes = layered(read_toml(bundled("configs") / "laptop.toml"), chosen)

    given = _parser(path.stem, values).parse(arguments, FIELDS.values())
    flags = {name: value for name, value in given.items() if name in FIELDS}
    values, more = layered(values, flags)
    request = Request(
        path.stem, values, flags, _path(given, "out_dir"), "resume" in given,
        "overwrite" in given, notes + more, chosen | flags, _path(given, "init_from"),
    )
    if request.init_from and "tokenizer" in flags:
        raise UserError("`init_from` brings its own tokenizer; leave out `tokenizer`")
    if request.resume:
        if request.init_from:
            raise UserError("`resume` continues a run, and `init_from` starts one; choose one")
        if hasattr(early, "config"):
            raise UserError("`resume` keeps the configuration of the run; leave out `config`")
        if request.overwrite:
            raise UserError("`resume` keeps a run and `overwrite` replaces it; choose one")
        request.notes.clear()                         # they refer to values that are not used
        return request
    if request.overwrite and request.out_dir is None:
        raise UserError("`overwrite` replaces the run in `out_dir`, which is missing; without "
                        "both, a new run gets a directory of its own")
    if values.get("lora_rank") and not request.init_from:
        raise UserError("`lora_rank` is for adapters of an existing model, which `init_from` names")
    _check_muon(values["optimizer"], flags)
    return request


def _path(given, name):
    """-> the Path in an option, or None. Raises UserError if it is empty."""
    if given.get(name) == "":
        raise UserError(f"`{name}` is empty; it takes the path of a directory")
    return Path(given[name]) if name in given else None


def layered(lower, upper):
    """Values, overridden by others -> name -> value, and notes for the user.

    Learning rates are for one optimiser: those for Muon are several times too high for AdamW alone.
    If `upper` changes to AdamW without a learning rate, AdamW's defaults replace them.
    """
    to_adamw = upper.get("optimizer") == "adamw" and lower["optimizer"] == "muon"
    if not to_adamw or "learning_rate" in upper:
        return lower | upper, []
    values = lower | {name: FIELDS[name].default for name in ADAMW_RATES} | upper
    return values, [f"learning rate {values['learning_rate']}, AdamW's default: "
                    f"{lower['learning_rate']} in the configuration is for Muon"]


def read_toml(path):
    """A TOML file of keys that are field names -> checked values. Raises UserError."""
    content = read_bytes(path)
    try:
        found = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    for name in found:
        if name not in FIELDS:
            raise UserError(f"{path}: unknown key {name!r}{suggestion(name, FIELDS)}")
    try:
        values = {name: checked(FIELDS[name], value) for name, value in found.items()}
        _check_muon(values.get("optimizer"), values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None         # str: a key, not a flag
    return values


def _check_muon(optimizer, given):
    """Raise UserError if options of Muon are given with AdamW."""
    for name in MUON_FIELDS:
        if optimizer == "adamw" and name in given:
            raise UserError(f"`{name}` has no effect with `optimizer` adamw; leave it out")


def _config_path(name):
    """A path, or the name of one of npgpt's configurations -> its path."""
    folder = bundled("configs")
    if (folder / f"{name}.toml").is_file():
        return folder / f"{name}.toml"
    if not Path(name).is_file():
        known = _known_configs()
        hint = suggestion(name, known) or ";"
        raise UserError(f"there is no configuration {name!r}{hint} `config` takes a TOML file or "
                        f"one of {', '.join(known)}")
    return Path(name)


def _known_configs():
    return sorted(path.stem for path in bundled("configs").glob("*.toml"))


def _parser(name, values):
    """The parser of train.py; the help shows the configuration's values as defaults."""
    parser = Parser(
        usage="train.py [--config FILE] [--device {auto,cpu,gpu}] [--data PATH] ...",
        description="Train a GPT or a Llama on a text. Without arguments: a small one on Tiny "
                    "Shakespeare. Ctrl-C stops the run, --resume continues it.",
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--config", metavar="FILE", help="a TOML file of the values below, or one of "
                     f"{', '.join(_known_configs())} [modern, and laptop with --family gpt; with a "
                     f"GPU baby; with --init-from {FINE_TUNING}, and with --lora-rank {ADAPTING}]")
    run.add_argument("--init-from", metavar="PATH", help="start from the parameters and with "
                     "the tokenizer of a run, a model directory, a GGUF file, or OWNER/MODEL on "
                     "Hugging Face [random parameters]")
    run.add_argument("--out-dir", metavar="DIR", help="directory of the run [a new one in out/]")
    run.add_argument("--resume", action="store_true",
                     help="continue the run in --out-dir [the newest in out/]")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --out-dir")
    shared = FAMILY_FIELDS["gpt"].keys() & FAMILY_FIELDS["llama"].keys()
    parser.add_options(f"the model, as in {name}",
                       [field for n, field in MODEL_FIELDS.items() if n in shared], values)
    for family, fields in FAMILY_FIELDS.items():
        parser.add_options(f"the model, for --family {family} only",
                           [field for n, field in fields.items() if n not in shared], values)
    parser.add_options(f"the training, as in {name}", TRAINING_FIELDS.values(), values)
    return parser
