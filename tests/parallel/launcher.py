"""Programs under mpiexec, which is the one that belongs to mpi4py's library."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.commands.tiny import ENVIRONMENT, command
from tests.parallel.test_processes import gone

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def mpiexec(*ranks):
    """-> the words that start each of these commands, a list of words, as one rank; a number of
    ranks before a command stands for so many of it."""
    words, number = [MPIEXEC], 1
    for rank in ranks:
        if isinstance(rank, int):
            number = rank
        else:
            words += ([":"] if len(words) > 1 else []) + ["-n", str(number), *rank]
            number = 1
    return words


def job(*ranks, **options):
    """Run commands as ranks -> CompletedProcess."""
    return subprocess.run(mpiexec(*ranks), capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, **{"env": ENVIRONMENT} | options)


def train(n, *words, **options):
    """Run train.py with this number of ranks."""
    return job(n, command(*words), **options)


@contextlib.contextmanager
def running(n, *words, until, **environment):
    """A job of train.py that has written a line with the text `until` -> it, and the process ids of
    its ranks. No rank is alive afterwards."""
    with subprocess.Popen(mpiexec(n, command(*words)), env=ENVIRONMENT | environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, start_new_session=True) as process:
        pids = []
        try:
            while until not in process.stdout.readline():
                assert process.poll() is None, process.stderr.read()
            pids = ranks_of(process.pid)
            assert len(pids) == n
            yield process, pids
        finally:
            process.kill()
            assert gone(pids), "a rank is alive"


def ranks_of(pid):
    """-> the process ids of the ranks of mpiexec, whose children start them, by their age."""
    return sorted(rank for proxy in _children(pid) for rank in _children(proxy))


def _children(pid):
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
