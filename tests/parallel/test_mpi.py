"""Steps on ranks that mpiexec starts. tests/commands/test_ranks.py has whole runs."""

import sys

import pytest

from tests.parallel.launcher import job

pytestmark = pytest.mark.usefixtures("mpi")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_steps_and_state_are_those_of_one_process(n):
    done = job(n, [sys.executable, "-m", "tests.parallel.steps_on_ranks"])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stderr.splitlines()) == [f"rank {r} of {n}: the same" for r in range(n)]
