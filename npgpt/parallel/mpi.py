"""MPI: ranks that a launcher such as mpiexec has started, on one machine or on several.

Every rank has memory of its own. The gradients are summed in buckets, each of which begins as soon
as the backward has completed it; rank r gets the sum of its part of each bucket, updates these
parameters, and all parts are gathered. The ranks communicate by mpi4py. This file knows nothing of
the network or of the launcher.
"""

import os
import socket
import sys
import time

import numpy as np
from mpi4py import MPI

from npgpt.backend import device_of, to_host
from npgpt.parallel.buckets import Reduction, buckets, runs
from npgpt.parallel.communicator import Communicator
from npgpt.parallel.ending import end_together, status_of
from npgpt.parallel.threads import limit_blas
from npgpt.parallel.watch import Watch

CHUNK = 2**22            # numbers in one message of a whole array
PATIENCE = 1.0           # seconds that the last vote may take


class Mpi(Communicator):
    """The ranks of a launcher."""

    launched, shares_memory = True, False

    def __init__(self, ranks=MPI.COMM_WORLD):
        """ranks: mpi4py's communicator of all of them."""
        self._ranks = ranks                  # for what all ranks do in one order
        self._sums = ranks.Dup()             # for buckets, whose sums go on meanwhile
        self.rank, self.size = ranks.rank, ranks.size
        self.computing = self.size
        line = MPI.Get_library_version().splitlines()[0].split(",")[0]
        self.library = " ".join(line.replace("Version:", "").split())
        self.here = ranks.Split_type(MPI.COMM_TYPE_SHARED)        # those of this machine
        self.local_rank, self.local_size = self.here.rank, self.here.size
        if self.local_size > 1:
            limit_blas()
        hosts = len(set(self.exchange(socket.gethostname())))
        self.description = (f"{self.size} MPI rank{'s' * (self.size > 1)}"
                            + (f" on {hosts} hosts" if hosts > 1 else ""))
        self._watch = Watch(ranks.Dup())
        self._failures = ranks.Dup()
        self._reduction, self._requests, self._received = None, [], []
        self._vote = None                    # request and flag of the latest `any`

    # --- before launch ---

    def run(self, name, command):
        self._watch.command = name
        if not self.is_first:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")               # noqa: SIM115
        with self._watch:
            try:
                status = command()
            except BaseException as error:
                error = end_together(self._failures, error)
                self._end_vote()
                raise error from None
            self._end_vote()
            return status

    def broadcast(self, make):
        result = failure = None
        if self.is_first:
            try:
                result = make()
            except BaseException as error:
                failure = error
        status = self._ranks.bcast(failure and status_of(failure))
        if status is not None:
            raise failure or SystemExit(status)
        return self._ranks.bcast(result)

    def exchange(self, value):
        return self._ranks.allgather(value)

    def ranges(self, params):
        return [slice(bucket.start, bucket.stop) for bucket in buckets(params)]

    def buffers(self, like):
        return {self.rank: device_of(like).xp.zeros_like(like)}

    def same(self, flat):
        device = device_of(flat)
        for start in range(0, flat.size, CHUNK):
            part = np.ascontiguousarray(to_host(flat[start:start + CHUNK]))
            self._ranks.Bcast(part)
            flat[start:start + CHUNK] = device.to_device(part)

    def scatter(self, whole, array, slices):
        device, at = device_of(array), 0
        if self.is_first:
            for rank, part in _messages(slices):
                values = np.ascontiguousarray(whole[part], array.dtype)
                if rank:
                    self._ranks.Send(values, rank)
                else:
                    array[at:at + values.size] = device.to_device(values)
                    at += values.size
            return
        for rank, part in _messages(slices):
            if rank == self.rank:
                values = np.empty(part.stop - part.start, array.dtype)
                self._ranks.Recv(values, 0)
                array[at:at + values.size] = device.to_device(values)
                at += values.size

    def launch(self, work, kept=None):
        self._watch.kept = kept
        status = work()
        self.barrier()                       # so that no rank ends while another still needs it
        return status

    # --- in every rank ---

    def barrier(self):
        self._ranks.Barrier()

    def all_reduce(self, number):
        number = number if isinstance(number, int | float) else to_host(number)
        total = np.array(number, np.float64)
        self._ranks.Allreduce(MPI.IN_PLACE, total)
        return total[()]

    def begin(self, grads, shards, passes):
        if self._reduction is None or self._reduction.grads is not grads:
            self._reduction = Reduction(grads, shards, self._start, self._drive)
        self._reduction.begin(passes)

    def _start(self, pieces):
        """Start the sum of neighbouring pieces, pairs of a rank and its slice of the gradients."""
        start, stop, counts = _extent(pieces, self.size)
        own = np.empty(counts[self.rank], self._reduction.flat.dtype)
        self._requests.append(self._sums.Ireduce_scatter(
            self._reduction.flat[start:stop], own, counts))
        self._received += [(part, own) for rank, part in pieces if rank == self.rank]

    def _drive(self):
        """Most MPI libraries move data only while they are called."""
        MPI.Request.Testall(self._requests)

    def reduce_scatter(self, grads, shards):
        self._reduction.finish()
        MPI.Request.Waitall(self._requests)
        flat = grads.flat
        for part, total in self._received:
            flat[part] = total
        self._requests, self._received = [], []
        return flat

    def all_gather(self, flat, shards):
        requests = []
        for pieces in runs(shards):
            start, stop, counts = _extent(pieces, self.size)
            requests.append(self._sums.Iallgatherv(MPI.IN_PLACE, [flat[start:stop], counts]))
        MPI.Request.Waitall(requests)

    def collect(self, array, slices):
        if self.is_first:
            return self._collected(array, slices)
        at = 0
        for rank, part in _messages(slices):
            if rank == self.rank:
                n = part.stop - part.start
                self._ranks.Send(np.ascontiguousarray(to_host(array[at:at + n])), 0)
                at += n
        return []

    def _collected(self, array, slices):
        at = 0
        for rank, part in _messages(slices):
            n = part.stop - part.start
            if rank:
                values = np.empty(n, array.dtype)
                self._ranks.Recv(values, rank)
                yield values
            else:
                yield to_host(array[at:at + n])
                at += n

    def any(self, flag):
        before = False
        if self._vote:
            request, votes = self._vote
            request.Wait()
            before = bool(votes[0])
        votes = np.array([flag], np.int32)
        self._vote = self._ranks.Iallreduce(MPI.IN_PLACE, votes, MPI.MAX), votes
        return before

    def _end_vote(self):
        """MPI ends only when nothing goes on. If a rank has failed, others may not have voted."""
        until = time.monotonic() + PATIENCE
        while self._vote and not self._vote[0].Test() and time.monotonic() < until:
            time.sleep(0.001)


def _extent(pieces, size):
    """Neighbouring pieces in the order of their ranks -> start and stop of all of them, and the
    number of elements of each rank."""
    counts = [0] * size
    for rank, part in pieces:
        counts[rank] = part.stop - part.start
    return pieces[0][1].start, pieces[-1][1].stop, counts


def _messages(slices):
    """rank -> slices of an array -> pairs of a rank and a slice of at most CHUNK elements, in the
    order of the array."""
    pieces = sorted(((part.start, rank, part.stop) for rank, parts in enumerate(slices)
                     for part in parts))
    for start, rank, stop in pieces:
        for at in range(start, stop, CHUNK):
            yield rank, slice(at, min(at + CHUNK, stop))
