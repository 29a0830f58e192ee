"""Named arrays in safetensors files. Unlike pickle, the format contains only data and cannot run
code."""

import numpy as np
import safetensors
import safetensors.numpy

from npgpt.backend import to_host
from npgpt.errors import RunError, UserError
from npgpt.reading import open_regular, parse_json

LONGEST_HEADER = 10**8     # bytes, as in safetensors


def write_tensors(path, arrays):
    """Write name -> array of any device as a safetensors file. Raises RunError if that fails, as on
    a full disk."""
    # safetensors writes an array's memory as it is, so every array must be contiguous.
    host = {name: np.ascontiguousarray(to_host(array)) for name, array in arrays.items()}
    try:
        safetensors.numpy.save_file(host, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise RunError(f"{path.name} cannot be written: {error}") from None


def read_tensors(path, shapes, canonical=lambda name: name, optional=()):
    """Read a safetensors file that must contain arrays of these shapes -> name -> array.

    canonical: name in the file -> name in `shapes`, or None for an array that is not needed.
    optional: names that may be missing. Names, shapes and dtypes are checked before any array is
    read. Raises UserError if they differ.
    """
    _check_header(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored = {}
            for name in file.keys():  # noqa: SIM118
                parameter = canonical(name)
                if parameter in stored:
                    raise UserError(f"{path} contains {parameter} twice")
                if parameter:
                    stored[parameter] = name
            headers = {name: file.get_slice(stored[name]) for name in stored}
            found = {name: tuple(header.get_shape()) for name, header in headers.items()}
            needed = {name: shape for name, shape in shapes.items()
                      if name in found or name not in optional}
            _compare(path, found, needed)
            for name, header in headers.items():
                if header.get_dtype() not in ("F64", "F32", "F16"):
                    raise UserError(f"{path}: {name} has the dtype {header.get_dtype()}; npgpt "
                                    "reads F64, F32 and F16")
            return {name: file.get_tensor(stored[name]) for name in needed}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from error


def _check_header(path):
    """Raise UserError if the file is missing, not a regular one, too large for the memory, or has a
    name twice: safetensors would take one of the two. It checks everything else."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, LONGEST_HEADER))
    try:
        parse_json(header)
    except ValueError as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from None


def _compare(path, found, expected):
    """Raise UserError that names the first array that is missing, unknown or of another shape."""
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{path}: {name} {shape} is missing")
        if found[name] != tuple(shape):
            raise UserError(f"{path}: {name} has the shape {found[name]}, expected {shape}")
    for name in found:
        if name not in expected:
            raise UserError(f"{path}: {name} is unknown")
