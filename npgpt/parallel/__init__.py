"""Ranks that train one model together: one process, several on one machine, or those of MPI.

`communicator` defines the interface; `single`, `processes`, `mpi` and `nccl` implement it.
"""

import functools
import os

from npgpt.backend import choose_gpu
from npgpt.errors import UserError
from npgpt.parallel.communicator import Communicator
from npgpt.parallel.norm import squared_norm
from npgpt.parallel.processes import SIGNALS, Processes, can_fork
from npgpt.parallel.single import Single
from npgpt.parallel.threads import choose_threads, limit_blas

__all__ = ["LARGE", "SIGNALS", "Communicator", "Processes", "Single", "can_fork", "choose_ranks",
           "choose_threads", "make_communicator", "squared_norm", "world", "world_on"]

LARGE = 20_000_000       # parameters; from this size on BLAS's threads are faster than processes


# How launchers tell a process its rank and the number of ranks: MPICH's, Intel's and Microsoft's
# mpiexec and SLURM's PMI-2; Open MPI; SLURM's PMIx.
LAUNCHERS = (("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
             ("PMIX_RANK", "SLURM_NTASKS"))


@functools.cache
def world():
    """-> the Communicator of the ranks that a launcher such as mpiexec has started; Single if there
    is none. Raises UserError if mpi4py is missing or belongs to another launcher. Each rank of a
    machine chooses another GPU, so call it before the first use of a GPU."""
    found = next((names for names in LAUNCHERS if names[0] in os.environ), None)
    if found is None:
        return Single()
    rank, started = (int(os.environ.get(name, default)) for name, default in zip(found, "01"))
    try:
        from npgpt.parallel.mpi import Mpi
        problem = None
    except (ImportError, RuntimeError) as error:           # RuntimeError: it finds no MPI library
        problem = f"mpi4py cannot be imported: {error}; run: pip install \"npgpt[mpi]\""
    comm = None if problem else Mpi()
    if comm and comm.size == 1 < started:
        problem = ("mpi4py belongs to another MPI library, which sees 1 process; use the mpiexec "
                   "of that library")
    if problem is None:
        choose_gpu(comm.local_rank)
        return comm
    if rank:
        raise SystemExit(2)                                # the first one says it
    raise UserError(f"a launcher has started {started} processes, but {problem}")


def world_on(device):
    """-> the ranks of a launcher, which exchange arrays of this device. All of them call it. Raises
    UserError if they cannot train together on their devices."""
    from npgpt.parallel.nccl import ranks_on
    return ranks_on(world(), device)


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


def make_communicator(size, computing, threads=None):
    """-> Single or Processes. threads: of BLAS in each rank that computes; None: all."""
    if threads:
        limit_blas(threads)
    return Single() if size == 1 else Processes(size, computing)
