"""Steps on ranks that mpiexec starts. tests/commands/test_ranks.py has whole runs."""

import sys

import pytest

from npgpt.backend import get_device
from tests.commands.tiny import ENVIRONMENT
from tests.parallel.launcher import job

CPU = get_device("cpu")
pytestmark = pytest.mark.usefixtures("mpi")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_steps_and_state_are_those_of_one_process(n):
    done = job(n, [sys.executable, "-m", "tests.parallel.steps_on_ranks"])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stderr.splitlines()) == [f"rank {r} of {n}: the same" for r in range(n)]


THREADS = """
import sys
import numpy as np
from threadpoolctl import threadpool_info
from npgpt.parallel import world
np.ones((2, 2)) @ np.ones((2, 2))
before = max(pool["num_threads"] for pool in threadpool_info())
world()
after = max(pool["num_threads"] for pool in threadpool_info())
sys.stderr.write(f"{before} {after}\\n")
"""


@pytest.mark.skipif(CPU.cores < 2, reason="needs two cores")
@pytest.mark.parametrize("n", [1, 2])
def test_blas_has_one_thread_in_each_rank_but_all_of_them_if_there_is_one(n):
    environment = {name: value for name, value in ENVIRONMENT.items()
                   if name != "OPENBLAS_NUM_THREADS"}
    done = job(n, [sys.executable, "-c", THREADS], env=environment)
    threads = [tuple(map(int, line.split())) for line in done.stderr.splitlines()]
    assert len(threads) == n and all(before > 1 for before, _ in threads)
    assert all(after == (before if n == 1 else 1) for before, after in threads)


@pytest.mark.parametrize(("n", "rows", "channels"), [(1, 8, 128), (2, 32, 64), (4, 4, 256)])
def test_estimated_memory_is_that_of_a_rank(n, rows, channels):
    """Each has the moments of its shard alone."""
    done = job(n, [sys.executable, "-m", "tests.parallel.memory_of_rank", str(rows), str(channels)])
    found = [tuple(map(int, line.split())) for line in done.stderr.splitlines()]
    assert len(found) == n
    for peak, needed in found:
        assert needed == pytest.approx(peak, rel=0.1)
