"""GGUF files, llama.cpp's format: metadata and tensors, often quantised, in one file.

    "GGUF", version, number of tensors, number of metadata       4 bytes, uint32, uint64, uint64
    metadata        name, type, value
    tensors         name, number of dimensions, dimensions, type, offset in the data
    data            the tensors, one after the other; each starts at a multiple of the alignment

npgpt reads what comes before the data, see gguf_header.py; the package `gguf` knows the types of
tensors and dequantises them.
"""

import math
import mmap

import numpy as np

from npgpt.errors import UserError
from npgpt.gguf_header import Header, Metadata, shown
from npgpt.reading import open_regular

MAGIC, VERSIONS = b"GGUF", (2, 3)
READ = "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"        # types of tensors
EXTRA = "the package gguf, which is missing; install it with: pip install 'npgpt[gguf]'"
DIMENSIONS = 4            # at most, as in llama.cpp
ALIGNMENTS = tuple(2**i for i in range(17))       # of the data, in bytes
ROWS = 1024               # that are dequantised at a time


class GGUFFile:
    """An open file.

        metadata      name -> value, which is read when it is asked for
        tensors       name -> GGUFTensor
    """

    def __init__(self, path):
        """Raises UserError if the file is missing, not regular, damaged, of a version or with a
        type of tensor that npgpt does not read, or if the package gguf is missing."""
        self.path = path
        with open_regular(path) as file:
            try:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:                     # an empty file cannot be mapped
                data = b""
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
        header = Header(data)
        if data[:4] != MAGIC:
            raise UserError(f"{path} is not a GGUF file")
        try:
            import gguf.quants  # a folder of the name gguf has none
        except ImportError:
            raise UserError(f"{path} needs {EXTRA}") from None
        try:
            header.take(4)
            _check_version(path, header.u32())
            n_tensors, n_metadata = header.u64(), header.u64()
            self.metadata = Metadata(path, header, n_metadata)
            self.tensors = _tensors(path, header, n_tensors, self.metadata, gguf)
        except UserError:                          # a ValueError, too
            raise
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from None


class GGUFTensor:
    """A tensor in a file."""

    def __init__(self, shape, kind, data, gguf):
        """shape: in NumPy's order; kind: of gguf's GGMLQuantizationType; data: its bytes (n,)."""
        self.shape, self._kind, self._data, self._gguf = shape, kind, data, gguf

    @property
    def quantisation(self):
        """The name of its type, such as F32 or Q4_1."""
        return self._kind.name

    def array(self):
        """-> the array, float32, dequantised."""
        n = math.prod(self.shape[:-1])
        stored = self._data.reshape(n, len(self._data) // n)
        rows = np.empty((n, self.shape[-1]), np.float32)
        with np.errstate(invalid="ignore"):                       # of a damaged file
            for i in range(0, n, ROWS):
                rows[i:i + ROWS] = self._gguf.quants.dequantize(stored[i:i + ROWS], self._kind)
        return rows.reshape(self.shape)


def _check_version(path, version):
    if version & 0xffff == 0:
        raise UserError(f"{path} is big-endian; npgpt reads little-endian GGUF files")
    if version not in VERSIONS:
        raise UserError(f"{path} is of version {version} of GGUF; npgpt reads "
                        f"{VERSIONS[0]} and {VERSIONS[1]}")


def _tensors(path, header, n, metadata, gguf):
    """-> name -> GGUFTensor. Raises ValueError if the file is damaged, UserError for a type that
    npgpt does not read."""
    listed = {}
    for _ in range(n):
        name = header.name()
        if name in listed:
            raise ValueError(f"the tensor {name} is there twice")
        n_dims = header.u32()
        if not 1 <= n_dims <= DIMENSIONS:
            raise ValueError(f"the tensor {name} has {n_dims} dimensions")
        shape = tuple(header.u64() for _ in range(n_dims))[::-1]
        kind, offset = header.u32(), header.u64()
        try:
            kind = gguf.GGMLQuantizationType(kind)
        except ValueError:
            raise ValueError(f"the tensor {name} has the unknown type {kind}") from None
        if kind.name not in READ:
            raise UserError(f"{path}: {name} has the type {kind.name}; npgpt reads "
                            f"{', '.join(READ[:-1])} and {READ[-1]}")
        listed[name] = shape, kind, offset
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in ALIGNMENTS:
        raise ValueError(f"general.alignment is {shown(alignment)}")
    start, expected, found = _aligned(header.at, alignment), 0, {}
    data = np.frombuffer(header.data, np.uint8)
    for name, (shape, kind, offset) in listed.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block:
            raise ValueError(f"the tensor {name} of the type {kind.name} has the shape {shape}")
        n_bytes = math.prod(shape) // block * size
        if offset != expected:
            raise ValueError(f"the tensor {name} starts at {offset:,}, expected {expected:,}")
        if n_bytes > len(data) - start - offset:
            raise ValueError(f"it ends at byte {len(data):,}, but the tensor {name} at byte "
                             f"{start + offset + n_bytes:,}")
        found[name] = GGUFTensor(shape, kind, data[start + offset:][:n_bytes], gguf)
        expected = _aligned(offset + n_bytes, alignment)
    return found


def _aligned(n, alignment):
    """-> the first multiple of the alignment that is not below n."""
    return -(-n // alignment) * alignment
