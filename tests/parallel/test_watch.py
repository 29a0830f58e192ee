"""The watch over the ranks of mpiexec. tests/reliability/test_ranks.py has silent ranks."""

import sys

import pytest

from tests.parallel.launcher import job

pytestmark = pytest.mark.usefixtures("mpi")
PROGRAM = """
from mpi4py import MPI
from npgpt.parallel import watch

watch.PERIOD = 0                       # as fast as it can
world, left = MPI.COMM_WORLD, 0
for _ in range(5):
    ranks = world.Dup()
    with watch.Watch(ranks):
        for _ in range(world.rank * 100_000):
            pass
    world.Barrier()
    left += ranks.iprobe()
if left := world.reduce(left):
    print(left)
"""


def test_no_message_is_left_when_the_watch_ends():
    """Ranks leave it at different times. MPICH would warn of each message on some networks."""
    done = job(3, [sys.executable, "-c", PROGRAM])
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
