"""Processes that train together: what they compute, and that they end together."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from npgpt.backend import Device, get_device
from npgpt.errors import RunError
from npgpt.parallel import ranks
from npgpt.parallel.ranks import Alone, Processes, choose

pytestmark = pytest.mark.skipif(not ranks.can_fork(), reason="processes cannot share memory here")
CPU = get_device("cpu")


def alive(pid):
    """Whether a process is there and has not ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids):
    """Whether all of them end, within a time in which they should."""
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        os.sched_yield()
    return not any(map(alive, pids))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_rank_gets_the_same_sums_in_the_order_of_the_ranks(size):
    team = Processes(size)
    seen = team.shared(np.zeros((size, 20, 2)))

    def work():
        for turn in range(20):
            seen[team.rank, turn] = team.sum(0.1 * 3.0 ** team.rank * turn, team.rank)
        return "done"

    assert team.launch(work) == "done"
    expected = [[np.sum([0.1 * 3.0 ** rank * turn for rank in range(size)]),
                 sum(range(size))] for turn in range(20)]
    np.testing.assert_allclose(seen[0], expected, rtol=1e-15)
    assert all(np.array_equal(seen[0], of_rank) for of_rank in seen)


def test_buffers_are_added_up_share_by_share():
    team = Processes(3)
    buffers = [team.shared(np.zeros(10)) for _ in range(3)]

    def work():
        for turn in range(5):
            buffers[team.rank][:] = (team.rank + 1) * np.arange(10) + turn
            start, stop = team.rows(10)
            team.add_up(buffers, [slice(start, stop)])
            team.barrier()
        assert np.array_equal(buffers[0], 6 * np.arange(10) + 3 * 4)

    team.launch(work)
    np.testing.assert_array_equal(buffers[0], 6 * np.arange(10) + 12)


def test_rank_that_sleeps_is_woken_by_the_one_that_arrives(monkeypatch):
    select = ranks.select.select

    def rung(*arguments):
        found = select(*arguments)
        assert found[0], "nobody rang"
        return found

    monkeypatch.setattr(ranks.select, "select", rung)
    monkeypatch.setattr(ranks, "NAP", 10)            # seconds, to be sure
    team = Processes(2)

    def work():
        for turn in range(20):
            late = turn % 2
            asleep = 8 * (1 - late) + 1
            while team.rank == late and not team._arrived[asleep]:
                os.sched_yield()
            team.barrier()
        return "done"

    assert team.launch(work) == "done"


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_rows_are_divided_without_gap_or_overlap(count):
    team, found = Processes(3), []
    for team.rank in range(3):
        found += range(*team.rows(count))
    assert found == list(range(count))


def test_ranks_that_only_update_compute_no_rows():
    team = Processes(4, computing=2)
    for team.rank, rows in enumerate([(0, 3), (3, 7), (7, 7), (7, 7)]):
        assert team.rows(7) == rows
        assert team.computes == (team.rank < 2)


@pytest.mark.parametrize(("size", "computing", "description"), [
    (3, None, "3 processes"), (3, 1, "3 processes that update, one of them computes")])
def test_ranks_say_what_they_are(size, computing, description):
    assert Processes(size, computing).description == description
    assert Alone().description == ""


def test_one_rank_has_nothing_to_share():
    team, x = Alone(), np.ones(3)
    assert team.launch(lambda: 5) == 5
    assert team.shared(x) is x and team.sum(2.0, 3) == (2.0, 3) and team.rows(7) == (0, 7)


@pytest.mark.parametrize(("end", "message"), [
    (lambda: 1 / 0, "worker 2 of 3 failed: ZeroDivisionError: division by zero"),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "worker 2 of 3 was ended by signal 9"),
])
def test_worker_that_ends_ends_all_and_is_named(end, message):
    team = Processes(3)
    pids = team.shared(np.zeros(3, np.int64))

    def work():
        pids[team.rank] = os.getpid()
        team.barrier()
        if team.rank == 2:
            end()
        team.barrier()

    with pytest.raises(RunError, match=message):
        team.launch(work)
    assert gone(pids[1:])


def test_error_of_the_first_rank_ends_all():
    team = Processes(3)
    pids = team.shared(np.zeros(3, np.int64))

    def work():
        pids[team.rank] = os.getpid()
        team.barrier()
        if team.rank == 0:
            raise KeyError("mine")
        team.barrier()

    with pytest.raises(KeyError, match="mine"):
        team.launch(work)
    assert gone(pids[1:])


def test_workers_do_not_outlive_a_first_rank_that_is_killed(tmp_path):
    script = """
import os, pathlib, signal, sys
from npgpt.parallel.ranks import Processes
team = Processes(3)
def work():
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    team.barrier()
    if team.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    team.barrier()
team.launch(work)
"""
    result = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True)
    assert result.returncode == -signal.SIGKILL
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 3 and gone(pids)


def test_number_of_ranks_follows_a_fixed_rule():
    four = Device("cpu", np, (), cores=4)
    assert choose(None, 12, 10**6, four) == (4, 4)
    assert choose(None, 3, 10**6, four) == (3, 3)             # no more than there are rows
    assert choose(None, 12, ranks.LARGE - 1, four) == (4, 4)
    assert choose(None, 1, ranks.LARGE, four) == (4, 1)       # BLAS's threads compute faster
    assert choose(None, 1, ranks.LARGE, four, muon=True) == (1, 1)
    assert choose(None, 12, 10**6, four, muon=True) == (4, 4)
    assert choose(2, 12, ranks.LARGE, four) == (2, 2)         # unless somebody says otherwise
    assert choose(8, 12, 10**6, four) == (8, 8)
    assert choose(4, 12, 10**6, Device("gpu", np, (), cores=4)) == (1, 1)


def test_one_process_where_there_is_no_fork(monkeypatch):
    monkeypatch.setattr(ranks.sys, "platform", "darwin")
    assert choose(4, 12, 10**6, CPU) == (1, 1)
