"""Faults of the file system at every call, in every kind of run: see faults.py."""

import errno
import os
from functools import partial

import train as train_script
from tests.reliability.faults import FOR_GOOD, KILL, KINDS, every_fault
from tests.reliability.tiny_runs import beginnings, copy, problems, runs, unlocked


def wrong(fault, source):
    """What is wrong with how a process has ended with a Fault -> list of texts. source: the
    directory that was there before, or None."""
    found = [] if fault.status in (-9, 0, 2, 3) else [f"status {fault.status}"]
    if "Traceback" in fault.output:
        found.append("a traceback: " + fault.output.strip().splitlines()[-1])
    if fault.status == 2 and source and unlocked("run") != unlocked(source):
        found.append("refused after something was written: " + fault.output)
    return found


def try_calls(table, rng, step):
    """Every step-th fault in each kind of run; the first one is random."""
    whole = beginnings()
    for name, source, words in runs():
        for error, kinds in ((errno.ENOSPC, KINDS), (errno.EROFS, [FOR_GOOD])):
            for fault in every_fault(partial(copy, source), partial(train_script.main, words),
                                     "run", kinds, step=step, first=rng.randint(1, step),
                                     error=error):
                why = "" if fault.kind == KILL else f" ({os.strerror(error)})"
                table.record(f"{name}: a call of the file system {fault.kind}{why}",
                             wrong(fault, source) + problems("run", whole, bool(source)), fault)
