"""A lock on a directory: one process at a time writes there.

The operating system releases it when the process ends, however that happens. So that it does not
live on in forked processes, these close their copy. The file `.lock` says which process holds it; a
process that is killed leaves the file, and the next one takes it over.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path

from npgpt.errors import UserError

try:
    import fcntl
except ImportError:                                  # Windows
    fcntl = None
    import msvcrt

NAME = ".lock"
LONGEST = 300        # bytes of its content that are read
# Without waiting if it is a pipe, and without following a link: its target would be overwritten.
OPENING = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
_held = set()


class Lock:
    """Held from its creation until `release` or the end of the process. Raises UserError that names
    the process that holds it."""

    def __init__(self, directory):
        self._path = Path(directory) / NAME
        self._descriptor = None
        while self._descriptor is None:
            self._try()
        _held.add(self)

    def release(self):
        """Release the lock and remove its file."""
        if self._descriptor is not None:
            with suppress(OSError):                  # Windows does not remove an open file
                self._path.unlink()
            self.close()

    def close(self):
        """Close this process's copy of the lock."""
        _held.discard(self)
        os.close(self._descriptor)
        self._descriptor = None

    def _try(self):
        descriptor = os.open(self._path, OPENING)
        try:
            if not _lock(descriptor):
                raise UserError(f"{self._path.parent} is in use by {_holder(descriptor)}; wait "
                                "until it has ended, or choose another `out_dir`")
            if self._is_there(descriptor):           # and its last holder has not just removed it
                self._descriptor = descriptor
                with suppress(OSError):              # a full disk: others are not told which it is
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
        finally:
            if self._descriptor is None:
                os.close(descriptor)

    def _is_there(self, descriptor):
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False


def _lock(descriptor):
    """-> whether this process has the lock now. True too on a file system without locks."""
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)       # others may read what is before it
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError as error:
        return fcntl is not None and not isinstance(error, BlockingIOError)
    return True


def _holder(descriptor):
    """The process that holds the lock, in words."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    number, _, host = os.read(descriptor, LONGEST).decode(errors="replace").partition(" ")
    return f"process {number} on {host.strip()}" if number.isdigit() else "another process"


def _close_all():
    for lock in [*_held]:                            # `close` takes it out
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
