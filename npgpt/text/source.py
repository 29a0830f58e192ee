"""Training data: token ids, in a training and a validation split, and what made them."""

import glob
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from npgpt.cli.fields import DATA_CACHE
from npgpt.errors import UserError
from npgpt.text.cache import cached_tokens, existing_tokens
from npgpt.text.characters import CharTokenizer
from npgpt.text.load import SHAKESPEARE, load_text, sha256
from npgpt.text.token_file import is_token_file, open_tokens, smallest_type

TRAIN_FRACTION = 0.9      # the first tokens; the rest is the validation split, as in the lecture
LARGE = 2**22             # bytes of a text from which on it is encoded into a file


@dataclass(frozen=True, eq=False)
class TokenSource:
    """Token ids and their origin. Create one with `from_text` or `load_source`."""

    name: str                     # the value of `data` that loads it
    ids: np.ndarray               # (N,), of the smallest unsigned dtype that fits the vocabulary
    tokenizer: object
    fingerprint: str              # SHA-256 of the text in UTF-8, as hexadecimal digits
    note: str                     # one line for the user, may be empty
    summary: str                  # "1,760 characters, 28 of them distinct"
    path: Path | None = None      # of the token file that has the ids, if one has

    @property
    def train(self):
        """(n,): the training split."""
        return self.ids[:int(TRAIN_FRACTION * len(self.ids))]

    @property
    def val(self):
        """(N - n,): the validation split."""
        return self.ids[int(TRAIN_FRACTION * len(self.ids)):]

    @property
    def is_mapped(self):
        """Whether the ids are in a file, which may be larger than the memory."""
        return isinstance(self.ids, np.memmap)

    @classmethod
    def from_text(cls, text, name="text", tokenizer=None, note=""):
        """tokenizer: None: a new one for the characters of the text.
        Raises UserError if the tokenizer does not know a character of the text."""
        tokenizer = tokenizer or CharTokenizer(text)
        called = "the text" if name == "text" else f"the text {name}"
        ids = tokenizer.encode(text, called).astype(smallest_type(tokenizer))
        facts = {"tokens": len(ids), "documents": 1, "characters": len(text),
                 "bytes": len(text.encode()), "distinct": len(np.unique(ids))}
        return cls(name, ids, tokenizer, sha256(text), note, summary(tokenizer, facts))

    @classmethod
    def from_file(cls, tokens, name):
        """TokenFile, the value of `data` -> TokenSource."""
        changed = tokens.changed_sources()
        note = f"{changed[0]} has changed since it was encoded" if changed else ""
        return cls(name, tokens.ids, tokens.tokenizer, tokens.facts["sha256"], note,
                   summary(tokens.tokenizer, tokens.facts), tokens.path)

    def without_file(self):
        """-> the same without ids that are in a file, for a process on another machine."""
        return replace(self, ids=None) if self.is_mapped else self

    def with_file(self):
        """The inverse of `without_file`. Raises UserError if there is another file at the path, or
        none."""
        if self.ids is not None:
            return self
        there = open_tokens(self.path)
        if (there.facts["sha256"], there.tokenizer.digest) != (self.fingerprint,
                                                               self.tokenizer.digest):
            raise UserError(f"{self.path} has other tokens than the first rank's; copy the "
                            "directory from there")
        return replace(self, ids=there.ids)


def load_source(name=None, tokenizer=None, cache=DATA_CACHE,
                progress=lambda text, done, total: None):
    """The value of `data` -> TokenSource.

    name: a text by name or path, as for `load_text`; a token file; a directory or a pattern that
    stands for several texts, see `files.find`. tokenizer: None: that of a token file, or a new one
    for the characters of the text. cache: where large texts are kept as token files. progress: as
    for `encode_files`. Raises UserError.
    """
    if name and is_token_file(name):
        tokens = open_tokens(name)
        if tokenizer is not None and tokens.tokenizer.digest != tokenizer.digest:
            raise UserError(f"{name} was encoded with another tokenizer ({tokens.tokenizer.kind}, "
                            f"{tokens.tokenizer.vocab_size:,} tokens) than the model's "
                            f"({tokenizer.kind}, {tokenizer.vocab_size:,} tokens); encode its "
                            "texts with the model's")
        source = TokenSource.from_file(tokens, str(name))
    elif name and _is_large(name):
        source = TokenSource.from_file(cached_tokens(name, tokenizer, cache, progress), str(name))
    else:
        text = load_text(name)
        source = TokenSource.from_text(text.text, text.name, tokenizer, text.note)
    if source.tokenizer.vocab_size == 1:
        raise UserError(f"the text {source.name} contains no character but "
                        f"{source.tokenizer.decode([0])!r}; there is nothing to learn")
    return source


@dataclass(frozen=True)
class Found:
    """What is there of a text before training."""

    fingerprint: str = ""         # of the TokenSource; empty: it has to be downloaded or encoded
    digest: str = ""              # of the tokenizer of a token file
    path: Path | None = None      # of the token file, which every rank maps; None: the first rank
                                  # reads the text


def look_for(name=None, cache=DATA_CACHE):
    """The value of `data` -> Found. Nothing is downloaded or encoded. Raises UserError if the text
    is not there, and training would not download it."""
    if name and is_token_file(name):
        tokens = open_tokens(name)
    elif name and _is_large(name):
        tokens = existing_tokens(name, cache)
        if tokens is None:
            return Found(path=Path(cache))
    elif name in (None, "shakespeare") and not SHAKESPEARE.exists():
        return Found()
    else:
        return Found(sha256(load_text(name).text))
    return Found(tokens.facts["sha256"], tokens.tokenizer.digest, tokens.path)


def summary(tokenizer, facts):
    """-> "1,760 characters, 28 of them distinct", of the facts of a token file."""
    if tokenizer.kind == CharTokenizer.kind:
        text = f"{facts['characters']:,} characters, {facts['distinct']:,} of them distinct"
    else:
        text = (f"{facts['tokens']:,} tokens, {facts['bytes'] / facts['tokens']:.2f} bytes per "
                f"token, {facts['distinct']:,} of {tokenizer.vocab_size:,} in use")
    return text if facts["documents"] == 1 else f"{facts['documents']:,} texts, {text}"


def _is_large(name):
    """Whether a name stands for a large text, or for several."""
    path = Path(name)
    if path.is_file():
        return path.stat().st_size > LARGE or path.name.endswith(".gz")
    return path.is_dir() or (glob.has_magic(str(name)) and "://" not in str(name))
