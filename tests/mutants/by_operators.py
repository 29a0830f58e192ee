"""Tries the mutants of operators.py: each in a process of its own, which installs it and runs the
tests that reach its function."""

import contextlib
import importlib
import io
import multiprocessing
import signal
import sys

import pytest

from tests.mutants.groups import ROOT
from tests.mutants.operators import install, mutants_of

SECONDS = 120          # a mutant that runs longer counts as killed


def all_mutants(group):
    """The mutants of a group's modules."""
    return [mutant for module, path in zip(group.modules, group.paths)
            for mutant in mutants_of(module, (ROOT / path).read_text(encoding="utf-8"),
                                     group.constants)]


def try_mutants(mutants, reached, workers):
    """-> for each mutant, whether it survived. reached: the Reached of mutmut."""
    sys.path.insert(0, str(ROOT))
    for module in {mutant.module for mutant in mutants}:
        importlib.import_module(module)
    jobs = [(mutant, reached.tests(mutant.module, mutant.function)) for mutant in mutants]
    files = sorted({test.partition("::")[0] for _, tests in jobs for test in tests})
    if files and _pytest("--collect-only", *files):           # their imports happen once, here
        raise SystemExit("the tests cannot be collected")
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        return pool.starmap(_survives, jobs, chunksize=1)


def _survives(mutant, tests):
    """In a process of its own: install the mutant and run the tests."""
    if not tests:
        return True
    install(mutant, importlib.import_module(mutant.module))
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(SECONDS)
    try:
        return not _pytest(*tests)
    except BaseException:
        return False


def _give_up(number, frame):
    raise TimeoutError


def _pytest(*words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return pytest.main(["-x", "-p", "no:cacheprovider", "-m", "not yardstick", *words])
