"""The directory that a command writes, its option `out_dir`."""

from pathlib import Path

from npgpt.durable import check_target
from npgpt.errors import UserError


def read_target(c, files):
    """The options of a command, with `out_dir` and `overwrite` -> the directory to write. files:
    those that it may contain. Raises UserError if none is given, or if it already exists."""
    if not c.out_dir:
        raise UserError("`out_dir` is missing; it takes the directory to write")
    target = Path(c.out_dir)
    if target.is_dir() and any(target.iterdir()) and not c.overwrite:
        raise UserError(f"{target} already exists; `overwrite` replaces it")
    check_target(target, files)
    return target
