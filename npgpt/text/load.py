"""Loading a text by name or path."""

import contextlib
import difflib
import hashlib
import http.client
import importlib
import os
import re
import urllib.request
from pathlib import Path
from typing import NamedTuple

from npgpt.durable import write_text
from npgpt.errors import UserError
from npgpt.text.files import read_parts

NAMES = ("shakespeare", "pydocs")
TAKES = "shakespeare, pydocs, or the path of a text, a directory of texts or a token file"
SHAKESPEARE = Path("data/tinyshakespeare.txt")
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Unavailable(UserError):
    """A text is not on disk and its download failed."""


class Text(NamedTuple):
    """A text and its origin."""

    name: str            # the value of `data` that loads it
    text: str
    note: str = ""       # one line for the user, may be empty


def load_text(name=None):
    """A text by name ("shakespeare", "pydocs") or path -> Text.

    None: Tiny Shakespeare or, if it is not in data/ and cannot be downloaded, pydocs.
    Raises UserError if the text is not available.
    """
    if name is None:
        try:
            return Text("shakespeare", _shakespeare())
        except Unavailable as error:
            note = f"{error}; using pydocs, Python's own manual, instead"
            return Text("pydocs", _pydocs(), note)
    if name == "shakespeare":
        try:
            return Text(name, _shakespeare())
        except Unavailable as error:
            raise Unavailable(f"{error}; copy it there from another machine") from None
    if name == "pydocs":
        return Text(name, _pydocs())
    if name == "":
        raise UserError(f"`data` is empty; it takes {TAKES}")
    if re.match(r"[\w+.-]+://", str(name)):
        raise UserError(f"`data` takes a file, got the address {name!r}; download it first")
    return Text(str(name), read_text(Path(name)))


def read_text(path):
    """The text of a UTF-8 file, without a byte-order mark. Raises UserError."""
    if not os.path.lexists(path):
        hint = _similar(path) or ";"
        raise UserError(f"there is no file {str(path)!r}{hint} `data` takes {TAKES}")
    text = "".join(read_parts(path, None))
    if not text:
        raise UserError(f"{path} is empty; `data` takes {TAKES}")
    return text


def sha256(text):
    """The SHA-256 of a text in UTF-8, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _similar(path):
    """"; did you mean ...?" if a name or a file in the same directory has a similar spelling, else
    ""."""
    known = {name: name for name in NAMES} if path.parent == Path() else {}
    with contextlib.suppress(OSError):                           # there is no such directory
        known |= {other.name: str(other) for other in path.parent.iterdir() if other.is_file()}
    close = difflib.get_close_matches(path.name, known)
    return f"; did you mean {known[close[0]]!r}?" if close else ""


def _pydocs():
    """The language reference in Python's help(): about 460,000 characters."""
    topics = importlib.import_module("pydoc_data.topics").topics     # half a megabyte

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def _shakespeare():
    """Tiny Shakespeare from data/. It is downloaded if it is missing."""
    if not SHAKESPEARE.exists():
        try:
            with urllib.request.urlopen(SHAKESPEARE_URL, timeout=10) as answer:
                data = answer.read(10**7)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(f"{SHAKESPEARE} is missing and cannot be downloaded "
                              f"({getattr(error, 'reason', error)})") from None
        if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
            raise UserError(f"the download from {SHAKESPEARE_URL} is not Tiny Shakespeare; try "
                            "again or use `data` pydocs")
        SHAKESPEARE.parent.mkdir(exist_ok=True)
        write_text(SHAKESPEARE, data.decode())
    text = read_text(SHAKESPEARE)
    if sha256(text) != SHAKESPEARE_SHA256:
        raise UserError(f"{SHAKESPEARE} is not Tiny Shakespeare; remove it, or pass its path as "
                        "`data`")
    return text
