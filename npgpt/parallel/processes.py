"""Several processes on one machine that share memory.

Parameters, gradients and the optimiser's state are in anonymous memory maps, which forked processes
inherit and which disappear with the last process. So reduce_scatter sums a shard in place, and
all_gather is a barrier. For a large model only the first rank computes, with BLAS's threads on all
cores, and the others only update.

If a rank ends early, all ranks end: the first rank checks the workers, and each worker checks the
first rank.
"""

import mmap
import os
import signal
import sys
import traceback

import numpy as np

from npgpt.errors import RunError
from npgpt.parallel.barrier import Barrier
from npgpt.parallel.communicator import Communicator
from npgpt.parallel.threads import limit_blas

FAILURE = 4096                                    # bytes kept of a worker's traceback
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
                if hasattr(signal, name))


class Processes(Communicator):
    """Several processes on this machine. `launch` forks all but the first."""

    def __init__(self, size, computing=None):
        """computing: how many of them compute gradients; None: all."""
        self.size, self.computing = size, computing or size
        self.description = (f"{size} processes" if self.computing > 1
                            else f"1 process that computes and {size - 1} that only update")
        self._barrier = Barrier(size, self._check_others)
        self._numbers = _zeros((2, size, 1), np.float64)      # for all_reduce, used in turns
        self._flags = _zeros((2, size), np.int64)             # for `any`, used in turns
        self._sums = self._votes = 0
        self._set = _zeros((size,), np.int64)                 # for `any_so_far`
        self._buffers = []
        self._failures = mmap.mmap(-1, size * FAILURE)        # of each rank, the end of a traceback
        self._first = os.getpid()
        self._workers = {}                # process id -> rank

    @property
    def local_rank(self):
        return self.rank

    @property
    def local_size(self):
        return self.size

    def share(self, array):
        copy = _zeros(array.shape, array.dtype)
        copy[...] = array
        return copy

    def buffers(self, like):
        self._buffers = [_zeros(like.shape, like.dtype) for _ in range(self.computing)]
        return self._buffers + [None] * (self.size - self.computing)

    def launch(self, work, kept=None):
        self._kept = kept
        self._failures[:] = bytes(len(self._failures))
        self._barrier.open()
        try:
            for rank in range(1, self.size):
                # A signal between the fork and the child's first lines would end in both.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
                process = os.fork()
                if process == 0:
                    self._work_as(rank, work)
                self._workers[process] = rank
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            status = work()
            self.barrier()                # so that no rank ends while another still needs it
            return status
        finally:
            for process in self._workers:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            self._workers = {}
            self._barrier.close()

    def _work_as(self, rank, work):
        """Run work() in a forked process. Never returns."""
        status = 1
        try:
            self.rank, self._workers = rank, {}
            for number in SIGNALS:                             # the first rank decides for all
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            if not self.computes:
                limit_blas()
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")     # noqa: SIM115
            work()
            self.barrier()
            status = 0
        except BaseException:
            text = traceback.format_exc().encode()[-FAILURE:]
            self._failures[rank * FAILURE:rank * FAILURE + len(text)] = text
        finally:
            os._exit(status)

    def _check_others(self):
        """Raise RunError if a worker has ended; exit if the first rank has ended."""
        if self.rank > 0:
            if os.getppid() != self._first:
                os._exit(1)
            return
        for process, rank in list(self._workers.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended == 0:
                continue
            del self._workers[process]
            code = os.waitstatus_to_exitcode(status)
            if code == 0 and self._barrier.reached(rank):      # it has finished
                continue
            kept = f"; {self._kept()}" if self._kept else ""
            raise RunError(f"worker {rank} of {self.size} {self._reason(rank, code)}{kept}")

    def _reason(self, rank, code):
        """Exit code of a worker -> how it ended, in words."""
        if code < 0:
            return f"was killed by signal {-code}"
        text = self._failures[rank * FAILURE:(rank + 1) * FAILURE].rstrip(b"\0")
        lines = text.decode(errors="replace").strip().splitlines()
        return f"failed: {lines[-1]}" if lines else f"ended early, with status {code}"

    def barrier(self):
        self._barrier.wait(self.rank)

    def all_reduce(self, number):
        # With two tables, none is overwritten before every rank has read it.
        self._sums += 1
        table = self._numbers[self._sums % 2]
        table[self.rank] = number
        self.barrier()
        return table.sum(0)[0]

    def reduce_scatter(self, grads, shards):
        if self.computes:
            grads.fill()
        self.barrier()
        first, *others = self._buffers
        for part in shards[self.rank] if others else []:
            for other in others:
                first[part] += other[part]
        return first

    def all_gather(self, flat, shards):
        self.barrier()

    def collect(self, array, slices):
        self.barrier()
        return [array]

    def any(self, flag):
        # The table that is read was written before the latest barrier, and is not overwritten
        # before the next one.
        before, now = self._flags[self._votes % 2], self._flags[(self._votes + 1) % 2]
        self._votes += 1
        now[self.rank] = flag
        return bool(before.any())

    def any_so_far(self, flag):
        self._set[self.rank] = flag
        return bool(self._set.any())


def _zeros(shape, dtype):
    """-> zeros in memory that forked processes share."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype, int(np.prod(shape))).reshape(shape)


def can_fork():
    """Whether processes can share memory here. macOS's system libraries do not support fork."""
    return sys.platform == "linux" and hasattr(os, "fork")
