"""The tokenizer in a GGUF file. tests/yardsticks compares a real one with transformers."""

import json
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import UserError
from npgpt.gguf_file import GGUFFile
from npgpt.text.gguf import PRE_TOKENIZERS, gguf_tokenizer
from npgpt.text.tokenizer import load_tokenizer
from tests.gguf_files import TEXTS, tokenizer_metadata, write_gguf

METADATA = tokenizer_metadata()
TOKENS = METADATA["tokenizer.ggml.tokens"]


@pytest.fixture
def make(tmp_path):
    """-> function: changes, name of metadata without "tokenizer.ggml." -> value -> the tokenizer
    of a file with these; None: it is left out."""
    def make(**changes):
        found = METADATA | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
        path = write_gguf(tmp_path / "m.gguf", {name: value for name, value in found.items()
                                                if value is not None})
        return gguf_tokenizer(GGUFFile(path))
    return make


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_tokens_are_those_of_the_file(pre, make):
    tokenizer = make(pre=pre)
    assert tokenizer.vocab_size == 300 == len(TOKENS) and tokenizer.end == 299
    assert tokenizer.token_bytes(299) == b"<|im_end|>" and tokenizer.token_bytes(5) == b"%"
    assert [i for i, n in enumerate(tokenizer.byte_lengths) if n == 0] == [0, 298, 299]
    assert tokenizer.encode("a<|im_start|>b<|endoftext|>").tolist() == [
        TOKENS.index("a"), 298, TOKENS.index("b"), 0]
    assert len(tokenizer.encode(TEXTS[1])) < 10

    @given(st.text() | st.text("a é1'. \n\t\U0001f600", max_size=60))
    def check(text):
        if pre != "qwen2":                       # which composes characters
            assert tokenizer.decode(tokenizer.encode(text)) == text

    check()


@pytest.mark.parametrize(("pre", "text", "expected"), [
    ("gpt-2", "ab1234", ["ab", "1234"]),
    ("gpt-2", "it's IT'S", ["it", "'s", " IT", "'", "S"]),
    ("gpt-2", "a   1", ["a", "  ", " 1"]),
    ("smollm", "ab1234 5", ["ab", "1", "2", "3", "4", " ", "5"]),
    ("smollm", "a   1", ["a", "   ", "1"]),
    ("smollm", "it's IT'S", ["it", "'s", " IT", "'", "S"]),
    ("llama-bpe", "ab1234 5", ["ab", "123", "4", " ", "5"]),
    ("llama-bpe", "it's IT'S", ["it", "'s", " IT", "'S"]),
    ("llama-bpe", "a.\n\nb", ["a", ".\n\n", "b"]),
    ("qwen2", "ab1234 5", ["ab", "1", "2", "3", "4", " ", "5"]),
    ("qwen2", "it's IT'S", ["it", "'s", " IT", "'S"]),
    ("qwen2", "cafe\u0301", ["caf\u00e9"]),
])
def test_text_is_cut_as_the_name_of_the_pre_tokenizer_says(pre, text, expected, make):
    """All bytes of a piece are merged here, and pieces that are beside each other would be."""
    trained = make()
    spelled = {trained.token_bytes(i): TOKENS[i] for i in range(1, 257)}
    merges, tokens = [], TOKENS[:257]
    for piece in expected:
        whole = ""
        for byte in piece.encode():
            first, whole = whole, whole + spelled[bytes([byte])]
            if whole not in tokens:
                merges.append(f"{first} {spelled[bytes([byte])]}")
                tokens.append(whole)
    wholes = ["".join(spelled[bytes([byte])] for byte in piece.encode()) for piece in expected]
    for first, second in pairwise(wholes):
        if first + second not in tokens:
            merges.append(f"{first} {second}")
            tokens.append(first + second)
    tokenizer = make(pre=pre, tokens=tokens, merges=merges, token_type=None, bos_token_id=None,
                     eos_token_id=None)
    assert pieces(tokenizer, text) == expected


def test_whole_token_is_not_merged_from_bytes_if_the_model_does_so(make):
    """Llama 3 has tokens that its merges do not lead to."""
    tokens = [*TOKENS[:257], "ab", "bc", "abc"]
    options = {"tokens": tokens, "merges": ["b c"], "token_type": None, "bos_token_id": None,
               "eos_token_id": None}
    assert pieces(make(pre="llama-bpe", **options), "abc") == ["abc"]
    assert pieces(make(pre="gpt-2", **options), "abc") == ["a", "bc"]


def test_saved_tokenizer_is_the_same(make, tmp_path):
    template = "{{ messages[0]['content'] }}"
    found = METADATA | {"tokenizer.chat_template": template, "tokenizer.ggml.add_bos_token": False}
    tokenizer = gguf_tokenizer(GGUFFile(write_gguf(tmp_path / "m.gguf", found)))
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.digest == tokenizer.digest and again.end == tokenizer.end
    assert again.settings == tokenizer.settings
    text = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert text["chat_template"] == template and text["bos_token"] == "<|im_start|>"
    assert text["eos_token"] == "<|im_end|>" and text["add_bos_token"] is False
    for text in TEXTS:
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_tokens_that_a_user_added_are_text(make):
    types = [1] * 298 + [4, 3]
    tokenizer = make(token_type=types)
    assert tokenizer.encode("a<|im_start|>").tolist() == [TOKENS.index("a"), 298]
    assert tokenizer.byte_lengths[298] == 12 and tokenizer.byte_lengths[299] == 0


def test_end_is_the_one_that_the_file_names(make):
    assert make(eos_token_id=298).end == 298
    assert make(eos_token_id=None).end == 0            # by its name


@pytest.mark.parametrize(("change", "message"), [
    ({"model": "llama"}, "tokenizer.ggml.model is 'llama'; npgpt reads gpt2"),
    ({"model": None}, "tokenizer.ggml.model is None; npgpt reads gpt2"),
    ({"pre": "tekken"},
     "tokenizer.ggml.pre is 'tekken'; npgpt reads gpt-2, smollm, llama-bpe, qwen2"),
    ({"pre": "default"},
     "tokenizer.ggml.pre is 'default'; npgpt reads gpt-2, smollm, llama-bpe, qwen2"),
    ({"tokens": None}, "tokenizer.ggml.tokens is missing, or not a list of text"),
    ({"merges": [1, 2]}, "tokenizer.ggml.merges is missing, or not a list of text"),
    ({"token_type": ["a"]}, "tokenizer.ggml.token_type is missing, or not a list of whole numbers"),
    ({"token_type": [1, 1]}, "there are 300 tokens, but the types of 2"),
    ({"tokens": ["a", "b", "a"]}, "the token 'a' is there twice"),
    ({"eos_token_id": 300},
     "tokenizer.ggml.eos_token_id must be the id of one of the 300 tokens, got 300"),
    ({"bos_token_id": "<s>"},
     "tokenizer.ggml.bos_token_id must be the id of one of the 300 tokens, got '<s>'"),
])
def test_what_npgpt_does_not_read_is_refused_by_name(change, message, make, tmp_path):
    with pytest.raises(UserError) as error:
        make(**change)
    assert str(error.value) == f"{tmp_path / 'm.gguf'}: {message}"


@pytest.mark.parametrize("merges", [["a zz"], ["a"], ["a b c"]])
def test_damaged_merges_are_refused(merges, make):
    with pytest.raises(UserError, match=r"m\.gguf is not a valid tokenizer: "):
        make(merges=merges)


def test_missing_package_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"m\.gguf needs the package tokenizers, which is missing"):
        make()


@pytest.mark.parametrize(("changes", "has_prefix"), [
    ({}, False), ({"add_bos_token": True}, True), ({"pre": "llama-bpe"}, True),
    ({"pre": "llama-bpe", "add_bos_token": False}, False),
])
def test_bos_token_belongs_before_a_text_if_the_file_says_so(changes, has_prefix, make, tmp_path):
    """And stays out of the ids of a text, which may be a part of a longer one."""
    tokenizer = make(bos_token_id=1, **changes)
    for found in (tokenizer, saved(tokenizer, tmp_path)):
        assert found.prefix.tolist() == [1] * has_prefix
        assert found.start.tolist() == ([1] if has_prefix else [found.end])
        assert 1 not in found.encode("a b")


def saved(tokenizer, folder):
    tokenizer.save(folder)
    return load_tokenizer(folder)


def test_prefix_without_a_bos_token_is_refused(make):
    with pytest.raises(UserError, match="bos_token_id is missing; texts begin with it"):
        make(bos_token_id=None, add_bos_token=True)


def test_first_token_may_have_a_meaning(make):
    assert make(bos_token_id=0, add_bos_token=True).prefix.tolist() == [0]


@pytest.mark.parametrize("adds", [True, False])
def test_settings_say_whether_a_token_is_put_before_a_text(adds, make):
    assert make(bos_token_id=1, add_bos_token=adds).settings["add_bos_token"] is adds
    assert "add_bos_token" not in make(bos_token_id=1, add_bos_token=None).settings


def test_token_that_is_there_twice_is_named(make):
    twice = [*TOKENS[:-1], TOKENS[5]]
    with pytest.raises(UserError) as error:
        make(tokens=twice)
    assert error.value.message.endswith(f"the token {TOKENS[5]!r} is there twice")
