"""Faults of system calls, injected by strace: every call that concerns a run fails once, or it and
all later ones of its name fail, or the process is killed at it. `faults.py` does the same to calls
of Python's functions, where strace is not installed.

strace counts the calls of a name. A first process, without a fault, tells which of them concern the
run; the others are the interpreter's.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.commands.tiny import ENVIRONMENT, command
from tests.reliability.calls import wrong
from tests.reliability.faults import FOR_GOOD, KILL, ONCE, Fault
from tests.reliability.tiny_runs import beginnings, copy, problems, runs

NAMES = ("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2",
         "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "ftruncate", "chmod", "fchmod",
         "linkat", "flock")
INJECT = {ONCE: "error=ENOSPC:when={}", FOR_GOOD: "error=ENOSPC:when={}+",
          KILL: "signal=KILL:when={}"}
CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")


@dataclass(frozen=True)
class Call:
    """The number-th call of this name, from 1, in the first process of a run."""

    name: str
    number: int
    arguments: str


def available():
    return shutil.which("strace") is not None


def strace(*options, words):
    """-> the ended process of train.py below strace. Files of compiled modules do not change."""
    return subprocess.run(
        ["strace", "-f", "--quiet=all", "-e", f"trace={','.join(f'?{n}' for n in NAMES)}",
         "-o", "/dev/null", *options, *command(*words)],
        env=ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"},
        capture_output=True, text=True, stdin=subprocess.DEVNULL)


def calls(words, folder):
    """The words of train.py -> the Calls of its first process below the folder."""
    done = strace("-y", "-o", "trace", words=words)
    assert done.returncode == 0, done.stderr
    counts, found, first = {}, [], None
    where = re.escape(str(Path(folder).resolve())), re.escape(folder)
    for line in Path("trace").read_text(errors="replace").splitlines():
        if not (match := CALL.match(line)):
            continue
        pid, name, arguments = match.groups()
        first = first or pid
        if pid != first:
            continue
        counts[name] = counts.get(name, 0) + 1
        if re.search(rf'[<"]({"|".join(where)})[/>"]', arguments):
            found.append(Call(name, counts[name], arguments[:100]))
    Path("trace").unlink()
    return found


def injected(call, kind, words):
    """-> the ended process of train.py, in which a call went wrong."""
    how = INJECT[kind].format(call.number)
    return strace("-e", f"inject={call.name}:{how}", words=words)


def try_syscalls(table, rng, tries):
    """`tries` faults in each kind of run, None: all of them."""
    if not available():
        print("strace is not installed, so no system call was made to fail", file=sys.stderr)
        return
    whole = beginnings()
    for name, source, words in runs():
        copy(source)
        every = [(call, kind) for call in calls(words, "run") for kind in INJECT]
        for call, kind in every if tries is None else rng.sample(every, tries):
            copy(source)
            done = injected(call, kind, words)
            fault = Fault(kind, call.number, f"{call.name} {call.arguments}",
                          done.returncode, done.stdout + done.stderr)
            table.record(f"{name}: a system call {kind}",
                         wrong(fault, source) + problems("run", whole, bool(source)), fault)
