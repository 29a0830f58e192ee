"""Files that are there whole or not at all.

A directory is written under another name, flushed to disk and then renamed, so under its own name
it is never seen unfinished, whatever happens on the way. With it goes SHA256SUMS, a line for each
file, so that damage is found: by `verify`, and by `sha256sum -c SHA256SUMS`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from npgpt.errors import UserError

SUMS = "SHA256SUMS"


@contextlib.contextmanager
def atomic_directory(target, files):
    """A temporary directory to write into; it becomes `target` when the block ends without error.

    A directory that stood there before is put aside just before the rename, comes back if that
    fails, and is removed after it. files: the names that it may hold; if it holds anything else,
    or is a file, UserError is raised and nothing is done.
    """
    target = Path(target).resolve()
    for path in (target, *target.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, and a directory is to be written there")
    others = sorted({path.name for path in target.iterdir()} - files) if target.exists() else []
    if others:
        raise UserError(f"{target} holds {others[0]!r}, which is not ours to replace; "
                        "choose another directory")
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
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def verify(directory):
    """Compare every file with its recorded hash. Raises UserError that names the first damaged one.
    A directory without hashes, as others write it, passes."""
    directory = Path(directory)
    if not (directory / SUMS).exists():
        return
    lines = (directory / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for path in directory.iterdir():
        if path.suffix in (".json", ".safetensors") and path.name not in recorded:
            raise UserError(f"{directory / SUMS} is damaged: it lacks {path.name}")
    for name, digest in recorded.items():
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing")
        if _sha256(directory / name) != digest:
            raise UserError(f"{directory / name} is damaged: it is not what was written")


def write_text(path, text):
    """Replace a small file: its old text or its new one is there at any moment."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def write_json(path, value):
    """Write a JSON object, for a directory that is being made."""
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path):
    """Read a JSON object. Raises UserError if there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, or no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def _seal(folder):
    """Record the hash of every file and flush all of it to disk."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{_sha256(path)}  {path.name}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    for path in (*files, folder / SUMS):
        path.chmod(0o644)                  # safetensors makes files for their owner alone
        _flush(path)
    _flush(folder)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path):
    """Return when a file, or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
