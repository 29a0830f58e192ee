"""Datasets: a text by name or path, its training and validation splits, and batches of them.

Which windows of text make batch number `step` is a function of (seed, step) alone: nothing random
is carried along, so a run that is resumed, or shared out, sees the same batches.
"""

import hashlib
import http.client
import importlib
import os
import stat
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npgpt.errors import UserError
from npgpt.text.tokenizer import CharTokenizer

SHAKESPEARE = Path("data/tinyshakespeare.txt")
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TRAIN_SHARE = 0.9      # of the text, from its start; the rest validates, as in the lecture


class Unavailable(UserError):
    """A text that has to be fetched, and cannot be."""


@dataclass(frozen=True)
class Text:
    """A text and where it came from."""

    name: str            # what --data finds it by
    text: str
    note: str = ""       # one line for a person, if there is something to say

    @property
    def sha256(self):
        """Of the text in UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


def load_text(name=None):
    """A text by name ("shakespeare", "pydocs") or path -> Text.

    None: Tiny Shakespeare or, if it is not in data/ and cannot be downloaded, pydocs.
    Raises UserError that says why there is no such text.
    """
    if name is None:
        try:
            return load_text("shakespeare")
        except Unavailable as error:
            return Text("pydocs", _pydocs(), note=f"{error}; using Python's own manual instead")
    if name == "shakespeare":
        return Text(name, _shakespeare())
    if name == "pydocs":
        return Text(name, _pydocs())
    return Text(str(name), read_text(Path(name)))


def read_text(path):
    """The text of a UTF-8 file, as it is but for a byte-order mark. Raises UserError."""
    try:
        mode = os.stat(path).st_mode
        data = path.read_bytes() if stat.S_ISREG(mode) else b""      # of a pipe there is no end
    except FileNotFoundError:
        raise UserError(
            f"there is no text {str(path)!r}: --data takes shakespeare, pydocs or a path"
        ) from None
    except (OSError, ValueError) as error:                           # ValueError: NUL in the path
        raise UserError(f"{str(path)!r} cannot be read: {error}") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise UserError(f"{path} is {kind}; --data takes a text file")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")      # the byte-order mark
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is {data[error.start]:#04x}"
        raise UserError(f"{path} is not UTF-8: {found}") from None
    if not text:
        raise UserError(f"{path} is empty")
    return text


def _pydocs():
    """The language reference that Python carries for its help(): about 460,000 characters."""
    topics = importlib.import_module("pydoc_data.topics").topics     # half a megabyte

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def _shakespeare():
    """Tiny Shakespeare from data/, or downloaded there first."""
    if not SHAKESPEARE.exists():
        try:
            with urllib.request.urlopen(SHAKESPEARE_URL, timeout=10) as answer:
                data = answer.read(10**7)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(
                f"{SHAKESPEARE} is not there and cannot be downloaded "
                f"({getattr(error, 'reason', error)})"
            ) from None
        if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
            raise UserError(f"what was downloaded from {SHAKESPEARE_URL} is not Tiny Shakespeare")
        SHAKESPEARE.parent.mkdir(exist_ok=True)
        temporary = SHAKESPEARE.with_suffix(".download")
        temporary.write_bytes(data)
        temporary.replace(SHAKESPEARE)
    text = read_text(SHAKESPEARE)
    if hashlib.sha256(text.encode()).hexdigest() != SHAKESPEARE_SHA256:
        raise UserError(f"{SHAKESPEARE} is not Tiny Shakespeare: remove it, or name it with --data")
    return text


class Dataset:
    """The tokens of a text on a device, in two splits, and windows of block_size of them."""

    def __init__(self, text, block_size, device, tokenizer=None):
        """text: str. tokenizer: None makes one of the text's own characters.
        Raises UserError if a split is too short for one window."""
        self.tokenizer = tokenizer or CharTokenizer(text)
        self.block_size = block_size
        self.device = device
        ids = self.tokenizer.encode(text)
        border = int(TRAIN_SHARE * len(ids))
        for split, length in (("training", border), ("validation", len(ids) - border)):
            if length <= block_size:
                raise UserError(
                    f"the text is too short: its {split} split has {length} tokens, and a "
                    f"block_size of {block_size} needs at least {block_size + 1}"
                )
        self.train = device.to_device(ids[:border])
        self.val = device.to_device(ids[border:])

    def batch(self, seed, step, rows, start=0, stop=None):
        """Rows start..stop of the training batch of `rows` windows that belongs to (seed, step),
        -> idx, targets (stop - start, T). The targets are the tokens one place later."""
        rng = np.random.default_rng([seed, step])
        offsets = rng.integers(len(self.train) - self.block_size, size=rows)
        return self.windows(self.train, offsets[start:stop])

    def windows(self, split, offsets):
        """offsets (B,) into a split -> idx, targets (B, T)."""
        xp = self.device.xp
        offsets = self.device.to_device(offsets)[:, None] + xp.arange(self.block_size)
        return split[offsets], split[offsets + 1]

    def offsets(self, split, windows=None):
        """Where windows start that follow one another through a split without overlapping: all of
        them, or a number of them spread evenly. Always the same ones."""
        starts = np.arange(0, len(split) - self.block_size, self.block_size)
        if windows is None or windows >= len(starts):
            return starts
        return starts[np.linspace(0, len(starts) - 1, windows).round().astype(int)]
