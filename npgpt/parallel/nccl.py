"""NCCL: the ranks of a launcher, each with a GPU of its own. Arrays of the GPUs go from one to the
other directly; everything else, such as numbers of the host, goes by MPI.

A group of calls waits on the GPU, not on the host: for what the GPU was given before, and what it
is given later waits for the group if it needs the result. For this NCCL has a stream of its own, so
the sum of a bucket goes on beside the backward of the layers before.

Sums and copies are in place. NCCL adds in an order of its own.
"""

import atexit
import importlib
import socket
import warnings
from contextlib import contextmanager

from npgpt.errors import UserError
from npgpt.parallel.buckets import runs
from npgpt.parallel.mpi import Mpi
from npgpt.parallel.single import Single


def ranks_on(ranks, device):
    """The Mpi of all ranks -> the Communicator of the same ranks for arrays of a device. Raises
    UserError, in all ranks, if they cannot train together on their devices."""
    first, *others = ranks.exchange(device.name)
    for rank, name in enumerate(others, 1):
        if name != first:
            raise UserError(f"`device` is {name} in rank {rank}, and {first} in rank 0; choose one "
                            "that every rank has")
    if device.name == "cpu":
        return ranks
    nccl = import_nccl()
    for problem in ranks.exchange(_problem(ranks, device, nccl)):
        if problem:
            raise UserError(problem)
    return Nccl(ranks, device, nccl) if nccl else Single()


def import_nccl():
    """-> the module cupy.cuda.nccl, or None if NCCL is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # CuPy's, in several lines
        nccl = importlib.import_module("cupy.cuda.nccl")
    return nccl if nccl.available else None


def _problem(ranks, device, nccl):
    """Why the ranks of this machine cannot train on their GPUs, or None."""
    addresses = ranks.here.allgather(device.address())
    count, gpus = len(addresses), len(set(addresses))
    if gpus < count:
        return (f"{count} ranks on {socket.gethostname()} have {gpus} GPU{'s' * (gpus > 1)}; start "
                "one rank for each GPU, or use `device` cpu")
    if nccl is None and ranks.size > 1:
        cuda = device.xp.cuda.runtime.runtimeGetVersion() // 1000
        return f"several GPUs need NCCL; run: pip install \"npgpt[nccl{cuda}]\""
    return None


class Nccl(Mpi):
    """The ranks of a launcher, for arrays of their GPUs."""

    def __init__(self, ranks, device, nccl):
        """ranks: the Mpi of the same ranks. nccl: CuPy's module."""
        vars(self).update(vars(ranks))           # they are the same ranks, with the same channels
        self._mpi = ranks
        self._nccl, self._cuda = nccl, device.xp.cuda
        self._types = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        self._stream = self._cuda.Stream(non_blocking=True)
        self._given, self._done = (self._cuda.Event(disable_timing=True) for _ in range(2))
        try:
            self._group = nccl.NcclCommunicator(
                self.size, self.broadcast(nccl.get_unique_id), self.rank)
        except RuntimeError as error:
            raise UserError(f"NCCL cannot connect the GPUs: {error}; set NCCL_DEBUG=INFO in the "
                            "environment, and it tells why") from error
        # Destroying it waits for the other ranks of this machine, which may have failed.
        atexit.register(self._group.abort)
        version = nccl.get_version()
        self.description += f", NCCL {version // 10000}.{version // 100 % 100}.{version % 100}"

    @contextmanager
    def _calls(self):
        """Calls inside are one group. It begins when the GPU has done what it was given before."""
        self._cuda.get_current_stream().record(self._given)
        self._stream.wait_event(self._given)
        self._nccl.groupStart()
        yield
        self._nccl.groupEnd()

    def _wait(self):
        """What the GPU is given from now on begins when all calls have been done."""
        self._stream.record(self._done)
        self._cuda.get_current_stream().wait_event(self._done)

    def _type(self, array):
        return self._types[array.dtype.name]

    def same(self, flat):
        with self._calls():
            at = flat.data.ptr
            self._group.broadcast(at, at, flat.size, self._type(flat), 0, self._stream.ptr)
        self._wait()

    def launch(self, work, kept=None):
        status = self._mpi.launch(work, kept)
        self._group.destroy()
        return status

    def any(self, flag):
        return self._mpi.any(flag)

    def all_reduce(self, number):
        if isinstance(number, int | float):
            return super().all_reduce(number)
        total = number.astype("float64")
        with self._calls():
            at = total.data.ptr
            self._group.allReduce(at, at, 1, self._type(total), self._nccl.NCCL_SUM,
                                  self._stream.ptr)
        self._wait()
        return total

    def _start(self, pieces):
        flat, add, stream = self._reduction.flat, self._nccl.NCCL_SUM, self._stream.ptr
        with self._calls():
            if n := _equal(pieces, self.size):
                start = pieces[0][1].start
                whole, own = flat[start:start + n * self.size], flat[pieces[self.rank][1]]
                self._group.reduceScatter(whole.data.ptr, own.data.ptr, n, self._type(flat), add,
                                          stream)
                return
            for rank, part in pieces:
                at = flat[part].data.ptr
                self._group.reduce(at, at, part.stop - part.start, self._type(flat), add, rank,
                                   stream)

    def reduce_scatter(self, grads, shards):
        self._reduction.finish()
        self._wait()
        return grads.flat

    def all_gather(self, flat, shards):
        stream = self._stream.ptr
        with self._calls():
            for pieces in runs(shards):
                if n := _equal(pieces, self.size):
                    start = pieces[0][1].start
                    whole, own = flat[start:start + n * self.size], flat[pieces[self.rank][1]]
                    self._group.allGather(own.data.ptr, whole.data.ptr, n, self._type(flat), stream)
                    continue
                for rank, part in pieces:
                    at = flat[part].data.ptr
                    self._group.broadcast(at, at, part.stop - part.start, self._type(flat), rank,
                                          stream)
        self._wait()


def _equal(pieces, size):
    """Neighbouring pieces, as `runs` returns them -> the number of elements of each, if every rank
    has one and all have the same size; else 0."""
    counts = {part.stop - part.start for _, part in pieces}
    return counts.pop() if len(pieces) == size and len(counts) == 1 else 0
