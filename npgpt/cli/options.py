"""Configurations that explain and check themselves.

Each field of a dataclass says in one place what it means, what it may be and what it is by default;
from there come the checks and the command-line flags with their help.
"""

import argparse
import dataclasses
import difflib
import math
import typing

from npgpt.errors import UserError

METAVARS = {int: "N", float: "X", str: "TEXT"}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def option(default, help, *, at_least=None, above=None, at_most=None, below=None, choices=None):
    """A dataclass field with its meaning (and unit) and the values it may have."""
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return dataclasses.field(
        default=default,
        metadata={"help": help, "choices": choices,
                  "limits": {name: limit for name, limit in limits.items() if limit is not None}},
    )


class Options:
    """Base of the configurations: every field made by `option` is checked on construction."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))


def kind_of(field):
    """The type of a field's values, and whether None is one of them."""
    kinds = [t for t in typing.get_args(field.type) if t is not type(None)]
    return (kinds[0], True) if kinds else (field.type, False)


def checked(field, value):
    """The value, as the field's type. Raises UserError that names the field and what it may be."""
    kind, optional = kind_of(field)
    if value is None and optional:
        return None
    if hasattr(value, "item"):                # a scalar of NumPy
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits or not _allowed(field, value):
        raise UserError(f"{field.name} must be {describe(field)}, not {value!r}")
    return value


def parsed(field, text):
    """A word from the command line -> the field's type, checked."""
    kind, _ = kind_of(field)
    try:
        value = kind(text)
    except (ValueError, OverflowError):
        value = text              # of the wrong type: `checked` says so
    return checked(field, value)


def describe(field):
    """"a whole number, at least 1": what a field may be."""
    if field.metadata["choices"]:
        return "one of " + ", ".join(field.metadata["choices"])
    kind, _ = kind_of(field)
    limits = (f"{n.replace('_', ' ')} {limit}" for n, limit in field.metadata["limits"].items())
    return ", ".join([WORDS[kind], *limits])


def _allowed(field, value):
    if field.metadata["choices"]:
        return value in field.metadata["choices"]
    limits = field.metadata["limits"]
    if not isinstance(value, (int, float)):
        return True
    return (
        -math.inf < value < math.inf
        and value >= limits.get("at_least", -math.inf)
        and value > limits.get("above", -math.inf)
        and value <= limits.get("at_most", math.inf)
        and value < limits.get("below", math.inf)
    )


class Parser(argparse.ArgumentParser):
    """argparse with one flag for each field, and with its errors raised as UserError, in one line.
    Flags that are not given are absent from what it returns."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS,
                         formatter_class=_HelpFormatter, **settings)

    def add_options(self, title, fields, defaults):
        """A group of flags for some fields; defaults: name -> value to show in the help."""
        group = self.add_argument_group(title)
        for field in fields:
            kind, _ = kind_of(field)
            default = defaults.get(field.name, field.default)
            text = field.metadata["help"] + ("" if default is None else f" [{default}]")
            if kind is bool:
                more = {"action": argparse.BooleanOptionalAction}
            elif field.metadata["choices"]:
                more = {"metavar": "{" + ",".join(field.metadata["choices"]) + "}"}
            else:
                more = {"metavar": METAVARS[kind]}
            group.add_argument(flag(field.name), help=text.replace("%", "%%"), **more)

    def parse(self, arguments, fields):
        """Arguments, as words -> name -> value, those of fields checked."""
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            known = [word for action in self._actions for word in action.option_strings]
            word = unknown[0].partition("=")[0]
            raise UserError(f"unknown argument {word!r}{suggestion(word, known)}; --help lists all")
        by_name = {field.name: field for field in fields}
        return {name: parsed(by_name[name], value) if name in by_name and isinstance(value, str)
                else value for name, value in vars(found).items()}

    def error(self, message):
        raise UserError(f"{message}; --help lists all arguments")


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=100)


def flag(name):
    """"n_layer" -> "--n-layer"."""
    return "--" + name.replace("_", "-")


def suggestion(word, known):
    """"; did you mean ...?" if one of the known words is close, else nothing."""
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
