"""The tokenizer in a GGUF file, a byte-level BPE: its tokens, its merges, and the name of the way
in which a text is cut before bytes are merged. From these a tokenizer.json is made.

The regular expressions are those of llama.cpp (llama-vocab.cpp) and of the models' own files.
"""

import json

from npgpt.errors import UserError
from npgpt.gguf_header import shown
from npgpt.text.bpe import BPETokenizer
from npgpt.text.characters import SETTINGS

MODEL = "gpt2"                         # llama.cpp's name for byte-level BPE
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4     # types of tokens
# Name in tokenizer_config.json -> name of the metadata with its id, after "tokenizer.ggml.".
TOKENS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "eot_token": "eot_token_id",
          "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}     # the regular expression is in the library
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
SEQUENCE = {"type": "Sequence"}

# tokenizer.ggml.pre -> steps of a tokenizer.json. llama.cpp's "default" is none of these.
PRE_TOKENIZERS = {
    "gpt-2": {"pre_tokenizer": GPT2},
    "smollm": {"pre_tokenizer": SEQUENCE | {"pretokenizers": [DIGITS, GPT2]}},
    "llama-bpe": {"pre_tokenizer": SEQUENCE | {"pretokenizers": [
        SPLIT | {"pattern": {"Regex": LLAMA3}}, BYTES]}},
    "qwen2": {"normalizer": {"type": "NFC"}, "pre_tokenizer": SEQUENCE | {"pretokenizers": [
        SPLIT | {"pattern": {"Regex": QWEN2}}, BYTES]}},
}
# What is the same in every tokenizer.json.
CONTENT = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None,
           "decoder": GPT2}
BPE = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
       "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
PREFIX, FIRST = {"type": "TemplateProcessing"}, {"type_id": 0}
IGNORES_MERGES = ("llama-bpe",)        # a piece that is a token is not merged from bytes
ADDS_BOS = ("llama-bpe",)              # unless the metadata says otherwise


def gguf_tokenizer(file):
    """GGUFFile -> its BPETokenizer. Raises UserError if there is none, or one of another kind."""
    _one_of(file, "model", [MODEL])
    pre = _one_of(file, "pre", PRE_TOKENIZERS)
    tokens, merges = _list(file, "tokens", str), _list(file, "merges", str)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise UserError(f"{file.path}: the token {shown(twice)} is there twice")
    types = [NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in file.metadata:
        types = _list(file, "token_type", int)
    if len(types) != len(tokens):
        raise UserError(f"{file.path}: there are {len(tokens):,} tokens, but the types of "
                        f"{len(types):,}")
    added = [ADDED | {"id": i, "content": token, "special": kind != USER_DEFINED}
             for i, (token, kind) in enumerate(zip(tokens, types))
             if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    model = BPE | {"ignore_merges": pre in IGNORES_MERGES, "vocab": vocab, "merges": merges}
    content = CONTENT | PRE_TOKENIZERS[pre] | {
        "added_tokens": added, "post_processor": _prefix(file, pre, tokens), "model": model}
    return BPETokenizer.from_json(_json(content), _json(_settings(file, tokens)), file.path)


def _prefix(file, pre, tokens):
    """-> the step of a tokenizer.json that puts the bos token before a text, or None."""
    i = _token_id(file, "bos_token_id", tokens)
    by_default = pre in ADDS_BOS and i is not None
    if not file.metadata.get("tokenizer.ggml.add_bos_token", by_default):
        return None
    if i is None:
        raise UserError(f"{file.path}: tokenizer.ggml.bos_token_id is missing; texts begin with "
                        "it")
    token = tokens[i]
    steps = [{"SpecialToken": {"id": token} | FIRST}, {"Sequence": {"id": "A"} | FIRST}]
    return PREFIX | {"single": steps, "pair": steps,
                     "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}}}


def _token_id(file, key, tokens):
    """-> the id of a token in the metadata, or None. Raises UserError if it is invalid."""
    i = file.metadata.get(f"tokenizer.ggml.{key}")
    if i is not None and (type(i) is not int or not 0 <= i < len(tokens)):
        raise UserError(f"{file.path}: tokenizer.ggml.{key} must be the id of one of the "
                        f"{len(tokens):,} tokens, got {shown(i)}")
    return i


def _settings(file, tokens):
    """-> the contents of tokenizer_config.json."""
    settings = dict(SETTINGS)
    for name, key in TOKENS.items():
        i = _token_id(file, key, tokens)
        if i is not None:
            settings[name] = tokens[i]
    if "tokenizer.ggml.add_bos_token" in file.metadata:
        settings["add_bos_token"] = bool(file.metadata["tokenizer.ggml.add_bos_token"])
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return settings


def _one_of(file, key, known):
    """-> the value of the metadata. Raises UserError if it is not one of those that are known."""
    value = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{file.path}: tokenizer.ggml.{key} is {shown(value)}; npgpt reads "
                        f"{', '.join(known)}")
    return value


def _list(file, key, kind):
    """-> the list in the metadata. Raises UserError unless it is one of this type."""
    value = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(type(part) is kind for part in value):
        raise UserError(f"{file.path}: tokenizer.ggml.{key} is missing, or not a list of "
                        f"{'text' if kind is str else 'whole numbers'}")
    return value


def _json(value):
    return json.dumps(value).encode()
