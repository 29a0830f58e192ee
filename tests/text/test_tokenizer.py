import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import UserError
from npgpt.text.tokenizer import CharTokenizer, load_tokenizer


@given(st.text(min_size=1))
def test_decoding_undoes_encoding(text):
    tokenizer = CharTokenizer(text)
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_are_positions_in_the_sorted_alphabet():
    tokenizer = CharTokenizer("hello\n")
    assert tokenizer.characters == "\nehlo"
    assert tokenizer.encode("hole").tolist() == [2, 4, 3, 1]
    assert tokenizer.encode("").tolist() == []


@pytest.mark.parametrize("unknown", ["é", "a", "\U0001f600", "\x00"])
def test_unknown_character_is_named_with_its_position(unknown):
    with pytest.raises(UserError) as error:
        CharTokenizer("bcd").encode(f"cb{unknown}d")
    assert f"{unknown!r}, character 3 of the text" in str(error.value)
    assert "'bcd'" in str(error.value)


def test_message_lists_no_more_than_the_first_hundred_characters():
    characters = "".join(map(chr, range(0x4e00, 0x4e00 + 1200)))
    with pytest.raises(UserError) as error:
        CharTokenizer(characters).encode("x")
    assert str(error.value).endswith(f"{characters[:100]}' and 1,100 more")


def test_text_starts_from_a_line_break_if_there_is_one():
    assert CharTokenizer("ab\n").start.tolist() == [0]
    assert CharTokenizer("ba").decode(CharTokenizer("ba").start) == "a"


@given(st.text(min_size=1, max_size=30))
def test_saved_tokenizer_is_loaded_unchanged(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("tokenizer")
    CharTokenizer(text).save(folder)
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, CharTokenizer)
    assert tokenizer.characters == CharTokenizer(text).characters


def test_hugging_face_reads_the_file_and_gets_the_same_ids(tmp_path, transformers):
    text = "First Citizen:\nBefore we proceed, hear me — é!"
    tokenizer = CharTokenizer(text)
    tokenizer.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("content", [
    "", "{", "[]", '{"model": 3}', '{"model": {"vocab": {}}}',
    '{"model": {"vocab": {}, "merges": []}}',
    json.dumps({"model": {"vocab": {"a": 0, "b": 2}, "merges": ["a b"]}}),
    json.dumps({"model": {"vocab": {"b": 0, "a": 1}, "merges": []}}),
    json.dumps({"model": {"vocab": {"a": 0, "b": 2}, "merges": []}}),
    json.dumps({"model": {"vocab": {"ab": 0}, "merges": []}}),
    json.dumps({"model": {"vocab": {"a": "0"}, "merges": []}}),
])
def test_file_that_is_not_a_character_tokenizer_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)


def test_ids_are_numpy_integers():
    assert CharTokenizer("abc").encode("cab").dtype == np.int64
