"""Processes that train together: their results, and that they end together."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from npgpt.backend import Device, get_device
from npgpt.errors import RunError
from npgpt.models.parameters import Gradients, Param
from npgpt.parallel import LARGE, Processes, Single, barrier, can_fork, choose_ranks, processes
from npgpt.parallel.barrier import Barrier

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes cannot share memory here")
CPU = get_device("cpu")


def alive(pid):
    """Whether a process exists and has not ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids):
    """Whether all of them end in time."""
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        os.sched_yield()
    return not any(map(alive, pids))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_rank_gets_the_same_sums_in_the_order_of_the_ranks(size):
    comm = Processes(size)
    seen = comm.share(np.zeros((size, 20)))

    def work():
        for turn in range(20):
            seen[comm.rank, turn] = comm.all_reduce(0.1 * 3.0 ** comm.rank * turn)
        return "done"

    assert comm.launch(work) == "done"
    expected = [np.sum([0.1 * 3.0 ** rank * turn for rank in range(size)]) for turn in range(20)]
    np.testing.assert_allclose(seen[0], expected, rtol=1e-15)
    assert all(np.array_equal(seen[0], of_rank) for of_rank in seen)


def gradients(comm, n):
    """-> for each rank, Gradients of one vector of n numbers."""
    architecture = {"a.bias": Param((n,), "vector")}
    return [Gradients(architecture, np.zeros(n) if flat is None else flat)
            for flat in comm.buffers(np.zeros(n))]


@pytest.mark.parametrize("computing", [3, 1])
def test_reduce_scatter_gives_each_rank_the_sum_in_its_shard(computing):
    comm = Processes(3, computing)
    grads, found = gradients(comm, 10), comm.share(np.zeros((3, 10)))

    def work():
        bounds = [(10 * rank // 3, 10 * (rank + 1) // 3) for rank in range(3)]
        shards = [[slice(at, at + 1), slice(at + 1, stop)] for at, stop in bounds]
        start, stop = bounds[comm.rank]
        for turn in range(5):
            if comm.computes:
                grads[comm.rank].zero()
                grads[comm.rank].add("a.bias", np.arange(10) + comm.rank + turn)
            flat = comm.reduce_scatter(grads[comm.rank], shards)
            found[comm.rank, start:stop] = flat[start:stop]
            comm.barrier()

    comm.launch(work)
    expected = computing * (np.arange(10) + 4) + sum(range(computing))
    np.testing.assert_array_equal(found.sum(0), expected)


def test_gradients_without_additions_are_zero():
    comm = Processes(2)
    grads, found = gradients(comm, 4), comm.share(np.full((2, 4), 5.0))

    def work():
        own, shards = grads[comm.rank], [[slice(0, 2)], [slice(2, 4)]]
        shard, = shards[comm.rank]
        for d in (np.ones(4), None):
            own.zero()
            own.add("a.bias", d)
            found[comm.rank] = 0
            found[comm.rank, shard] = comm.reduce_scatter(own, shards)[shard]
            comm.barrier()

    comm.launch(work)
    assert not found.any()


def test_norm_is_over_all_shards():
    comm = Processes(3)
    flat, found = comm.share(np.arange(9.0)), comm.share(np.zeros(3))

    def work():
        found[comm.rank] = comm.norm(flat, [[slice(at, at + 3)] for at in (0, 3, 6)])

    comm.launch(work)
    np.testing.assert_allclose(found, np.linalg.norm(np.arange(9)), rtol=1e-15)


@pytest.mark.parametrize("raiser", [0, 2])
def test_flag_of_one_rank_is_seen_by_all_at_the_same_call(raiser):
    comm = Processes(3)
    seen = comm.share(np.zeros((3, 10), bool))

    def work():
        for turn in range(10):
            seen[comm.rank, turn] = comm.any(comm.rank == raiser and turn == 4)
            comm.barrier()

    comm.launch(work)
    assert [np.flatnonzero(of_rank).tolist() for of_rank in seen] == [[5]] * 3


def test_arriving_rank_wakes_a_sleeping_rank(monkeypatch):
    select = barrier.select.select

    def woken(*arguments):
        found = select(*arguments)
        assert found[0], "no rank woke this one"
        return found

    monkeypatch.setattr(barrier.select, "select", woken)
    monkeypatch.setattr(barrier, "NAP", 10)            # seconds, to be sure
    fence = Barrier(2, check=lambda: None)
    fence.open()

    def turns(rank):
        for turn in range(20):
            late = turn % 2
            while rank == late and not fence.asleep(1 - late):
                os.sched_yield()
            fence.wait(rank)

    pid = os.fork()
    if pid == 0:
        try:
            turns(1)
        finally:
            os._exit(0)
    turns(0)
    assert os.waitpid(pid, 0)[1] == 0
    fence.close()


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_rows_are_divided_without_gaps_or_overlap(count):
    comm, found = Processes(3), []
    for comm.rank in range(3):
        found += range(*comm.rows(count))
    assert found == list(range(count))


def test_ranks_that_only_update_compute_no_rows():
    comm = Processes(4, computing=2)
    for comm.rank, rows in enumerate([(0, 3), (3, 7), (7, 7), (7, 7)]):
        assert comm.rows(7) == rows
        assert comm.computes == (comm.rank < 2)


@pytest.mark.parametrize(("size", "computing", "description"), [
    (3, None, "3 processes"), (3, 1, "1 process that computes and 2 that only update")])
def test_ranks_describe_themselves(size, computing, description):
    assert Processes(size, computing).description == description
    assert Single().description == ""


def test_single_is_the_case_of_one_rank():
    comm, x = Single(), np.array([3.0, 4.0])
    assert comm.launch(lambda: 5) == 5 and comm.broadcast(lambda: 6) == 6
    assert comm.share(x) is x and comm.all_reduce(2.0) == 2.0 and comm.rows(7) == (0, 7)
    grads = Gradients({"a.bias": Param((2,), "vector")}, x)
    assert comm.reduce_scatter(grads, [[slice(0, 2)]]) is x
    assert comm.norm(x, [[slice(0, 2)]]) == 5 and comm.norm(x, [[slice(1, 2)]]) == 4
    assert comm.any(True) and not comm.any(False) and comm.is_first and comm.computes


def fail():
    raise KeyError("mine")


@pytest.mark.parametrize(("rank", "end", "error", "message"), [
    (2, fail, RunError, "worker 2 of 3 failed: KeyError: 'mine'"),
    (2, lambda: os._exit(0), RunError, "worker 2 of 3 ended early, with status 0"),
    (2, lambda: os.kill(os.getpid(), signal.SIGKILL), RunError,
     "worker 2 of 3 was killed by signal 9"),
    (0, fail, KeyError, "mine"),
], ids=["error", "exit", "kill", "first rank"])
def test_rank_that_fails_ends_all_ranks_and_is_named(rank, end, error, message):
    comm = Processes(3)
    pids = comm.share(np.zeros(3, np.int64))

    def work():
        pids[comm.rank] = os.getpid()
        comm.barrier()
        if comm.rank == rank:
            end()
        comm.barrier()

    with pytest.raises(error, match=message):
        comm.launch(work)
    assert gone(pids[1:])


def test_workers_end_if_the_first_rank_is_killed(tmp_path):
    script = """
import os, pathlib, signal, sys
from npgpt.parallel import Processes
comm = Processes(3)
def work():
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    comm.barrier()
    if comm.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()
comm.launch(work)
"""
    result = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True)
    assert result.returncode == -signal.SIGKILL
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 3 and gone(pids)


def test_number_of_ranks_follows_a_fixed_rule():
    four = Device("cpu", np, (), cores=4)
    assert choose_ranks(None, 12, 10**6, four) == (4, 4)
    assert choose_ranks(None, 3, 10**6, four) == (3, 3)             # no more than there are rows
    assert choose_ranks(None, 12, LARGE - 1, four) == (4, 4)
    assert choose_ranks(None, 1, LARGE, four) == (4, 1)             # BLAS's threads are faster
    assert choose_ranks(None, 1, LARGE, four, muon=True) == (1, 1)
    assert choose_ranks(None, 12, 10**6, four, muon=True) == (4, 4)
    assert choose_ranks(2, 12, LARGE, four) == (2, 2)               # unless a number is asked for
    assert choose_ranks(8, 12, 10**6, four) == (8, 8)
    assert choose_ranks(4, 12, 10**6, Device("gpu", np, (), cores=4)) == (1, 1)


def test_one_process_without_fork(monkeypatch):
    monkeypatch.setattr(processes.sys, "platform", "darwin")
    assert choose_ranks(4, 12, 10**6, CPU) == (1, 1)


def test_other_children_of_the_program_are_left_alone():
    comm = Processes(2)
    other = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])

    def work():
        if comm.rank == 1:
            while alive(other.pid):
                os.sched_yield()
            time.sleep(3 * barrier.NAP)        # the first rank checks on its workers meanwhile
        comm.barrier()

    comm.launch(work)
    assert other.wait() == 7
