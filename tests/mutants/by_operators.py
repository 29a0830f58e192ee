"""Tries the mutants of operators.py: each in a process of its own, which installs it and runs the
tests that reach its function."""

import contextlib
import importlib
import io
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import traceback

import pytest

from tests.mutants.groups import ROOT
from tests.mutants.operators import install, mutants_of

SECONDS = 120          # a mutant that runs longer counts as killed
NOT_INSTALLED = 77     # an exit status that pytest does not have


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
    fork = multiprocessing.get_context("fork")
    waiting = [fork.Process(target=_exit_with_result, args=job) for job in jobs]
    processes, running, ends = list(waiting), [], {}
    waiting.reverse()
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(waiting.pop())
            running[-1].start()
            ends[running[-1]] = time.monotonic() + SECONDS
        multiprocessing.connection.wait([process.sentinel for process in running], timeout=1)
        for process in running:
            if time.monotonic() > ends[process]:
                process.kill()
        running = [process for process in running if process.is_alive()]
    if any(process.exitcode == NOT_INSTALLED for process in processes):
        raise SystemExit("a mutant cannot be installed; the traceback stands above")
    return [process.exitcode == 0 for process in processes]


def _exit_with_result(mutant, tests):
    """In a process of its own: install the mutant, run the tests, and exit with 0 if they pass."""
    try:
        install(mutant, importlib.import_module(mutant.module))
    except BaseException:
        traceback.print_exc()
        sys.exit(NOT_INSTALLED)
    try:
        failed = bool(tests) and bool(_pytest(*tests))
    except BaseException:
        failed = True
    os._exit(failed)


def _pytest(*words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return pytest.main(["-x", "-p", "no:cacheprovider", "-m", "not yardstick", *words])
