"""Ranks that train one model together: one process, or several on one machine.

`communicator` defines what ranks say to each other; each other file is one implementation.
"""

from npgpt.parallel.communicator import Communicator
from npgpt.parallel.norm import squared_norm
from npgpt.parallel.processes import Processes, WorkerEnded, can_fork, limit_blas
from npgpt.parallel.single import Single

__all__ = ["LARGE", "Communicator", "Processes", "Single", "WorkerEnded", "can_fork",
           "choose_ranks", "make_communicator", "squared_norm", "world"]

LARGE = 20_000_000       # parameters, from which BLAS's threads compute faster than processes


def world():
    """-> the ranks that this program was started with: one, until a launcher starts several."""
    return Single()


def choose_ranks(workers, rows, parameters, device, muon=False):
    """-> how many ranks a run gets, and how many of them compute.

    workers: the number asked for; None: one for each core. If the model is large, one rank
    computes, because its products keep BLAS's threads busy, and with muon it is alone, because that
    update is products too. No more ranks compute than a batch has rows.
    """
    if device.name != "cpu" or not can_fork():
        return 1, 1
    if workers is None and parameters >= LARGE:
        return 1 if muon else device.cores, 1
    size = min(workers or device.cores, rows)
    return size, size


def make_communicator(size, computing):
    """-> Single or Processes; with BLAS on one thread each where several ranks compute."""
    if size == 1:
        return Single()
    if computing > 1:
        limit_blas()
    return Processes(size, computing)
