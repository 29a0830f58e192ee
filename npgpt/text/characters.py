"""One token for each distinct character, as in the lecture.

Hugging Face's `tokenizers` reads the saved tokenizer as byte-pair encoding without merges: the ids
are the same.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from npgpt.errors import UserError

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
# tokenizer_config.json tells transformers to read tokenizer.json as it is. Without it, transformers
# takes the tokenizer of a GPT-2 for GPT-2's own, and drops spaces and line breaks.
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
# Parts of a tokenizer.json that divide or change a text, and that a character tokenizer lacks.
OTHER_STEPS = "added_tokens", "normalizer", "pre_tokenizer"
SHOWN = 100      # characters listed in a message
CODES = 0x110000                  # of Unicode
UNKNOWN = 255


class CharTokenizer:
    """Characters <-> token ids: the id of a character is its position in the sorted alphabet. It
    has the methods of every tokenizer, see tokenizer.py."""

    kind = "characters"
    settings = SETTINGS
    bos = end = None              # there is no end-of-text token
    ends = ()

    def __init__(self, alphabet):
        """alphabet: a text that contains every character, in any order and any number of times.
        Raises UserError if a character is half of a surrogate pair, which no file can contain."""
        self.characters = "".join(sorted(set(alphabet)))
        halves = [character for character in self.characters if "\ud800" <= character <= "\udfff"]
        if halves:
            raise UserError(f"the text contains {halves[0]!r}, half of a surrogate pair, which "
                            "UTF-8 cannot represent; remove it")
        self._ids = np.full(CODES, -1, np.int32)
        self._ids[_codes(self.characters)] = np.arange(len(self.characters))      # by code point
        # The same as bytes for ASCII, which bytes.translate looks up ten times faster.
        ascii_ids = [UNKNOWN if i < 0 else i for i in self._ids[:128].tolist()]
        self._table = bytes(ascii_ids) + bytes(128)            # translate needs 256

    @property
    def vocab_size(self):
        """The number of tokens, V."""
        return len(self.characters)

    @property
    def prefix(self):
        """(0,) int: no token belongs before a text."""
        return np.empty(0, np.int64)

    @property
    def start(self):
        """(1,) int: the token that generated text starts from, the line break if there is one."""
        return self.encode("\n" if "\n" in self.characters else self.characters[0])

    def encode(self, text, name="the text"):
        """Text of n characters -> (n,) int64. name: what it is called in messages. Raises UserError
        for an unknown character."""
        return self._encode(text, name, 0).astype(np.int64)

    def encode_parts(self, parts, name="the text"):
        """Parts of one text -> an iterator over (n,) int: the ids of each part. name: as for
        `encode`. Raises UserError for an unknown character."""
        before = 0
        for part in parts:
            yield self._encode(part, name, before)
            before += len(part)

    def _encode(self, text, name, before):
        """before: the number of characters before this part of the text."""
        if text.isascii():
            ids = text.encode().translate(self._table)
            if UNKNOWN not in ids:
                return np.frombuffer(ids, np.uint8)
        codes = _codes(text)
        ids = self._ids[codes]
        unknown = ids < 0
        if unknown.any():
            at = unknown.argmax()
            raise UserError(f"{text[at]!r}, character {before + at + 1:,} of {name}, is not among "
                            f"the {self.vocab_size} characters that the model knows: "
                            f"{_shown(self.characters)}")
        return ids

    def decode(self, ids):
        """Token ids (n,) -> text of n characters."""
        return "".join(self.characters[i] for i in ids)

    def token_bytes(self, i):
        """-> the bytes of a token in UTF-8."""
        return self.characters[i].encode()

    @property
    def byte_lengths(self):
        """(V,) int: the number of bytes of each token."""
        return np.array([len(character.encode()) for character in self.characters])

    @property
    def digest(self):
        """A SHA-256 that only equal tokenizers have in common, as hexadecimal digits."""
        return hashlib.sha256(b"characters " + self.characters.encode()).hexdigest()

    def save(self, folder):
        """Write tokenizer.json and tokenizer_config.json."""
        value = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",      # is no token: so unknown characters raise an error there
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {character: i for i, character in enumerate(self.characters)},
                "merges": [],
            },
        }
        for name, content in ((FILE, value), (CONFIG, SETTINGS)):
            text = json.dumps(content, ensure_ascii=False, indent=1)
            (Path(folder) / name).write_bytes((text + "\n").encode())

    @classmethod
    def from_json(cls, found):
        """The contents of a tokenizer.json -> CharTokenizer; None if it is of another kind. Raises
        ValueError, KeyError, TypeError or AttributeError if it is damaged."""
        if found["model"].get("type", "BPE") != "BPE":
            return None
        vocab, merges = found["model"]["vocab"], found["model"]["merges"]
        characters = sorted(vocab)
        ids = [vocab[character] for character in characters]
        more = any(found.get(step) for step in OTHER_STEPS)
        if merges or more or not ids or ids != list(range(len(ids))):
            return None
        tokenizer = cls("".join(characters))
        return tokenizer if list(tokenizer.characters) == characters else None


class Alphabet:
    """Collects the distinct characters of a long text."""

    def __init__(self):
        self._seen = np.zeros(CODES, bool)
        self._ascii = b""

    def add(self, text):
        """Add the characters of a part of the text."""
        new = text.encode().translate(None, delete=self._ascii).decode()
        self._seen[_codes(new)] = True
        self._ascii = bytes(np.flatnonzero(self._seen[:128]).tolist())

    @property
    def characters(self):
        """The characters so far, sorted."""
        return "".join(map(chr, np.flatnonzero(self._seen)))


def _shown(characters):
    """The characters for a message, in quotes, at most SHOWN of them."""
    if len(characters) <= SHOWN:
        return repr(characters)
    return f"{characters[:SHOWN]!r} and {len(characters) - SHOWN:,} more"


def _codes(text):
    """Text of n characters -> (n,) uint8 or uint32, their code points."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
