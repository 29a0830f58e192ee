"""The errors that a person is told of, in one line. Anything else is a bug in npgpt.

A message names an option in backticks: `batch_size`. In Python, and in a TOML file, the option is
called batch_size; on the command line it is --batch-size. So no code below the commands has to know
how flags are spelled.
"""

import re

OPTION = re.compile(r"`([a-z]\w*)`")


def flag(name):
    """"n_layer" -> "--n-layer"."""
    return "--" + name.replace("_", "-")


def with_flags(message):
    """A message, with its options spelled as flags."""
    return OPTION.sub(lambda option: flag(option[1]), message)


class _Told(Exception):
    def __init__(self, message):
        """message: options stand in backticks."""
        super().__init__(OPTION.sub(r"\1", message))
        self.message = message


class UserError(_Told, ValueError):
    """Something asked for is not possible; the message says what is wrong and what to do."""


class RunError(_Told, RuntimeError):
    """The run could not go on; the message says why and what is left."""
