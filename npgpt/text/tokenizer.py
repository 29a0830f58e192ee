"""Loading a tokenizer of either kind: characters, or byte-level byte-pair encoding.

Every tokenizer has these:

    kind                    "characters" or "byte-level BPE"
    vocab_size              the number of tokens, V
    prefix                  (n,) int: the tokens that belong before every text; most have none
    start                   (n,) int: the tokens that generated text starts from
    bos, end                the tokens before and after a text; None: none. Of most tokenizers these
                            are one token, which is between documents, too
    ends                    the tokens that end a text, end and others: a tuple
    encode(text, name)      -> (n,) int64; name: what the text is called in messages
    encode_parts(parts, name)       -> an iterator over arrays: the ids of a long text that is given
                            in parts; together they are those of encode for the whole text
    decode(ids)             -> text
    token_bytes(i)          -> the bytes of a token; a character may be divided among tokens
    byte_lengths            (V,) int: their number; 0 for special tokens, which are not text
    digest                  a SHA-256 that only equal tokenizers have in common
    settings                the contents of tokenizer_config.json: special tokens, a chat template
    save(folder)            writes FILES, which Hugging Face's tokenizers and AutoTokenizer read
"""

import json
import os
from pathlib import Path

from npgpt.errors import UserError
from npgpt.gguf_file import GGUFFile
from npgpt.reading import parse_json, read_bytes, read_json
from npgpt.text.bpe import BPETokenizer
from npgpt.text.characters import CONFIG, FILE, SETTINGS, CharTokenizer
from npgpt.text.gguf import gguf_tokenizer

FILES = {FILE, CONFIG}
PAIRS, MERGES = "vocab.json", "merges.txt"       # GPT-2's own form of a byte-level BPE
TEMPLATE = "chat_template.jinja"
ENDING = "config.json", "generation_config.json"         # of a model, which say where a text ends
PADDED, MOST_PADDING = 64, 1024                  # rows of a table, as in Qwen3
CHARS = "chars"                                  # names the characters of a text


def named_tokenizer(name):
    """The value of `tokenizer`, CHARS or a directory -> its tokenizer; None for CHARS. Raises
    UserError."""
    if name == CHARS:
        return None
    if not Path(name).is_dir():
        raise UserError(f"`tokenizer` must be {CHARS} or a directory with a tokenizer, got "
                        f"{name!r}")
    return load_tokenizer(name)


def holds_tokenizer(folder):
    """Whether a directory has a tokenizer, in either form."""
    return any(os.path.lexists(Path(folder) / name) for name in (FILE, PAIRS))


def load_tokenizer(folder):
    """Load the tokenizer in a directory: tokenizer.json, or GPT-2's vocab.json with merges.txt; or
    that in a GGUF file. Raises UserError if it is missing, damaged or of another kind."""
    folder = Path(folder)
    if folder.is_file():
        return gguf_tokenizer(GGUFFile(folder))
    path, settings = folder / FILE, _read_settings(folder)
    if not os.path.lexists(path) and os.path.lexists(folder / PAIRS):
        return BPETokenizer.from_pairs(folder / PAIRS, folder / MERGES, settings)
    if not os.path.lexists(path):
        raise UserError(f"{path} is missing; token ids cannot be decoded without it")
    content = read_bytes(path)
    try:
        tokenizer = CharTokenizer.from_json(parse_json(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # str: repr would quote the file if it is not UTF-8.
        raise UserError(f"{path} is not a valid tokenizer: {type(error).__name__}: "
                        f"{error}") from error
    tokenizer = tokenizer or BPETokenizer.from_json(content, settings, path)
    tokenizer.ends = tuple(sorted({*tokenizer.ends, *ends_of_the_model(folder, tokenizer)}))
    return tokenizer


def ends_of_the_model(folder, tokenizer):
    """-> the tokens at which the model in a directory ends a text, as config.json and
    generation_config.json say; ids beyond the vocabulary end none. Raises UserError if they are
    invalid."""
    found = set()
    for path in (folder / name for name in ENDING if os.path.lexists(folder / name)):
        ends = read_json(path).get("eos_token_id")
        for end in ends if isinstance(ends, list) else [] if ends is None else [ends]:
            if type(end) is not int:
                raise UserError(f"{path}: eos_token_id must be the id of a token, or a list of "
                                f"these, got {ends!r}")
            found.add(end)
    return found.intersection(range(tokenizer.vocab_size))


def _read_settings(folder):
    """-> tokenizer_config.json in bytes, with the chat template that transformers writes to a file
    beside it; None: there is none."""
    config, template = folder / CONFIG, folder / TEMPLATE
    if not os.path.lexists(template):
        return read_bytes(config) if os.path.lexists(config) else None
    settings = read_json(config) if os.path.lexists(config) else SETTINGS
    try:
        text = read_bytes(template).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{template} is not UTF-8: {error}") from None
    return json.dumps(settings | {"chat_template": text}).encode()


def check_vocabulary(tokenizer, vocab_size, directory):
    """Raise UserError if the model in a directory has another vocabulary than its tokenizer. A
    model may have some rows more, up to a multiple of PADDED, which stand for no token."""
    more = vocab_size - tokenizer.vocab_size
    may_be_padded = tokenizer.kind == BPETokenizer.kind and vocab_size % PADDED == 0
    if more and not (may_be_padded and more in range(MOST_PADDING)):
        raise UserError(f"the tokenizer and the model in {directory} do not fit each other: "
                        f"{tokenizer.vocab_size:,} and {vocab_size:,} tokens")
