"""The text files that a path, a directory or a pattern stands for, and reading them in parts.

A file is UTF-8, plain or compressed with gzip. A part is some megabytes, so a text may be larger
than the memory.
"""

import codecs
import glob
import gzip
import os
import zlib
from pathlib import Path

from npgpt.errors import UserError
from npgpt.reading import open_regular

ENDINGS = (".txt", ".text", ".md", ".rst")       # of the files that a directory stands for
GZIP = b"\x1f\x8b"                               # begins no text in UTF-8
BYTES = 2**22                                    # of a part
ENDLESS = 2**62


def find(name):
    """A file, a directory or a pattern such as "books/**/*.txt" -> sorted paths of files. A
    directory stands for the texts in it and below, by their ENDINGS, also with .gz; hidden ones are
    left out. Raises UserError if there is none."""
    path = Path(name)
    if str(name) == "":
        raise UserError("the path of a text is empty")
    if path.is_dir():
        found = [Path(folder, file) for folder, _, files in os.walk(path) for file in files]
        found = [file for file in found if _is_text(file.relative_to(path))]
        if not found:
            raise UserError(f"{path} contains no text files ({', '.join(ENDINGS)}, or these with "
                            f".gz); for other files use a pattern such as '{path}/**/*.py'")
    elif glob.has_magic(str(name)) and not os.path.lexists(path):
        found = [Path(match) for match in glob.glob(str(name), recursive=True)]
        found = [match for match in found if not match.is_dir()]
        if not found:
            raise UserError(f"there is no file that matches {str(name)!r}")
    else:
        return [path]
    return sorted(found)


def _is_text(path):
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(ENDINGS) and not any(part.startswith(".") for part in path.parts)


def signature(path):
    """-> what changes if a file does: its absolute path, size in bytes and time of change. Raises
    UserError if it is missing."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        raise UserError(f"{path} is missing") from None
    return [os.path.abspath(path), found.st_size, found.st_mtime_ns]


def read_parts(path, most=ENDLESS, after=lambda done: None):
    """Yield the text of a file in parts, without a byte-order mark. most: as for `open_regular`.
    after(done) is called with the number of bytes of the file that have been read. Raises UserError
    if it cannot be read or is not UTF-8."""
    decoder, offset, first = codecs.getincrementaldecoder("utf-8")(), 0, b""
    is_begun = False
    with open_regular(path, most) as file:
        content = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == GZIP else file
        while True:
            part = _read(path, content)
            first = first or part[:2]
            before = offset - len(decoder.getstate()[0])
            try:
                text = decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                encoding = "utf-16" if first in (b"\xff\xfe", b"\xfe\xff") else "latin1"
                raise UserError(
                    f"{path} is not UTF-8 (byte {before + error.start} is "
                    f"{error.object[error.start]:#04x}); convert it with: iconv -f {encoding} "
                    "-t utf-8") from None
            offset += len(part)
            if text and not is_begun:
                text, is_begun = text.removeprefix("\ufeff"), True
            if text:
                yield text
            if not part:
                return
            after(file.tell())


def documents(paths, after=lambda done: None):
    """Yield an iterator over the parts of each text. after(done): called with the number of bytes
    of all files that have been read."""
    before = 0
    for path in paths:
        yield read_parts(path, after=lambda done, before=before: after(before + done))
        before += signature(path)[1]


def _read(path, content):
    """-> the next bytes of an open file."""
    try:
        return content.read(BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged, or no gzip file: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
