"""A watch over the ranks of a launcher: if one of them stops answering, the job ends.

A thread of every rank tells the next rank at least once a second that its own is alive, and listens
to the one before. Ranks may wait for each other for as long as they like, as for the first one
while it reads a text; only a rank whose process is stopped, or whose machine is gone, is silent. A
suspended job does not end, because the threads count the time in which they are awake.
"""

import os
import socket
import sys
import threading

from mpi4py import MPI

from npgpt.parallel.ending import abort

PERIOD = 1.0                         # most seconds between two signs of life
SILENCE = "NPGPT_RANK_TIMEOUT"       # environment variable: seconds of silence that end a job
DEFAULT = 60
STATUS = 3
ALIVE, LAST = range(2)               # tags of messages


class Watch:
    """A context manager: the ranks are watched inside."""

    def __init__(self, ranks):
        """ranks: mpi4py's communicator for this alone."""
        self._ranks = ranks
        self.command, self.kept = "", None            # for the message
        self._next = (ranks.rank + 1) % ranks.size
        self._before = (ranks.rank - 1) % ranks.size
        self._most = max(1, int(os.environ.get(SILENCE) or DEFAULT))
        self._period = min(PERIOD, self._most / 10)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        names = ranks.allgather(f"process {os.getpid()} on {socket.gethostname()}")
        self._name = f"rank {self._before} ({names[self._before]})"

    def __enter__(self):
        if self._ranks.size > 1:
            self._thread.start()
        return self

    def __exit__(self, kind, *error):
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
            if kind is None:
                self._receive_the_rest()

    def _receive_the_rest(self):
        """MPI libraries may warn of messages that nobody has received."""
        last, found = self._ranks.isend(None, self._next, LAST), MPI.Status()
        while found.tag != LAST:
            self._ranks.recv(source=self._before, status=found)
        last.wait()

    def _watch(self):
        silent, sent = 0, None
        while not self._ended.wait(self._period):
            if sent is None or sent.test()[0]:
                sent = self._ranks.isend(None, self._next, ALIVE)
            silent += self._period
            while self._ranks.iprobe(self._before, ALIVE):
                self._ranks.recv(source=self._before, tag=ALIVE)
                silent = 0
            if silent >= self._most:
                self._end()

    def _end(self):
        kept = f"; {self.kept()}" if self.kept else ""
        print(f"{self.command}: {self._name} has not answered for {self._most} s{kept}",
              file=sys.stderr, flush=True)
        abort(self._ranks, STATUS)
