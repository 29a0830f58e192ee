"""A barrier for processes that share memory.

Sleeping and waking up takes longer than most waits on a quiet machine. So a rank that waits first
spins, and then sleeps. A rank that reaches the barrier wakes the ranks that are asleep. A waiting
rank does not spin for long, because on a busy machine another rank may need its core. It does not
yield either (sched_yield): it would get its core back only after the time slices of other programs,
milliseconds each.
"""

import mmap
import os
import select
import threading

SPINS = 2000             # about a tenth of a millisecond
NAP = 0.1                # seconds of sleep between checks that the other ranks are alive


class Barrier:
    """Created by the first process and inherited by the processes that it forks."""

    def __init__(self, size, check):
        """check: called regularly by a rank that sleeps; raises an error if another has ended."""
        self.size, self._check = size, check
        # For each rank, in its own cache line: how many barriers it has reached; whether it sleeps.
        self._state = memoryview(mmap.mmap(-1, 64 * size)).cast("q")
        self._passed = 0
        self._fence = threading.Lock()    # acquiring it is a memory barrier
        self._wakers = []                 # rank -> the eventfd that wakes it

    def open(self):
        """Create the eventfds. Call it before the fork."""
        self._wakers = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(self.size)]

    def close(self):
        """Close the eventfds."""
        for waker in self._wakers:
            os.close(waker)
        self._wakers = []

    def asleep(self, rank):
        """Whether a rank is asleep."""
        return bool(self._state[8 * rank + 1])

    def reached(self, rank):
        """Whether a rank has reached the barrier that this process waits at, or passed last."""
        return self._state[8 * rank] >= self._passed

    def wait(self, rank):
        """Return when every rank has called this the same number of times."""
        self._passed += 1
        with self._fence:
            self._state[8 * rank] = self._passed
        for other in range(self.size):
            if self.asleep(other):
                os.eventfd_write(self._wakers[other], 1)
        for other in range(self.size):
            self._wait_for(other, rank)
        with self._fence:
            pass

    def _wait_for(self, other, rank):
        reached, due = self._state, self._passed
        for _ in range(SPINS):
            if reached[8 * other] >= due:
                return
        self._sleep(other, rank)

    def _sleep(self, other, rank):
        """Sleep until the other rank arrives. This rank marks itself asleep before its last look,
        and the other looks for sleepers after marking its arrival, so one of them sees the
        other."""
        with self._fence:
            self._state[8 * rank + 1] = 1
        while self._state[8 * other] < self._passed:
            if select.select([self._wakers[rank]], [], [], NAP)[0]:
                os.eventfd_read(self._wakers[rank])
            self._check()
        self._state[8 * rank + 1] = 0
