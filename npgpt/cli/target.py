"""The directory that a command writes, its option `out_dir`."""

from pathlib import Path

from npgpt.durable import check_target
from npgpt.errors import UserError


def read_target(c, files):
    """c: options with `out_dir` and `overwrite` -> the directory to write. files: the only ones
    that it may contain. Raises UserError if `out_dir` is missing, if the directory is not empty and
    `overwrite` is not given, or if it contains other files."""
    if not c.out_dir:
        raise UserError("`out_dir` is missing; it takes the directory to write")
    target = Path(c.out_dir)
    if target.is_dir() and any(target.iterdir()) and not c.overwrite:
        raise UserError(f"{target} already exists; `overwrite` replaces it")
    check_target(target, files)
    return target
