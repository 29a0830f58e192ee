"""One process or several that train one model together.

Every rank runs the same loop on its rows of each batch, and the sums of what they found are the
whole batch's. Several ranks on one machine are processes that share memory: parameters, gradients
and the optimiser's means lie in anonymous maps that a fork inherits, and that are gone with the
last process. Each rank adds up and updates its own share of the flat buffer, so that this work is
divided too. Every sum is taken in the order of the ranks: with the same number of ranks a run is
the same to the last bit. Where a model is large, the first rank alone computes, with BLAS's threads
on all cores, and the others only help it to update.

Waiting is spinning at first, since to fall asleep and wake takes longer than most waits, then
yielding, then sleeping until somebody arrives. Whoever sleeps looks round now and then: the first
rank for workers that ended, a worker for the first rank. So none outlives the others.
"""

import mmap
import os
import select
import signal
import sys
import threading
import time
import traceback

import numpy as np

from npgpt.errors import RunError

SPINS = 2000             # about a tenth of a millisecond
PATIENCE = 0.002         # seconds of yielding before sleeping
NAP = 0.1                # seconds of sleep between two looks round
LARGE = 20_000_000       # parameters, from which BLAS's threads compute faster than processes


class WorkerEnded(RunError):
    """A worker ended before the others; the message says which and how."""


class Alone:
    """One process."""

    rank, size = 0, 1
    computing = 1            # how many of the ranks compute gradients: the first ones
    description = ""         # for a person to read, where there is something to say

    @property
    def computes(self):
        """Whether this rank computes gradients."""
        return self.rank < self.computing

    def launch(self, work):
        """Run work() in every rank -> what it returns in the first."""
        return work()

    def shared(self, array):
        """A copy that all ranks see, or the array itself where there is one rank."""
        return array

    def rows(self, count):
        """The first and the last row + 1 of `count` that this rank computes."""
        first, last = (min(rank, self.computing) for rank in (self.rank, self.rank + 1))
        return first * count // self.computing, last * count // self.computing

    def barrier(self):
        """Return when every rank has come here."""

    def sum(self, *numbers):
        """The sums over all ranks, of scalars."""
        return numbers

    def add_up(self, buffers, share):
        """Add the buffers of all ranks that compute to the first one's, where the share says."""


class Processes(Alone):
    """Several processes on this machine. `launch` forks all but the first."""

    def __init__(self, size, computing=None):
        """computing: how many of them compute gradients; None: all."""
        self.size, self.computing = size, computing or size
        self.description = (f"{size} processes" if self.computing > 1
                            else f"{size} processes that update, one of them computes")
        # For each rank, in a cache line of its own: the barriers it has come to, whether it sleeps.
        self._arrived = memoryview(mmap.mmap(-1, 64 * size)).cast("q")
        self._numbers = _mapped((2, size, 8), np.float64)                 # in turns: see `sum`
        self._failure = mmap.mmap(-1, 4096)
        self._barriers = self._sums = 0
        self._fence = threading.Lock()    # taking it orders memory, on processors that need it
        self._first = os.getpid()
        self._workers = {}                # process -> rank
        self._bells = []                  # of each rank, an event that wakes it

    def launch(self, work):
        self._bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(self.size)]
        try:
            for rank in range(1, self.size):
                process = os.fork()
                if process == 0:
                    self._be(rank, work)
                self._workers[process] = rank
            status = work()
            self.barrier()                # so that nobody ends while another still needs him
            return status
        finally:
            for process in self._workers:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            for bell in self._bells:
                os.close(bell)
            self._workers = {}

    def _be(self, rank, work):
        """What a forked process does; it never returns."""
        status = 1
        try:
            self.rank, self._workers = rank, {}
            signal.signal(signal.SIGINT, signal.SIG_IGN)       # the first rank decides for all
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if not self.computes:
                _limit_blas()
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")     # noqa: SIM115
            work()
            self.barrier()
            status = 0
        except BaseException:
            text = traceback.format_exc().encode()[-4000:]
            self._failure[:len(text)] = text
        finally:
            os._exit(status)

    def shared(self, array):
        copy = _mapped(array.shape, array.dtype)
        copy[...] = array
        return copy

    def barrier(self):
        self._barriers += 1
        with self._fence:
            self._arrived[8 * self.rank] = self._barriers
        for rank in range(self.size):
            if self._arrived[8 * rank + 1]:
                os.eventfd_write(self._bells[rank], 1)
        for rank in range(self.size):
            self._wait(8 * rank)
        with self._fence:
            pass

    def _wait(self, place):
        """Until the rank that writes to this place has come to the barrier."""
        arrived, due = self._arrived, self._barriers
        for _ in range(SPINS):
            if arrived[place] >= due:
                return
        until = time.monotonic() + PATIENCE
        while arrived[place] < due and time.monotonic() < until:
            os.sched_yield()
        if arrived[place] < due:
            self._sleep(place)

    def _sleep(self, place):
        """The same, asleep. Who arrives rings the bells of those that say they sleep: so this says
        so before it looks for the last time, and who arrives looks after he has."""
        asleep, bell = 8 * self.rank + 1, self._bells[self.rank]
        with self._fence:
            self._arrived[asleep] = 1
        while self._arrived[place] < self._barriers:
            if select.select([bell], [], [], NAP)[0]:
                os.eventfd_read(bell)
            self._look_round()
        self._arrived[asleep] = 0

    def _look_round(self):
        """Raise WorkerEnded if a worker has ended; end if the first rank has."""
        if self.rank > 0:
            if os.getppid() != self._first:
                os._exit(1)
            return
        process, status = os.waitpid(-1, os.WNOHANG) if self._workers else (0, 0)
        if process == 0:
            return
        rank = self._workers.pop(process)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:                     # it had only to end, and has
            return
        text = bytes(self._failure).rstrip(b"\0").decode(errors="replace").strip()
        why = f"was ended by signal {-code}" if code < 0 else f"failed: {text.splitlines()[-1]}"
        raise WorkerEnded(f"worker {rank} of {self.size} {why}")

    def sum(self, *numbers):
        # In turns between two tables: none is written again before every rank has read it.
        self._sums += 1
        table = self._numbers[self._sums % 2]
        table[self.rank, :len(numbers)] = numbers
        self.barrier()
        return tuple(table[:, :len(numbers)].sum(0))

    def add_up(self, buffers, share):
        self.barrier()
        for span in share:
            for other in buffers[1:]:
                buffers[0][span] += other[span]


def _mapped(shape, dtype):
    """-> zeros in memory that forked processes share."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype, int(np.prod(shape))).reshape(shape)


def choose(workers, rows, parameters, device, muon=False):
    """-> how many ranks a run gets, and how many of them compute. workers: as asked for; None: the
    cores, with one that computes for a large model, whose products keep BLAS's threads busy; with
    muon that one is alone, since its update is products too. Never more compute than a batch has
    rows."""
    if device.name != "cpu" or not can_fork():
        return 1, 1
    if workers is None and parameters >= LARGE:
        return 1 if muon else device.cores, 1
    size = min(workers or device.cores, rows)
    return size, size


def can_fork():
    """Whether processes can share memory here. macOS's own libraries do not survive a fork."""
    return sys.platform == "linux" and hasattr(os, "fork")


def make(size, computing):
    """-> Alone, or Processes; with BLAS on one thread each where several compute."""
    if size == 1:
        return Alone()
    if computing > 1:
        _limit_blas()
    return Processes(size, computing)


def _limit_blas():
    """From now on BLAS computes on one thread in this process."""
    from threadpoolctl import threadpool_limits
    threadpool_limits(1)
