"""Byte-level byte-pair encoding, as of GPT-2 (Radford et al. 2019), by Hugging Face's `tokenizers`.

The alphabet is the 256 bytes, so every text can be encoded, and a token can end in the middle of a
character. The most frequent pairs of tokens are merged into new ones, again and again, but not
beyond the pieces that a regular expression cuts a text into: words, numbers, runs of punctuation.

A long text is encoded in parts. It is cut between a letter and a white space, where the tokenizer
itself, asked about the characters around, divides it into pieces.
"""

import hashlib
import json
import os
import re
from itertools import islice
from pathlib import Path

import numpy as np

from npgpt.errors import UserError
from npgpt.reading import json_object, parse_json, read_bytes
from npgpt.text.characters import CONFIG, FILE, SETTINGS
from npgpt.text.tokenizer_json import (
    alphabet,
    check_tokens,
    finds,
    named_token,
    reaches_out,
    types,
)

END = "<|endoftext|>"
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>")     # in other vocabularies
PART = 2**16              # characters that are encoded at once
BATCH = 16                # of these parts, in as many threads as there are cores
CUT = re.compile(r"[^\W\d_](?=\s)")                  # after this letter
TRIES = 20                # places that are tried for a cut
AROUND = 500              # characters on each side of it that the tokenizer is asked about
EXTRA = "the package tokenizers, which is missing; install it with: pip install 'npgpt[bpe]'"


class BPETokenizer:
    """Bytes <-> token ids. It has the methods of every tokenizer, see tokenizer.py."""

    kind = "byte-level BPE"

    def __init__(self, tokenizer, content, settings, path):
        """tokenizer: of Hugging Face's library; content: its tokenizer.json in bytes; settings:
        tokenizer_config.json in bytes, or None; path: for messages. Raises UserError if it is not a
        byte-level BPE."""
        self._tokenizer, self._content, self._settings = tokenizer, content, settings
        tokenizer.no_truncation()
        tokenizer.no_padding()
        steps = parse_json(tokenizer.to_str())
        if steps["model"]["type"] != "BPE" or "ByteLevel" not in types(steps["decoder"]):
            kind = steps["model"]["type"]
            kind += " that is not byte-level" if kind == "BPE" else ""
            raise UserError(f"{path} is a tokenizer of the kind {kind}; npgpt reads byte-level BPE "
                            "and characters")
        added = tokenizer.get_added_tokens_decoder()
        self._may_cut = (steps["pre_tokenizer"] is not None and steps["normalizer"] is None
                         and not finds(steps["pre_tokenizer"], "add_prefix_space")
                         and not any(map(reaches_out, added.values())))
        vocab = tokenizer.get_vocab()
        if not vocab:
            raise UserError(f"{path} has no tokens")
        self.vocab_size = max(vocab.values()) + 1
        self._bytes = [b""] * self.vocab_size
        byte_of = {character: byte for byte, character in enumerate(alphabet())}
        try:
            for token, i in vocab.items():
                self._bytes[i] = (added[i].content.encode() if i in added else
                                  bytes(byte_of[character] for character in token))
        except KeyError as error:
            raise UserError(f"{path}: {error.args[0]!r} in the token {token!r} is none of the 256 "
                            "characters that stand for bytes") from None
        self._special = {i for i, token in added.items() if token.special}
        self.settings = (SETTINGS if settings is None else
                         json_object(settings, Path(path).with_name(CONFIG)))
        names = named_token(self.settings, "eos_token"), *ENDS
        self.end = next((vocab[name] for name in names if name in vocab), None)
        self.ends = () if self.end is None else (self.end,)
        self.bos = (self.end if settings is None else
                    vocab.get(named_token(self.settings, "bos_token")))

    @classmethod
    def from_json(cls, content, settings=None, path=FILE):
        """The bytes of a tokenizer.json, and of a tokenizer_config.json or None -> BPETokenizer.
        path: for messages. Raises UserError if it is damaged or of another kind."""
        library = _library(path)
        try:
            model = parse_json(content)["model"]
            check_tokens(model.get("vocab"), model.get("merges", ()))
            tokenizer = library.Tokenizer.from_buffer(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a valid tokenizer: {error}") from None
        return cls(tokenizer, content, settings, path)

    @classmethod
    def from_pairs(cls, vocab_path, merges_path, settings=None):
        """GPT-2's vocab.json and merges.txt -> BPETokenizer."""
        library = _library(vocab_path)
        vocab, lines = read_bytes(vocab_path), read_bytes(merges_path)
        try:
            vocab, lines = parse_json(vocab), lines.decode().split("\n")
            pairs = [tuple(line.split(" ")) for line in lines if line and line[:9] != "#version:"]
            check_tokens(vocab, pairs)
            tokenizer = byte_level(library, vocab, pairs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{vocab_path} and {merges_path.name} are not a valid tokenizer: "
                            f"{error}") from None
        if END in vocab:
            tokenizer.add_special_tokens([END])
        return cls(tokenizer, tokenizer.to_str().encode(), settings, vocab_path)

    @classmethod
    def train(cls, parts, vocab_size, show_progress=False, length=None):
        """An iterator over parts of texts -> a BPETokenizer of at most this number of tokens, whose
        first one ends a text. The regular expression is GPT-2's. show_progress: on stderr. length:
        about how many parts there are, for that."""
        library = _library(f"`vocab_size` {vocab_size}")
        tokenizer = byte_level(library)
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END], show_progress=show_progress,
            initial_alphabet=alphabet())
        tokenizer.train_from_iterator(parts, trainer, length)
        return cls(tokenizer, tokenizer.to_str().encode(), None, FILE)

    @property
    def prefix(self):
        """(n,) int: the tokens that belong before every text, such as Llama 3's first one."""
        added = self._tokenizer.encode("a", add_special_tokens=True)
        n = next((i for i, special in enumerate(added.special_tokens_mask) if not special), 0)
        return np.array(added.ids[:n], np.int64)

    @property
    def start(self):
        """(n,) int: the prefix. If there is none, the end-of-text token, as between documents, or a
        line break."""
        if len(self.prefix):
            return self.prefix
        return self.encode("\n")[:1] if self.end is None else np.array([self.end])

    def encode(self, text, name="the text"):
        """Text -> (n,) int64. Special tokens in the text are read as such. name: what it is called
        in messages. Raises UserError for half of a surrogate pair, which UTF-8 cannot represent."""
        return self._encode_all([text], name)[0].astype(np.int64)

    def encode_parts(self, parts, name="the text"):
        """Parts of one text -> an iterator over (n,) int: the ids of the whole text. Tokens may
        reach from one part into the next. name, and what is raised: as for `encode`."""
        pieces = []
        for piece in self._pieces(parts):
            pieces.append(piece)
            if len(pieces) == BATCH:
                yield np.concatenate(self._encode_all(pieces, name))
                pieces = []
        if pieces:
            yield np.concatenate(self._encode_all(pieces, name))

    def _pieces(self, parts):
        """Divide the text where no token crosses, if there are such places."""
        rest = ""
        for part in parts:
            rest += part
            while self._may_cut and len(rest) > PART:
                places = (found.end() for found in islice(CUT.finditer(rest, PART), TRIES))
                at = next((at for at in places if self._is_border(rest, at)), None)
                if at is None:
                    break
                yield rest[:at]
                rest = rest[at:]
        yield rest

    def _is_border(self, text, at):
        """Whether the tokenizer itself divides the text at this place before it merges bytes."""
        start = max(0, at - AROUND)
        pieces = self._tokenizer.pre_tokenizer.pre_tokenize_str(text[start:at + AROUND])
        return any(end == at - start for _, (_, end) in pieces)

    def _encode_all(self, texts, name):
        before = os.environ.get("TOKENIZERS_PARALLELISM")
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if len(texts) > 1 else "false"
        try:
            found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            half = next(c for text in texts for c in text if "\ud800" <= c <= "\udfff")
            raise UserError(f"{name} contains {half!r}, half of a surrogate pair, which UTF-8 "
                            "cannot represent; remove it") from None
        finally:       # a process that is forked now must not wait for threads that it lacks
            os.environ["TOKENIZERS_PARALLELISM"] = before or "false"
        return [np.array(encoding.ids, np.uint32) for encoding in found]

    def decode(self, ids):
        """Token ids (n,) -> text; "\ufffd" for bytes that are not UTF-8."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, i):
        """-> the bytes of a token; of a special token, its name; none of an id beyond the
        vocabulary, for which a model may have a row."""
        return self._bytes[i] if i < self.vocab_size else b""

    @property
    def byte_lengths(self):
        """(V,) int: the number of bytes of each token; 0 for special tokens, which are not text."""
        return np.array([0 if i in self._special else len(token)
                         for i, token in enumerate(self._bytes)])

    @property
    def digest(self):
        """A SHA-256 that only equal tokenizers have in common, as hexadecimal digits."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def save(self, folder):
        """Write tokenizer.json and tokenizer_config.json, as they were read."""
        settings = self._settings
        if settings is None:
            names = {} if self.end is None else dict.fromkeys(
                ("bos_token", "eos_token", "unk_token"), self._bytes[self.end].decode())
            settings = json.dumps(SETTINGS | names).encode()
        (Path(folder) / FILE).write_bytes(self._content)
        (Path(folder) / CONFIG).write_bytes(settings)


def byte_level(library, vocab=None, pairs=None):
    """-> a tokenizer of Hugging Face's library with GPT-2's regular expression."""
    tokenizer = library.Tokenizer(library.models.BPE(vocab, pairs))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _library(wanted):
    """-> Hugging Face's library. wanted: what needs it."""
    try:
        import tokenizers.models  # a folder of the name tokenizers has none
    except ImportError:
        raise UserError(f"{wanted} needs {EXTRA}") from None
    return tokenizers
