"""Reading files that somebody else may have put there: only regular files, only as many bytes as
expected, and JSON in which no key is there twice. Every error is a UserError that names the file.
"""

import json
import os
import stat

from npgpt.errors import UserError
from npgpt.host import free_memory

LARGEST = 2**26      # bytes of a configuration, a tokenizer, a list of hashes
NO_WAITING = getattr(os, "O_NONBLOCK", 0)     # for a process that writes to a pipe


def open_regular(path, most=None):
    """Open a file for reading bytes, of at most this number; None: that fits into memory. Raises
    UserError if it is missing, cannot be opened, is larger, or is no regular file, which may block
    or never end."""
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory") from None
    except (OSError, ValueError) as error:                    # ValueError: NUL in the path
        raise UserError(f"{path} cannot be read: "
                        f"{getattr(error, 'strerror', None) or error}") from None
    try:
        _check(path, os.fstat(file.fileno()), most)
    except BaseException:
        file.close()
        raise
    return file


def _without_waiting(path, flags):
    return os.open(path, flags | NO_WAITING)


def _check(path, found, most):
    """Raise UserError unless a file with this os.stat_result may be read."""
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is not a regular file")
    if most is not None and found.st_size > most:
        raise UserError(f"{path} has {found.st_size:,} bytes; at most {most:,} are expected")
    if most is None:
        require_memory(path, found.st_size)


def require_memory(what, size):
    """Raise UserError if something of this size in bytes does not fit into the free memory. What is
    small is always tried."""
    free = free_memory()
    if free is not None and size > max(free, LARGEST):
        raise UserError(f"{what} has {size:,} bytes, and {free:,} bytes of memory are free")


def read_bytes(path, most=LARGEST):
    """The contents of a file, as `open_regular` opens it. Raises UserError."""
    with open_regular(path, most) as file:
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path):
    """Read a JSON object. Raises UserError if there is none."""
    return json_object(read_bytes(path), path)


def json_object(content, path):
    """The bytes of a file -> the JSON object that they are. Raises UserError if they are none."""
    try:
        value = parse_json(content)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not contain a JSON object")
    return value


def parse_json(text):
    """JSON -> value. Raises ValueError if it is invalid, too deep, or has a key twice in an object:
    different programs would read different values."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs):
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found
