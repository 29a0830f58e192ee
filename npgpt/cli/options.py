"""Configurations: dataclasses with documented and validated fields.

Each field states its meaning, its valid values and its default in one place. Validation and the
command-line flags with their help are generated from that.
"""

import argparse
import dataclasses
import difflib
import math
import re
import typing

from npgpt.errors import UserError, flag, with_flags

METAVARS = {int: "N", float: "X", str: "TEXT"}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
LIMITS = {                     # name -> function: whether a value is within the limit
    "at_least": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "at_most": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}
# Names of options in other programs -> their names here.
ALIASES = {
    "lr": "learning_rate", "wd": "weight_decay", "batch": "batch_size", "epochs": "max_iters",
    "steps": "max_iters", "iterations": "max_iters", "layers": "n_layer", "heads": "n_head",
    "hidden": "n_embd", "hidden_size": "n_embd", "dim": "n_embd", "d_model": "n_embd",
    "context": "block_size", "ctx": "block_size", "seq_len": "block_size", "output": "out_dir",
    "output_dir": "out_dir", "out": "out_dir", "dataset": "data", "gpu": "device",
    "cuda": "device", "precision": "dtype", "bf16": "dtype", "tokens": "max_new_tokens",
}


def option(default, help, *, at_least=None, above=None, at_most=None, below=None, choices=None,
           metavar=None):
    """A dataclass field with its meaning (and unit; other options in backticks) and its valid
    values. metavar: the placeholder for the value in the help; None: by the field's type."""
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return dataclasses.field(
        default=default,
        metadata={"help": help, "choices": choices, "metavar": metavar,
                  "limits": {name: limit for name, limit in limits.items() if limit is not None}},
    )


class Options:
    """Base of the configurations: every field is checked on construction."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))


def kind_of(field):
    """The type of a field's values, and whether None is also valid."""
    kinds = [t for t in typing.get_args(field.type) if t is not type(None)]
    return (kinds[0], True) if kinds else (field.type, False)


def checked(field, value):
    """The value, converted to the field's type. Raises UserError if it is invalid."""
    kind, optional = kind_of(field)
    if value is None and optional:
        return None
    if hasattr(value, "item"):                # a NumPy scalar
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    wrong = _problem(field, kind, value)
    if wrong:
        raise UserError(f"`{field.name}` must be {wrong}")
    return value


def parsed(field, text):
    """A string from the command line -> a checked value of the field's type."""
    kind, _ = kind_of(field)
    try:
        value = kind(text)
    except (ValueError, OverflowError):
        value = text              # of the wrong type: `checked` raises
    return checked(field, value)


def _problem(field, kind, value):
    """What a value must be, and what it is: "at least 1, got 0"; None if it is valid."""
    choices = field.metadata["choices"]
    if choices:
        if value in choices:
            return None
        listed = " or ".join(", ".join(choices).rsplit(", ", 1))
        hint = suggestion(value, choices) if isinstance(value, str) else ""
        return f"{listed}, got {value!r}{hint}"
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        return f"{WORDS[kind]}, got {value!r}"
    if kind is float and not math.isfinite(value):
        return f"a finite number, got {value!r}"
    for name, limit in field.metadata["limits"].items():
        if not LIMITS[name](value, limit):
            return f"{name.replace('_', ' ')} {limit}, got {repr(value).removesuffix('.0')}"
    return None


class Parser(argparse.ArgumentParser):
    """argparse with a flag for each field, --version, and errors as UserError. Flags that are not
    given are absent from the result."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS,
                         formatter_class=_HelpFormatter, **settings)
        self.add_argument("--version", action="version", version=version(),
                          help="show npgpt's version and exit")

    def add_options(self, title, fields, defaults):
        """A group of flags for some fields; defaults: name -> value to show in the help."""
        group = self.add_argument_group(title)
        for field in fields:
            kind, _ = kind_of(field)
            default = defaults.get(field.name, field.default)
            text = with_flags(field.metadata["help"])
            text += "" if default is None else f" [{default}]"
            choices = field.metadata["choices"]
            if kind is bool:
                more = {"action": argparse.BooleanOptionalAction}
            elif choices:
                more = {"metavar": "{" + ",".join(choices) + "}"}
            else:
                more = {"metavar": field.metadata["metavar"] or METAVARS[kind]}
            group.add_argument(flag(field.name), help=text.replace("%", "%%"), **more)

    def parse(self, arguments, fields):
        """Command-line arguments, None: the program's -> name -> value; the values of fields are
        checked."""
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            raise UserError(self._unknown(unknown[0].partition("=")[0]))
        by_name = {field.name: field for field in fields}
        return {name: parsed(by_name[name], value) if name in by_name and isinstance(value, str)
                else value for name, value in vars(found).items()}

    def error(self, message):
        """Raise UserError with argparse's message."""
        message = re.sub(r"^argument (\S+): expected one argument$", r"\1 needs a value", message)
        message = re.sub(r"^argument (\S+): ignored explicit argument (.*)$",
                         r"\1 takes no value, got \2", message)
        raise UserError(f"{message}; --help lists all options")

    def _unknown(self, word):
        if not word.startswith("-"):
            return f"unexpected argument {word!r}; --help lists all options"
        known = {text.lstrip("-").replace("-", "_"): text
                 for action in self._actions for text in action.option_strings}
        meant = closest(word.lstrip("-").replace("-", "_"), known)
        if meant is None:
            return f"unknown option {word}; --help lists all options"
        return f"unknown option {word}; did you mean {known[meant]}? --help lists all options"


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=100)


def closest(word, known):
    """The known name that was probably meant, by ALIASES or by its spelling; None if there is
    none."""
    alias = ALIASES.get(word)
    if alias in known:
        return alias
    return next(iter(difflib.get_close_matches(word, known, 1)), None)


def suggestion(word, known):
    """"; did you mean ...?" if one of the known words was probably meant, else ""."""
    meant = closest(word, known)
    return "" if meant is None else f"; did you mean {meant!r}?"


def version():
    """What --version prints."""
    from npgpt import __version__  # here, because npgpt imports this module

    return f"npgpt {__version__}"
