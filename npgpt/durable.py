"""Atomic and durable writes.

A directory is written under a temporary name, flushed to disk and then renamed, so even after a
crash it is never incomplete under its final name. It contains SHA256SUMS, with a line for each
file, so that `verify` and `sha256sum -c SHA256SUMS` can detect damage.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from npgpt.errors import RunError, UserError
from npgpt.reading import open_regular, read_bytes

SUMS = "SHA256SUMS"


@contextlib.contextmanager
def atomic_directory(target, files):
    """Context manager: a temporary directory to write into, renamed to `target` on success.

    An existing target is moved aside just before the rename, restored if the rename fails, and
    removed afterwards. files: the names that an existing target may contain. Raises UserError
    before any change if it contains anything else, or if it is a file, and RunError that says where
    the old one is if it cannot be restored.
    """
    target = Path(target).resolve()
    check_target(target, files)
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


def check_target(target, files):
    """Raise UserError if `atomic_directory` would refuse to write there."""
    target = Path(target).resolve()
    for path in (target, *target.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; choose another path for the directory")
    others = sorted({path.name for path in target.iterdir()} - files) if target.exists() else []
    if others:
        raise UserError(f"{target} contains {others[0]!r}, which npgpt did not write; choose "
                        "another directory")


def verify(directory, most=None):
    """Compare every file with its hash. Raises UserError that names the first damaged one. A
    directory without SHA256SUMS, as other programs write it, passes. most: as for `open_regular`.
    """
    directory = Path(directory)
    if not (directory / SUMS).exists():
        return
    lines = read_bytes(directory / SUMS).decode(errors="replace").splitlines()
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for path in directory.iterdir():
        if path.suffix in (".json", ".safetensors", ".npy") and path.name not in recorded:
            raise UserError(f"{path} is not listed in {SUMS}; if you have added it, delete {SUMS}")
    for name, digest in recorded.items():
        if name in ("", ".", "..") or os.path.basename(name) != name:
            raise UserError(f"{directory / SUMS} is damaged: it lists {name!r}, which is not in "
                            "this directory")
        with open_regular(directory / name, most) as file:
            found = _sha256(file)
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


def write_json(path, value):
    """Write a JSON object into an `atomic_directory`."""
    Path(path).write_bytes((json.dumps(value, indent=2) + "\n").encode())


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
