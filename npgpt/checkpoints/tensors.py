"""Named arrays in safetensors files. Unlike pickle, the format contains only data and cannot run
code."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from npgpt.backend import to_host
from npgpt.checkpoints.mapped import DTYPES, stored_arrays
from npgpt.checkpoints.shards import arrays_in_shards
from npgpt.errors import RunError, UserError
from npgpt.reading import require_memory


class Parts(NamedTuple):
    """An array that is written in parts, so that it need not be in memory as a whole."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Iterable[np.ndarray]      # one after the other they are the array


NAMES = {"float64": "F64", "float32": "F32", "float16": "F16"}


def write_tensors(path, arrays):
    """Write name -> array of any device, or Parts, as a safetensors file. Raises RunError if that
    fails, as on a full disk.

    The file has the bytes that the package safetensors writes, which takes no array in parts: the
    length of a header, the header in JSON, and the arrays, the largest elements first.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        array, start = arrays[name], end
        end += math.prod(array.shape) * array.dtype.itemsize
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": list(array.shape),
                        "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                array = arrays[name]
                for part in array.parts if isinstance(array, Parts) else [array]:
                    file.write(np.ascontiguousarray(to_host(part)).data)
    except OSError as error:
        raise RunError(f"{path.name} cannot be written: {error.strerror or error}") from error


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
