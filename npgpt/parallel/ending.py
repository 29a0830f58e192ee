"""How the ranks of a launcher end together if some of them fail.

A rank that fails tells all others and waits a moment. If all ranks have failed by then, as with a
mistyped option, they end in the ordinary way, and the first one tells why. Otherwise the lowest of
those that have failed tells why and ends the others, which wait for it in a collective.
"""

import atexit
import sys
import time

from mpi4py import MPI

from npgpt.cli.command import discard
from npgpt.errors import RunError, UserError

GRACE = 1.0              # seconds within which ranks that fail for the same reason do so
PATIENCE = 20.0          # seconds after which a rank ends the others that should have been ended
NAP = 0.01


def end_together(failures, error):
    """An exception of this rank -> the one to raise instead. failures: a communicator for this
    alone."""
    status = status_of(error)
    failed = _others_that_fail(failures)
    if len(failed) == failures.size:
        return error if failures.rank == 0 else SystemExit(status)
    if min(failed) == failures.rank:
        atexit.register(abort, failures, status)     # once the command has told why
        return error
    time.sleep(PATIENCE)
    abort(failures, status)


def abort(ranks, status):
    """End the processes of all ranks. What MPI says about it is not shown."""
    sys.stderr.flush()
    discard(sys.stderr)
    ranks.Abort(status)


def status_of(error):
    """The exit status of a command that ends with an exception, as `run_command` returns it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    statuses = {UserError: 2, (RunError, MemoryError, OSError): 3, KeyboardInterrupt: 130}
    return next((s for kinds, s in statuses.items() if isinstance(error, kinds)), 1)


def _others_that_fail(failures):
    """-> the ranks that fail now, a set with this one."""
    requests = [failures.isend(None, rank) for rank in range(failures.size)]
    failed, deadline = set(), time.monotonic() + GRACE
    while len(failed) < failures.size and time.monotonic() < deadline:
        found = MPI.Status()
        if failures.iprobe(status=found):
            failures.recv(source=found.source)
            failed.add(found.source)
        else:
            time.sleep(NAP)
    if len(failed) == failures.size:
        MPI.Request.waitall(requests)
    return failed | {failures.rank}
