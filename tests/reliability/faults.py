"""Faults of the file system, at every call of a function that uses it.

    for fault in every_fault(prepare, work, folder):
        ...                     # the folder is as the fault has left it

`work` runs in a forked process. Its n-th call that concerns a path below `folder` fails once, or it
and all later calls fail, or the process is killed just before it; for every n. A write that fails
or is killed has written a half. Linux only.
"""

import builtins
import errno
import io
import itertools
import mmap
import os
import signal
import sys
import tempfile
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.numpy

ONCE, FOR_GOOD, KILL = KINDS = "fails once", "fails, and all later ones", "kills the process"
CHANGING = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "write", "create", "tensors")
OTHERS = "open", "fsync", "chmod", "ftruncate"
TRACEBACK = 70                  # exit status of a process whose work raised an exception


@dataclass
class Fault:
    """What was tried, and how the process ended."""

    kind: str
    number: int                 # of the call, from 1
    call: str                   # "rename latest"; empty if there was no n-th call
    status: int                 # exit status; -9 if it was killed
    output: str                 # on stdout and stderr

    def __str__(self):
        return f"{self.call} (call {self.number}) {self.kind}, status {self.status}"


def every_fault(prepare, work, folder, kinds=KINDS, calls=CHANGING + OTHERS, step=1, first=1,
                error=errno.ENOSPC):
    """-> iterator over Faults, each after it has happened. prepare(): makes the folder as it is
    before, work() -> exit status. calls: the kinds of calls that count; step: only every step-th of
    them, from the first on. error: what a call that fails reports."""
    for kind in kinds:
        for number in itertools.count(first, step):
            prepare()
            fault = in_child(work, folder, kind, number, calls, error)
            if not fault.call:
                break
            yield fault


def in_child(work, folder, kind=ONCE, number=0, calls=(), error=errno.ENOSPC):
    """Run work() in a forked process with a fault -> Fault."""
    hit = mmap.mmap(-1, 4096)
    with tempfile.TemporaryFile() as output:
        process = os.fork()
        if process == 0:
            status = TRACEBACK
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
                with injected(folder, kind, number, calls, hit, error):
                    status = work() or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        output.seek(0)
        text = output.read().decode()
    return Fault(kind, number, hit[:].rstrip(b"\0").decode(), status, text)


@contextmanager
def injected(folder, kind, number, calls, hit=None, number_of_error=errno.ENOSPC):
    """Context manager: the number-th of these calls below the folder goes wrong. hit: is given the
    name of that call."""
    folder, count = os.path.realpath(folder), itertools.count(1)
    failed = []

    def reach(name, path, half=None, error=None):
        """Return if the call is to be made."""
        if path is None or not (path + "/").startswith(folder + "/"):
            return
        is_it = name in calls and next(count) == number
        if not is_it and not (failed and kind == FOR_GOOD):
            return
        if is_it and hit is not None:
            text = f"{name} {os.path.relpath(path, folder)}".encode()[:4096]
            hit[:len(text)] = text
        failed.append(name)
        if half:
            half()
        if kind == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise error or OSError(number_of_error, os.strerror(number_of_error), path)

    def wrapped(name, original):
        def call(path, *arguments, **options):
            reach(name, _resolved(path, options.get("dir_fd") or options.get("src_dir_fd")))
            return original(path, *arguments, **options)
        return call

    def os_open(path, flags, *arguments, original=os.open, **options):
        reach("create" if flags & (os.O_CREAT | os.O_TRUNC) else "open",
              _resolved(path, options.get("dir_fd")))
        return original(path, flags, *arguments, **options)

    def io_open(path, mode="r", *arguments, original=io.open, **options):
        where, writes = _resolved(path), not isinstance(path, int) and set(mode) & set("wax+")
        reach("create" if writes else "open", where)
        file = original(path, mode, *arguments, **options)
        return _File(file, lambda half: reach("write", where, half)) if writes else file

    def save_file(tensors, path, *arguments, original=safetensors.numpy.save_file, **options):
        def half():
            Path(path).write_bytes(b"\x10\0\0\0")
        reach("tensors", _resolved(path), half,
              safetensors.SafetensorError(
                  f"I/O error: {os.strerror(number_of_error)} (os error {number_of_error})"))
        return original(tensors, path, *arguments, **options)

    before = [(module, name, getattr(module, name)) for module, name in (
        *((os, name) for name in (*CHANGING, *OTHERS) if hasattr(os, name)),
        (io, "open"), (builtins, "open"), (safetensors.numpy, "save_file"))]
    for module, name, original in before:
        special = {(os, "open"): os_open, (io, "open"): io_open, (builtins, "open"): io_open,
                   (safetensors.numpy, "save_file"): save_file}
        setattr(module, name, special.get((module, name)) or wrapped(name, original))
    try:
        yield
    finally:
        for module, name, original in before:
            setattr(module, name, original)


class _File:
    """An open file whose writes can fail."""

    def __init__(self, file, reach):
        self._file, self._reach = file, reach

    def write(self, data):
        def half():
            self._file.write(data[:len(data) // 2])
            self._file.flush()
        self._reach(half)
        return self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def _resolved(path, dir_fd=None):
    """-> the absolute path that a call concerns, or None."""
    try:
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}")
        start = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else os.getcwd()
    except OSError:
        return None
    return os.path.normpath(os.path.join(start, os.fspath(path)))
