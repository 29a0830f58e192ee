"""A barrier for processes that share memory.

To fall asleep and wake up takes longer than most waits. So a rank that has to wait first spins,
then yields the processor, and only then sleeps. A rank that reaches the barrier wakes the ranks
that are asleep.
"""

import mmap
import os
import select
import threading
import time

SPINS = 2000             # about a tenth of a millisecond
PATIENCE = 0.002         # seconds of yielding before sleeping
NAP = 0.1                # seconds of sleep between two checks that the others are alive


class Barrier:
    """Made by the first process; the others inherit it in a fork."""

    def __init__(self, size, check):
        """check: called now and then by a rank that waits; it raises an error if another ended."""
        self.size, self._check = size, check
        # For each rank, in a cache line of its own: how many barriers it has reached; is it asleep?
        self._state = memoryview(mmap.mmap(-1, 64 * size)).cast("q")
        self._passed = 0
        self._fence = threading.Lock()    # taking it orders memory, on processors that need it
        self._wakers = []                 # of each rank, an event that wakes it

    def open(self):
        """Make what the ranks are woken by: before they are forked."""
        self._wakers = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(self.size)]

    def close(self):
        """Give it back."""
        for waker in self._wakers:
            os.close(waker)
        self._wakers = []

    def asleep(self, rank):
        """Whether a rank sleeps."""
        return bool(self._state[8 * rank + 1])

    def wait(self, rank):
        """Called by a rank: return when all have called it as often."""
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
        until = time.monotonic() + PATIENCE
        while reached[8 * other] < due and time.monotonic() < until:
            os.sched_yield()
        if reached[8 * other] < due:
            self._sleep(other, rank)

    def _sleep(self, other, rank):
        """Wait asleep. This rank says that it sleeps before it looks for the last time, and the
        other one looks for sleepers after it has said that it is there: so one sees the other."""
        with self._fence:
            self._state[8 * rank + 1] = 1
        while self._state[8 * other] < self._passed:
            if select.select([self._wakers[rank]], [], [], NAP)[0]:
                os.eventfd_read(self._wakers[rank])
            self._check()
        self._state[8 * rank + 1] = 0
