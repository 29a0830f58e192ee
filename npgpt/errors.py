"""The errors that are shown to the user, in one line. Any other exception is a bug in npgpt.

A message names an option in backticks: `batch_size`. In Python and in a TOML file the option is
called batch_size; on the command line it is --batch-size. So only the commands need to know how
flags are spelled.
"""

import re

OPTION = re.compile(r"`([a-z]\w*)`")


def flag(name):
    """"n_layer" -> "--n-layer"."""
    return "--" + name.replace("_", "-")


def with_flags(message):
    """A message with its options spelled as flags."""
    return OPTION.sub(lambda option: flag(option[1]), message)


class _ReportedError(Exception):
    def __init__(self, message):
        """message: with options in backticks."""
        super().__init__(OPTION.sub(r"\1", message))
        self.message = message


class UserError(_ReportedError, ValueError):
    """A request is invalid; the message says what is wrong and what to do."""


class RunError(_ReportedError, RuntimeError):
    """The run cannot continue; the message says why."""
