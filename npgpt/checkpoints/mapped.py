"""The arrays of one safetensors file, mapped into memory.

    8 bytes                 the length of the header, little-endian
    header                  JSON: name -> dtype, shape, data_offsets
    data                    the arrays, one after the other

An array is a view of the mapped file: the system reads its pages when they are used and may drop
them again, so opening a model takes the memory of its parameters once.
"""

import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

from npgpt.errors import UserError
from npgpt.reading import open_regular, parse_json

LONGEST_HEADER = 10**8     # bytes, as in safetensors
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}     # NumPy has no bfloat16


class Stored(NamedTuple):
    """An array in a file."""

    path: Path
    dtype: str             # as in the file
    shape: tuple[int, ...]
    data: np.ndarray       # its bytes, a view of the mapped file

    def array(self):
        """-> the array, read-only and without a copy. BF16 becomes float32, which is exact: its
        bits are the upper half of a float32's."""
        array = self.data.view(DTYPES[self.dtype]).reshape(self.shape)
        if self.dtype != "BF16":
            return array
        bits = array.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)


def stored_arrays(path):
    """A safetensors file -> name -> Stored. Raises UserError if it is missing, not a regular file,
    too large for the memory, damaged, or has a name twice."""
    with open_regular(path) as file:
        try:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(length, LONGEST_HEADER)))
            with safetensors.safe_open(path, framework="numpy"):
                pass                   # it checks all but names that are there twice
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except (ValueError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} is damaged or not a safetensors file: {error}") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    header.pop("__metadata__", None)
    return {name: Stored(path, entry["dtype"], tuple(entry["shape"]),
                         data[8 + length:][slice(*entry["data_offsets"])])
            for name, entry in header.items()}
