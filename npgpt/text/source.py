"""What training reads: a text as token ids, in a training and a validation split."""

from dataclasses import dataclass

import numpy as np

from npgpt.text.load import load_text, sha256
from npgpt.text.tokenizer import CharTokenizer

TRAIN_FRACTION = 0.9      # of the tokens, from the first; the rest validates, as in the lecture


@dataclass(frozen=True, eq=False)
class TokenSource:
    """Token ids and where they come from. Make one with `from_text` or `load_source`."""

    name: str                     # what `data` finds it by
    train: np.ndarray             # (N,) of the smallest unsigned type that holds the vocabulary
    val: np.ndarray               # (M,)
    tokenizer: CharTokenizer      # what made the ids
    fingerprint: str              # SHA-256 of the text in UTF-8, as hexadecimal digits
    note: str                     # one line for the user, if there is something to say
    summary: str                  # "1,760 characters, 28 of them distinct"

    @classmethod
    def from_text(cls, text, name="text", tokenizer=None, note=""):
        """text: str. tokenizer: None makes one of the text's own characters.
        Raises UserError if the tokenizer does not know a character of the text."""
        tokenizer = tokenizer or CharTokenizer(text)
        ids = tokenizer.encode(text).astype(np.min_scalar_type(tokenizer.vocab_size - 1))
        border = int(TRAIN_FRACTION * len(ids))
        summary = f"{len(text):,} characters, {len(set(text))} of them distinct"
        return cls(name, ids[:border], ids[border:], tokenizer, sha256(text), note, summary)


def load_source(name=None, tokenizer=None):
    """A text by name or path, as for `load_text`, -> TokenSource. tokenizer: None makes one of the
    text's own characters. Raises UserError."""
    text = load_text(name)
    return TokenSource.from_text(text.text, text.name, tokenizer, text.note)
