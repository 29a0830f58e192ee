"""Named arrays in safetensors files. Unlike pickle, the format contains only data and cannot run
code."""

import math
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from npgpt.backend import to_host
from npgpt.checkpoints.mapped import DTYPES, stored_arrays
from npgpt.checkpoints.shards import arrays_in_shards
from npgpt.errors import RunError, UserError
from npgpt.reading import require_memory


def write_tensors(path, arrays):
    """Write name -> array of any device as a safetensors file. Raises RunError if that fails, as on
    a full disk."""
    # safetensors writes an array's memory as it is, so every array must be contiguous.
    host = {name: np.ascontiguousarray(to_host(array)) for name, array in arrays.items()}
    try:
        safetensors.numpy.save_file(host, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise RunError(f"{path.name} cannot be written: {error}") from None


class Tensors(Mapping):
    """name -> array, read when it is asked for."""

    def __init__(self, stored):
        self._stored = stored          # name -> Stored

    def __getitem__(self, name):
        return self._stored[name].array()

    def __iter__(self):
        return iter(self._stored)

    def __len__(self):
        return len(self._stored)


def read_tensors(path, shapes, canonical=lambda name: name, optional=()):
    """Read a safetensors file, or the index (.json) of several, that must contain arrays of these
    shapes -> Tensors, whose arrays are read-only.

    canonical: name in the file -> name in `shapes`, or None for an array that is not needed.
    optional: names that may be missing. Names, shapes and dtypes are checked before any array is
    read. Raises UserError if they differ, or if all arrays together do not fit into memory.
    """
    read, found = arrays_in_shards if path.suffix == ".json" else stored_arrays, {}
    for name, stored in read(path).items():
        parameter = canonical(name)
        if parameter in found:
            raise UserError(f"{path} contains {parameter} twice")
        if parameter:
            found[parameter] = stored
    needed = {name: shape for name, shape in shapes.items()
              if name in found or name not in optional}
    _compare(path, found, needed)
    require_memory(f"{path} as float32", 4 * sum(map(math.prod, needed.values())))
    return Tensors({name: found[name] for name in needed})


def _compare(path, found, expected):
    """Raise UserError that names the first array that is missing, unknown, of another shape or of a
    dtype that npgpt does not read."""
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{path}: {name} {shape} is missing")
        if found[name].shape != tuple(shape):
            raise UserError(f"{found[name].path}: {name} has the shape {found[name].shape}, "
                            f"expected {shape}")
    for name, stored in found.items():
        if name not in expected:
            raise UserError(f"{stored.path}: {name} is unknown")
        if stored.dtype not in DTYPES:
            raise UserError(f"{stored.path}: {name} has the dtype {stored.dtype}; npgpt reads F64, "
                            "F32, F16 and BF16")
