"""Training data: the token ids of a text, in a training and a validation split."""

from dataclasses import dataclass

import numpy as np

from npgpt.errors import UserError
from npgpt.text.load import load_text, sha256
from npgpt.text.tokenizer import CharTokenizer

TRAIN_FRACTION = 0.9      # the first tokens; the rest is the validation split, as in the lecture


@dataclass(frozen=True, eq=False)
class TokenSource:
    """Token ids and their origin. Create one with `from_text` or `load_source`."""

    name: str                     # the value of `data` that loads it
    train: np.ndarray             # (N,), of the smallest unsigned dtype that fits the vocabulary
    val: np.ndarray               # (M,)
    tokenizer: CharTokenizer
    fingerprint: str              # SHA-256 of the text in UTF-8, as hexadecimal digits
    note: str                     # one line for the user, may be empty
    summary: str                  # "1,760 characters, 28 of them distinct"

    @classmethod
    def from_text(cls, text, name="text", tokenizer=None, note=""):
        """tokenizer: None: a new one for the characters of the text.
        Raises UserError if the tokenizer does not know a character of the text."""
        tokenizer = tokenizer or CharTokenizer(text)
        ids = tokenizer.encode(text).astype(np.min_scalar_type(tokenizer.vocab_size - 1))
        border = int(TRAIN_FRACTION * len(ids))
        summary = f"{len(text):,} characters, {len(set(text))} of them distinct"
        return cls(name, ids[:border], ids[border:], tokenizer, sha256(text), note, summary)


def load_source(name=None, tokenizer=None):
    """A text by name or path, as for `load_text` -> TokenSource. tokenizer: None: a new one for the
    characters of the text. Raises UserError."""
    text = load_text(name)
    source = TokenSource.from_text(text.text, text.name, tokenizer, text.note)
    if source.tokenizer.vocab_size == 1:
        raise UserError(f"the text {text.name} contains no character but {text.text[0]!r}; there "
                        "is nothing to learn")
    return source
