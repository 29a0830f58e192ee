"""The double of `cupy.cuda.nccl`: its collectives, on the host, between the ranks of MPI.

It is stricter than NCCL, which gets addresses and believes what it is told. Here an address must be
that of an array of the type and with the number of elements that the call names. Ranks
must make the same calls in the same order; NCCL would wait without end, or mix them up.
"""

import os

import numpy as np

from tests.double import cupy
from tests.double.array import addressed
from tests.double.stream import streams

available = True
NCCL_SUM, NCCL_PROD, NCCL_FLOAT32, NCCL_FLOAT64 = 0, 1, 7, 8
DTYPES = {NCCL_FLOAT32: np.float32, NCCL_FLOAT64: np.float64}
METHODS = {             # name -> CuPy's arguments
    "allReduce": "sendbuf recvbuf count datatype op stream",
    "reduce": "sendbuf recvbuf count datatype op root stream",
    "broadcast": "sendbuff recvbuff count datatype root stream",
    "reduceScatter": "sendbuf recvbuf recvcount datatype op stream",
    "allGather": "sendbuf recvbuf count datatype stream",
    "destroy": "", "abort": "",
}


ended = []             # "destroy" or "abort" for each communicator, as often as it is called


class NcclError(RuntimeError):
    """NCCL refuses a call, or would fail in one."""


class Group:
    """The calls between groupStart and groupEnd."""

    depth, calls = 0, []


def get_version():
    return 22501


def get_unique_id():
    return os.urandom(128)


def groupStart():
    Group.depth += 1


def groupEnd():
    if not Group.depth:
        raise NcclError("NCCL_ERROR_INVALID_USAGE: groupEnd without groupStart")
    Group.depth -= 1
    if not Group.depth:
        calls, Group.calls = Group.calls, []
        for stream, work in calls:
            stream.enqueue(work)


class NcclCommunicator:
    """A rank of a group. All ranks of MPI create it together, or one creates its own."""

    problem = None                          # why it cannot be created

    def __init__(self, ndev, commId, rank, config=None):
        from mpi4py import MPI  # here, because it initialises MPI
        if self.problem:
            raise NcclError(self.problem)
        ranks = MPI.COMM_SELF if ndev == 1 else MPI.COMM_WORLD
        found = ranks.allgather((ndev, commId, rank, cupy.GPUs.address(cupy.GPUs.current)))
        sizes, names, numbers, addresses = zip(*found)
        if set(sizes) != {ranks.size} or numbers != tuple(range(ranks.size)):
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: sizes or ranks are wrong")
        if len(set(names)) > 1 or len(commId) != 128:
            raise NcclError("NCCL_ERROR_SYSTEM_ERROR: the ranks have different ids")
        if len(set(addresses)) < ranks.size:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: duplicate GPU")
        self._ranks, self._usable = ranks.Dup(), True

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        _only_sums(op)
        self._call("allReduce", (), (sendbuf, count), (recvbuf, count), datatype, stream, _sum)

    def reduce(self, sendbuf, recvbuf, count, datatype, op, root, stream):
        _only_sums(op)
        receives = self._checked(root) == self._ranks.rank
        self._call("reduce", (root,), (sendbuf, count), (recvbuf, count) if receives else None,
                   datatype, stream, _sum)

    def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
        sends = self._checked(root) == self._ranks.rank
        self._call("broadcast", (root, count), (sendbuff, count) if sends else None,
                   (recvbuff, count), datatype, stream, lambda parts: parts[root])

    def reduceScatter(self, sendbuf, recvbuf, recvcount, datatype, op, stream):
        _only_sums(op)
        own = slice(self._ranks.rank * recvcount, (self._ranks.rank + 1) * recvcount)
        self._call("reduceScatter", (), (sendbuf, recvcount * self._ranks.size),
                   (recvbuf, recvcount), datatype, stream, lambda parts: _sum(parts)[own],
                   offset=own.start)

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):
        self._call("allGather", (), (sendbuf, count), (recvbuf, count * self._ranks.size), datatype,
                   stream, np.concatenate, offset=-self._ranks.rank * count)

    def destroy(self):
        self._usable = False
        ended.append("destroy")

    def abort(self):
        self._usable = False
        ended.append("abort")

    def _checked(self, root):
        if root not in range(self._ranks.size):
            raise NcclError(f"NCCL_ERROR_INVALID_ARGUMENT: there is no rank {root}")
        return root

    def _call(self, name, options, send, receive, datatype, stream, combine, offset=0):
        """send, receive: address and number of elements, or None. combine: the arrays of all ranks
        -> what is received. offset: in elements, of what is received in what is sent if both
        overlap."""
        if not self._usable:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: the communicator was destroyed")
        sent, received = (at and _memory(*at, datatype) for at in (send, receive))
        if sent is not None and received is not None and np.shares_memory(sent, received) and (
                received.ctypes.data - sent.ctypes.data != offset * sent.itemsize):
            raise NcclError(f"NCCL_ERROR_INVALID_ARGUMENT: {name} overlaps itself")

        def work():
            call = name, options, datatype, None if sent is None else sent.size
            found = self._ranks.allgather((call, None if sent is None else sent.copy()))
            calls = {(name, options, datatype) for (name, options, datatype, _), _ in found}
            sizes = {size for (*_, size), _ in found} - {None}
            if len(calls) > 1 or len(sizes) > 1:
                raise NcclError(f"the ranks make different calls: {[call for call, _ in found]}")
            if received is not None:
                received[...] = combine([part for _, part in found])

        if Group.depth:
            Group.calls.append((streams[stream], work))
        else:
            streams[stream].enqueue(work)


def _memory(address, count, datatype):
    """-> the elements from this address on, as an array (count,)."""
    if datatype not in DTYPES:
        raise NcclError(f"NCCL_ERROR_INVALID_ARGUMENT: unknown type {datatype}")
    host = addressed.get((address, count))
    if host is None or host.dtype != DTYPES[datatype] or not host.flags.c_contiguous:
        raise NcclError(f"NCCL_ERROR_INVALID_ARGUMENT: no contiguous array of {count} elements of "
                        f"the type {datatype} is at this address")
    return host.reshape(-1)


def _only_sums(op):
    if op != NCCL_SUM:
        raise NcclError(f"NCCL_ERROR_INVALID_ARGUMENT: the double adds only, not {op}")


def _sum(parts):
    """The sum in the order of the ranks."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total
