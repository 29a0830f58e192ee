"""Token files: the token ids of texts of any size, encoded once and never loaded as a whole.

A directory with:

    tokens.npy       the ids in NumPy's format, of the smallest type that fits the vocabulary
    tokens.json      their number, the texts that they come from, the SHA-256 of the texts
    tokenizer.json   and tokenizer_config.json, the tokenizer
    SHA256SUMS       the hashes of these files, which only `verify` computes again

Texts are documents. The end-of-text token is between two of them; without one, a line break.
"""

import hashlib
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npgpt.cli.command import ended_by_signals
from npgpt.durable import SUMS, atomic_directory, write_json
from npgpt.errors import UserError
from npgpt.reading import open_regular, read_json
from npgpt.text import tokenizer as tokenizers
from npgpt.text.characters import Alphabet, CharTokenizer
from npgpt.text.files import ENDLESS, documents, signature

FACTS, IDS = "tokens.json", "tokens.npy"
FILES = tokenizers.FILES | {FACTS, IDS, SUMS}
FORMAT = 1
KINDS = {"tokens": int, "documents": int, "characters": int, "bytes": int, "distinct": int,
         "sha256": str, "sources": list}
ENCODED_AGAIN = "encode the text again"


@dataclass(frozen=True, eq=False)
class TokenFile:
    """An open token file."""

    path: Path
    ids: np.ndarray      # (N,), of which the memory holds no more than what is in use
    tokenizer: object
    facts: dict          # tokens.json

    def changed_sources(self):
        """-> the paths of texts that are still there, but not as they were encoded."""
        return [path for path, *then in self.facts["sources"]
                if Path(path).exists() and signature(path)[1:] != then]


def is_token_file(path):
    """Whether a directory is a token file, perhaps a damaged one."""
    return (Path(path) / FACTS).is_file() or (Path(path) / IDS).is_file()


def open_tokens(path):
    """-> TokenFile. Compares the length of the ids with tokens.json, but computes no hash. Raises
    UserError if something is missing or damaged."""
    path = Path(path)
    facts = read_json(path / FACTS)
    for name, kind in KINDS.items():
        if not isinstance(facts.get(name), kind):
            raise UserError(f"{path / FACTS} is damaged: {name} is {facts.get(name)!r}; "
                            f"{ENCODED_AGAIN}")
    if not all(map(_is_signature, facts["sources"])):
        raise UserError(f"{path / FACTS} is damaged: sources is {facts['sources']!r}; "
                        f"{ENCODED_AGAIN}")
    if facts.get("format") != FORMAT:
        raise UserError(f"{path} was written by another version of npgpt; {ENCODED_AGAIN}")
    tokenizer = tokenizers.load_tokenizer(path)
    with open_regular(path / IDS, ENDLESS) as file:
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            ids = np.memmap(file, dtype, "r", file.tell(), shape)
        except Exception as error:       # NumPy's reader of the header has many
            raise UserError(f"{path / IDS} is damaged or cut short: {error}; "
                            f"{ENCODED_AGAIN}") from None
    if shape != (facts["tokens"],) or dtype != smallest_type(tokenizer):
        raise UserError(f"{path / IDS} is damaged: it has {ids.size} tokens of the type {dtype}, "
                        f"{facts['tokens']} of {smallest_type(tokenizer)} are expected; "
                        f"{ENCODED_AGAIN}")
    return TokenFile(path, ids, tokenizer, facts)


def _is_signature(source):
    """Whether a value from JSON is what `signature` returns."""
    return isinstance(source, list) and [type(value) for value in source] == [str, int, int]


def smallest_type(tokenizer):
    """-> the smallest unsigned dtype that fits all token ids."""
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def encode_files(paths, tokenizer, target, progress=lambda text, done, total: None):
    """Encode texts and write them as a token file -> TokenFile. An existing token file is replaced.

    tokenizer: None: a new one for the characters of the texts. progress(text, done, total): called
    now and then, in bytes. Nothing is left behind if it is interrupted. Raises UserError if a text
    cannot be read or encoded, or if the target cannot be written.
    """
    sources = [signature(path) for path in paths]
    total, is_new = sum(size for _, size, _ in sources), tokenizer is None
    if not total:
        raise UserError(f"{paths[0]} is empty" if len(paths) == 1 else "all texts are empty")
    of_characters = is_new or tokenizer.kind == CharTokenizer.kind
    _check_disk(paths[0], target, total if of_characters else total // 2)
    if is_new:
        alphabet = Alphabet()
        for text in documents(paths, lambda done: progress("reading", done, total)):
            for part in text:
                alphabet.add(part)
        if len(paths) > 1:
            alphabet.add("\n")                   # between them
        tokenizer = CharTokenizer(alphabet.characters)
    try:
        with ended_by_signals(), atomic_directory(target, FILES) as folder:
            texts = documents(paths, lambda done: progress("encoding", done, total))
            facts = _encode(zip(paths, texts), tokenizer, folder / IDS, is_new)
            if not facts["tokens"]:
                raise UserError(f"{paths[0]} is empty")
            for path, before in zip(paths, sources):
                if signature(path) != before:
                    raise UserError(f"{path} has changed while it was read; encode it again")
            facts |= {"sources": sources}
            write_json(folder / FACTS, facts)
            tokenizer.save(folder)
            progress("writing", total, total)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    return open_tokens(target)


def _check_disk(path, target, needed):
    """Raise UserError if there is less free space where a directory is to be written."""
    there = next(path for path in Path(target).absolute().parents if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{path}: the token ids need about {needed:,} bytes, and {free:,} bytes "
                        f"are free in {there}")


def _encode(documents, tokenizer, path, is_new):
    """Write the ids of documents to a file -> name -> value for tokens.json. documents: pairs of a
    name for messages and parts of a text. is_new: the tokenizer was made from them, so that all of
    its tokens occur."""
    dtype, digests = smallest_type(tokenizer), []
    seen = np.full(tokenizer.vocab_size, is_new)
    counts = {"tokens": 0, "documents": 0, "characters": 0, "bytes": 0}

    def counted(parts, digest):
        for part in parts:
            content = part.encode()
            digest.update(content)
            counts["characters"] += len(part)
            counts["bytes"] += len(content)
            yield part

    with open(path, "wb") as file:
        _write_header(file, dtype, 0)
        for number, (name, parts) in enumerate(documents):
            digest, between = hashlib.sha256(), []
            if number:
                end = tokenizer.end
                between = [tokenizer.encode("\n") if end is None else np.array([end])]
            encoded = tokenizer.encode_parts(counted(parts, digest), name)
            for ids in itertools.chain(between, encoded):
                if not is_new:
                    seen[ids] = True
                file.write(np.ascontiguousarray(ids, dtype).data)
                counts["tokens"] += len(ids)
            digests.append(digest)
            counts["documents"] += 1
        file.seek(0)
        _write_header(file, dtype, counts["tokens"])
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256(
        b"".join(digest.digest() for digest in digests))
    return {"format": FORMAT, **counts, "distinct": int(seen.sum()), "sha256": sha256.hexdigest()}


def _write_header(file, dtype, n):
    """NumPy's header for n elements. NumPy leaves room for a larger n in it, so all have the same
    length."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)})
