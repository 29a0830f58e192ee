"""A working directory with a small text, without a network, for every test."""

from tests.commands.conftest import (  # noqa: F401
    home,
    mpiexec,
    run,
    short_samples,
    signals_arrive,
)
