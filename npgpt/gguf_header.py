"""The numbers, texts and metadata at the start of a GGUF file.

All numbers are little-endian; a text is its length and UTF-8. A damaged file can state any length,
so each is compared with what is left of the file before anything is read.
"""

import struct
from collections.abc import Mapping

import numpy as np

from npgpt.errors import UserError

LONGEST_NAME = 256        # bytes
SHOWN = 60                # characters of a value in a message

# Types of metadata -> the format of one value in struct and NumPy.
TEXT, LIST = 8, 9
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
           11: "<q", 12: "<d"}


def shown(value):
    """A value in a file for a message: it may be long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class Header:
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

    def u32(self):
        """-> the number of 4 bytes, such as a type."""
        return self.number("<I")

    def u64(self):
        """-> the number of 8 bytes, such as a length."""
        return self.number("<Q")

    def text(self, most=None):
        """-> the text, of at most this number of bytes. Raises ValueError if it is not UTF-8."""
        n = self.u64()
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
            self.take(self.u64())
        elif kind == LIST:
            kind, n = self.u32(), self.u64()
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
        """-> a value of metadata that `skip` went over before."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == TEXT:
            return self.text()
        kind, n = self.u32(), self.u64()
        if kind == TEXT:
            return [self.text() for _ in range(n)]
        return np.frombuffer(self.data, NUMBERS[kind], n, self.at).tolist()


class Metadata(Mapping):
    """name -> value: a number, a text, True or False, or a list of these. It is read when it is
    asked for: a vocabulary is long. Raises UserError for a text that is not UTF-8."""

    def __init__(self, path, header, n):
        self.path, self._data, self._places = path, header.data, {}      # name -> type, position
        for _ in range(n):
            name = header.name()
            if name in self._places:
                raise ValueError(f"{name} is there twice")
            kind = header.u32()
            self._places[name] = kind, header.at
            try:
                header.skip(kind)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    def __getitem__(self, name):
        header = Header(self._data)
        kind, header.at = self._places[name]
        try:
            return header.value(kind)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is damaged: {name} is not UTF-8: {error}") from None

    def __iter__(self):
        return iter(self._places)

    def __len__(self):
        return len(self._places)
