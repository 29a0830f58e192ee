"""Text to token ids and back, with one token for each distinct character, as in the lecture.

A tokenizer is saved as tokenizer.json in the format of Hugging Face's `tokenizers`, which reads it
as byte-pair encoding without merges: the ids are the same. tokenizer_config.json tells transformers
to read that file as it is. Without it, transformers takes the tokenizer of a GPT-2 for GPT-2's own,
and drops spaces and line breaks.
"""

import json
import os
from pathlib import Path

import numpy as np

from npgpt.errors import UserError
from npgpt.reading import parse_json, read_bytes

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
FILES = {FILE, CONFIG}
# Parts of a tokenizer.json that divide or change a text, and that a character tokenizer lacks.
OTHER_STEPS = "added_tokens", "normalizer", "pre_tokenizer"
SHOWN = 100      # characters listed in a message


def load_tokenizer(folder):
    """Load the tokenizer saved in a directory: so far always a CharTokenizer. Raises UserError if
    it is missing or of another kind."""
    return CharTokenizer.load(folder)


class CharTokenizer:
    """Characters <-> token ids: the id of a character is its position in the sorted alphabet."""

    def __init__(self, alphabet):
        """alphabet: a text that contains every character, in any order and any number of times.
        Raises UserError if a character is half of a surrogate pair, which no file can contain."""
        self.characters = "".join(sorted(set(alphabet)))
        halves = [character for character in self.characters if "\ud800" <= character <= "\udfff"]
        if halves:
            raise UserError(f"the text contains {halves[0]!r}, half of a surrogate pair, which "
                            "UTF-8 cannot represent; remove it")
        self._codes = _codes(self.characters)                     # (V,), sorted

    @property
    def vocab_size(self):
        """The number of tokens, V."""
        return len(self.characters)

    @property
    def start(self):
        """(1,) int: the token that generated text starts from, the line break if there is one."""
        return self.encode("\n" if "\n" in self.characters else self.characters[0])

    def encode(self, text):
        """Text of n characters -> (n,) int64. Raises UserError for an unknown character."""
        codes = _codes(text)
        if not len(codes):
            return np.empty(0, np.int64)
        ids = np.minimum(np.searchsorted(self._codes, codes), self.vocab_size - 1)
        unknown = np.flatnonzero(self._codes[ids] != codes)
        if len(unknown):
            at = unknown[0]
            raise UserError(f"{text[at]!r}, character {at + 1} of the text, is not among the "
                            f"{self.vocab_size} characters that the model knows: "
                            f"{_shown(self.characters)}")
        return ids

    def decode(self, ids):
        """Token ids (n,) -> text of n characters."""
        return "".join(self.characters[i] for i in ids)

    def save(self, folder):
        """Write tokenizer.json and tokenizer_config.json, for this class and for transformers'
        AutoTokenizer."""
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
        settings = {"tokenizer_class": "PreTrainedTokenizerFast",
                    "clean_up_tokenization_spaces": False}
        for name, content in ((FILE, value), (CONFIG, settings)):
            text = json.dumps(content, ensure_ascii=False, indent=1)
            (Path(folder) / name).write_bytes((text + "\n").encode())

    @classmethod
    def load(cls, folder):
        """Read what `save` wrote. Raises UserError if the file is missing or of another kind."""
        path = Path(folder) / FILE
        if not os.path.lexists(path):
            raise UserError(f"{path} is missing; token ids cannot be decoded without it")
        content = read_bytes(path)
        try:
            found = parse_json(content)
            vocab, merges = found["model"]["vocab"], found["model"]["merges"]
            characters = sorted(vocab)
            ids = [vocab[character] for character in characters]
            tokenizer = cls("".join(characters))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # str: repr would quote the file if it is not UTF-8.
            raise UserError(f"{path} is not a valid tokenizer: {type(error).__name__}: "
                            f"{error}") from error
        is_ours = list(tokenizer.characters) == characters and ids == list(range(len(ids)))
        more = any(found.get(step) for step in OTHER_STEPS)
        if merges or more or not ids or not is_ours:
            raise UserError(f"{path} is not a character tokenizer; npgpt reads no other kind yet")
        return tokenizer


def _shown(characters):
    """The characters for a message, in quotes, at most SHOWN of them."""
    if len(characters) <= SHOWN:
        return repr(characters)
    return f"{characters[:SHOWN]!r} and {len(characters) - SHOWN:,} more"


def _codes(text):
    """Text of n characters -> (n,) uint32, their code points."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
