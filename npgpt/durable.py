"""Atomic and durable writes, and reading files that somebody else may have put there.

A directory is written under a temporary name, flushed to disk and then renamed, so even after a
crash it is never incomplete under its final name. It contains SHA256SUMS, with a line for each
file, so that `verify` and `sha256sum -c SHA256SUMS` can detect damage.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

from npgpt.backend import get_device
from npgpt.errors import RunError, UserError

SUMS = "SHA256SUMS"
LARGEST = 2**26      # bytes of a configuration, a tokenizer, a list of hashes
# Without waiting for a process that writes to a pipe.
READING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def atomic_directory(target, files):
    """Context manager: a temporary directory to write into, renamed to `target` on success.

    An existing target is moved aside just before the rename, restored if the rename fails, and
    removed afterwards. files: the names that an existing target may contain. Raises UserError
    before any change if it contains anything else, or if it is a file, and RunError that says where
    the old one is if it cannot be restored.
    """
    target = Path(target).resolve()
    for path in (target, *target.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; choose another path for the directory")
    others = sorted({path.name for path in target.iterdir()} - files) if target.exists() else []
    if others:
        raise UserError(f"{target} contains {others[0]!r}, which npgpt did not write; choose "
                        "another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir()
        yield new
        _seal(new)
        if target.exists():
            target.rename(old)
        new.rename(target)
        _flush(target.parent)
    except BaseException as error:
        if old.exists() and not target.exists():
            try:
                old.rename(target)
            except OSError:
                raise RunError(f"{target} could not be replaced ({error}) and is now {old}; move "
                               "it back") from error
        raise
    finally:
        if target.exists() or not old.exists():        # otherwise it is the only copy
            shutil.rmtree(aside, ignore_errors=True)


def verify(directory):
    """Compare every file with its hash. Raises UserError that names the first damaged one. A
    directory without SHA256SUMS, as other programs write it, passes."""
    directory = Path(directory)
    if not (directory / SUMS).exists():
        return
    lines = read_bytes(directory / SUMS).decode(errors="replace").splitlines()
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for path in directory.iterdir():
        if path.suffix in (".json", ".safetensors") and path.name not in recorded:
            raise UserError(f"{directory / SUMS} is damaged: {path.name} is not listed")
    for name, digest in recorded.items():
        try:
            with open_to_load(directory / name) as file:
                found = _sha256(file)
        except FileNotFoundError:
            raise UserError(f"{directory / name} is missing") from None
        except (OSError, ValueError) as error:          # ValueError: NUL in the name
            if isinstance(error, UserError):
                raise
            raise UserError(f"{directory / name} cannot be read: {error}") from None
        if found != digest:
            raise UserError(f"{directory / name} is damaged: its SHA-256 is not that in {SUMS}")


def write_text(path, text):
    """Write a text file, or replace it atomically."""
    path, new = Path(path), temporary(path)
    try:
        new.write_bytes(text.encode())
        _flush(new)
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    _flush(path.parent)


def temporary(path):
    """The file that `write_text` writes and renames to `path`."""
    return Path(path).with_name(f".{Path(path).name}.new")


def remove_directory(path):
    """Remove a directory. If the process is killed meanwhile, what is left has a name that begins
    with a dot and the directory's name, as that of an `atomic_directory`."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    path.rename(aside / "old")
    shutil.rmtree(aside)


def open_regular(path, most=None):
    """Open a regular file for reading bytes. Raises UserError if it is something else, which may
    block or never end, or has more bytes than `most`. Raises OSError if it cannot be opened."""
    descriptor = os.open(path, READING)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise UserError(f"{path} is {kind}")
        if most is not None and found.st_size > most:
            raise UserError(f"{path} has {found.st_size:,} bytes; at most {most:,} are expected")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_to_load(path):
    """The same for a file that is loaded as a whole: raises UserError if it has more bytes than
    there is free memory."""
    file, free = open_regular(path), get_device("cpu").memory()
    size = os.fstat(file.fileno()).st_size
    if free is not None and size > max(free, LARGEST):
        file.close()
        raise UserError(f"{path} has {size:,} bytes, and {free:,} bytes of memory are free")
    return file


def read_bytes(path, most=LARGEST):
    """The contents of a regular file of at most this number of bytes; None: that fits into memory.
    Raises UserError that names it if it is missing, cannot be read, or is another file."""
    try:
        with open_to_load(path) if most is None else open_regular(path, most) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def parse_json(text):
    """JSON -> value. Raises ValueError if it is invalid, too deep, or an object has a key twice:
    different programs would read different values."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def write_json(path, value):
    """Write a JSON object into an `atomic_directory`."""
    Path(path).write_bytes((json.dumps(value, indent=2) + "\n").encode())


def read_json(path):
    """Read a JSON object. Raises UserError if there is none."""
    try:
        value = parse_json(read_bytes(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not contain a JSON object")
    return value


def _seal(folder):
    """Record the hash of every file and flush all of it to disk."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    lines = []
    for path in files:
        with open(path, "rb") as file:
            lines.append(f"{_sha256(file)}  {path.name}\n")
    (folder / SUMS).write_bytes("".join(lines).encode())
    for path in (*files, folder / SUMS):
        path.chmod(0o644)                  # safetensors creates files that only the owner can read
        _flush(path)
    _flush(folder)


def _sha256(file):
    return hashlib.file_digest(file, hashlib.sha256).hexdigest()


def _flush(path):
    """Flush a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
