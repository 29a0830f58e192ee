"""A working directory with a small text, for runs of commands."""

from tests.commands.conftest import home, run  # noqa: F401
