"""Ranks that train one model together: one process, or several on one machine.

`communicator` defines the interface; `single` and `processes` implement it.
"""

from npgpt.parallel.communicator import Communicator
from npgpt.parallel.norm import squared_norm
from npgpt.parallel.processes import SIGNALS, Processes, WorkerEnded, can_fork, limit_blas
from npgpt.parallel.single import Single

__all__ = ["LARGE", "SIGNALS", "Communicator", "Processes", "Single", "WorkerEnded", "can_fork",
           "choose_ranks", "make_communicator", "squared_norm", "world"]

LARGE = 20_000_000       # parameters; from this size on BLAS's threads are faster than processes


def world():
    """-> the Communicator of the ranks that a launcher started: so far always one rank."""
    return Single()


def choose_ranks(workers, rows, parameters, device, muon=False):
    """-> the number of ranks of a run, and of those that compute gradients.

    workers: the requested number. None: one per core; but for a large model only one rank computes,
    with BLAS's threads on all cores, and with muon it is the only rank, because Muon's update is
    matrix products too. There are at most as many computing ranks as rows in a batch.
    """
    if device.name != "cpu" or not can_fork():
        return 1, 1
    if workers is None and parameters >= LARGE:
        return 1 if muon else device.cores, 1
    size = min(workers or device.cores, rows)
    return size, size


def make_communicator(size, computing):
    """-> Single or Processes. If several ranks compute, BLAS gets one thread in each."""
    if size == 1:
        return Single()
    if computing > 1:
        limit_blas()
    return Processes(size, computing)
