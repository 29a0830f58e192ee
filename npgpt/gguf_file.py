"""GGUF files, llama.cpp's format: metadata and tensors, often quantised, in one file.

    "GGUF", version, number of tensors, number of metadata       4 bytes, uint32, uint64, uint64
    metadata        name, type, value
    tensors         name, number of dimensions, dimensions, type, offset in the data
    data            the tensors, one after the other; each starts at a multiple of the alignment

All numbers are little-endian; a text is its length and UTF-8. A damaged file can state any length,
so each is compared with what is left of the file before anything is read. npgpt reads the header;
the package `gguf` knows the types of tensors and dequantises them.
"""

import math
import mmap
import struct
from collections.abc import Mapping

import numpy as np

from npgpt.errors import UserError
from npgpt.reading import open_regular

MAGIC, VERSIONS = b"GGUF", (2, 3)
READ = "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"        # types of tensors
EXTRA = "the package gguf, which is missing; install it with: pip install 'npgpt[gguf]'"
DIMENSIONS = 4            # at most, as in llama.cpp
LONGEST_NAME = 256        # bytes
SHOWN = 60                # characters of a value in a message
ALIGNMENTS = tuple(2**i for i in range(17))       # of the data, in bytes
ROWS = 1024               # that are dequantised at a time

# Types of metadata -> the format of one value in struct and NumPy.
TEXT, LIST = 8, 9
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
           11: "<q", 12: "<d"}


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
        header = _Header(data)
        if data[:4] != MAGIC:
            raise UserError(f"{path} is not a GGUF file")
        try:
            import gguf.quants  # a folder of the name gguf has none
        except ImportError:
            raise UserError(f"{path} needs {EXTRA}") from None
        try:
            header.take(4)
            _check_version(path, header.number("<I"))
            n_tensors, n_metadata = header.number("<Q"), header.number("<Q")
            self.metadata = Metadata(path, header, n_metadata)
            self.tensors = _tensors(path, header, n_tensors, self.metadata, gguf)
        except UserError:                          # a ValueError, too
            raise
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from None


def shown(value):
    """A value in a file for a message: it may be long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class _Header:
    """Reads a file from its start. Raises ValueError if it ends too early."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        """Go n bytes further -> where they start."""
        start = self.at
        if n > len(self.data) - start:
            raise ValueError(f"it ends at byte {len(self.data):,}, in the middle of its header")
        self.at += n
        return start

    def number(self, form):
        """-> the number of this format."""
        return struct.unpack_from(form, self.data, self.take(struct.calcsize(form)))[0]

    def text(self, most=None):
        """-> the text, of at most this number of bytes. Raises ValueError if it is not UTF-8."""
        n = self.number("<Q")
        if most is not None and n > most:
            raise ValueError(f"it has a name of {n:,} bytes; at most {most} are expected")
        start = self.take(n)
        return self.data[start:start + n].decode()

    def name(self):
        """-> a text that can be a name."""
        name = self.text(LONGEST_NAME)
        if not name or not name.isprintable():
            raise ValueError(f"{shown(name)} is not a valid name")
        return name

    def skip(self, kind):
        """Go over a value of metadata."""
        if kind in NUMBERS:
            self.take(struct.calcsize(NUMBERS[kind]))
        elif kind == TEXT:
            self.take(self.number("<Q"))
        elif kind == LIST:
            kind, n = self.number("<I"), self.number("<Q")
            if kind in NUMBERS:
                self.take(n * struct.calcsize(NUMBERS[kind]))
            elif kind == TEXT:
                for _ in range(n):                 # at least 8 bytes each
                    self.skip(TEXT)
            else:
                raise ValueError(f"a list of the type {kind}, which is unknown")
        else:
            raise ValueError(f"a value of the type {kind}, which is unknown")

    def value(self, kind):
        """-> a value of metadata."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == TEXT:
            return self.text()
        kind, n = self.number("<I"), self.number("<Q")
        if kind == TEXT:
            return [self.text() for _ in range(n)]
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.data, dtype, n, self.take(n * dtype.itemsize)).tolist()


class Metadata(Mapping):
    """name -> value: a number, a text, True or False, or a list of these. It is read when it is
    asked for: a vocabulary is long. Raises UserError for a text that is not UTF-8."""

    def __init__(self, path, header, n):
        self.path, self._data, self._places = path, header.data, {}      # name -> type, position
        for _ in range(n):
            name = header.name()
            if name in self._places:
                raise ValueError(f"{name} is there twice")
            kind = header.number("<I")
            self._places[name] = kind, header.at
            try:
                header.skip(kind)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    def __getitem__(self, name):
        header = _Header(self._data)
        kind, header.at = self._places[name]
        try:
            return header.value(kind)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is damaged: {name} is not UTF-8: {error}") from None

    def __iter__(self):
        return iter(self._places)

    def __len__(self):
        return len(self._places)


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
        found = np.empty(self.shape, np.float32)
        rows = found.reshape(-1, self.shape[-1])
        stored = self._data.reshape(len(rows), -1)
        with np.errstate(invalid="ignore", over="ignore"):        # of a damaged file
            for i in range(0, len(rows), ROWS):
                rows[i:i + ROWS] = self._gguf.quants.dequantize(stored[i:i + ROWS], self._kind)
        return found


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
        n_dims = header.number("<I")
        if not 1 <= n_dims <= DIMENSIONS:
            raise ValueError(f"the tensor {name} has {n_dims} dimensions")
        shape = tuple(header.number("<Q") for _ in range(n_dims))[::-1]
        kind, offset = header.number("<I"), header.number("<Q")
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
