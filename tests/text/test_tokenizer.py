import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import UserError
from npgpt.text.bpe import BPETokenizer
from npgpt.text.characters import Alphabet, CharTokenizer
from npgpt.text.tokenizer import (
    FILES,
    check_vocabulary,
    holds_tokenizer,
    load_tokenizer,
    named_tokenizer,
)
from tests.gguf_files import tokenizer_metadata, write_gguf

REFUSED = (r"tokenizer\.json is (not a valid tokenizer: |a tokenizer of the kind BPE that is not "
           r"byte-level; npgpt reads )")


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


@given(st.lists(st.text()))
def test_alphabet_of_parts_is_that_of_the_text(parts):
    alphabet = Alphabet()
    for part in parts:
        alphabet.add(part)
    assert alphabet.characters == "".join(sorted(set("".join(parts))))


@given(st.lists(st.text()))
def test_parts_have_the_ids_of_the_whole_text(parts):
    text = "".join(parts)
    tokenizer = CharTokenizer(text + "a")
    ids = [i for part in tokenizer.encode_parts(parts) for i in part]
    assert ids == tokenizer.encode(text).tolist()
    assert sum(tokenizer.byte_lengths[ids]) == len(text.encode())
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_ascii_is_looked_up_in_bytes():
    """Which is ten times faster."""
    for tokenizer in (CharTokenizer("ab"), CharTokenizer("".join(map(chr, range(255))))):
        first = tokenizer.characters[0]
        (ids,) = tokenizer.encode_parts([f"ab{first}"])
        assert ids.dtype == np.uint8 and tokenizer.decode(ids) == f"ab{first}"


def test_name_of_the_text_is_in_messages():
    with pytest.raises(UserError, match="character 1 of the prompt, is not"):
        CharTokenizer("ab").encode("x", "the prompt")
    with pytest.raises(UserError, match="character 3 of the text, is not"):
        list(CharTokenizer("ab").encode_parts(["a", "ax"]))
    with pytest.raises(UserError, match=r"character 1,002 of b\.txt, is not"):
        list(CharTokenizer("ab").encode_parts(["a" * 1000, "bx"], "b.txt"))


def test_alphabet_with_an_x():
    alphabet = Alphabet()
    alphabet.add("X")
    assert alphabet.characters == "X"


def test_other_kind_that_looks_like_characters_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "merges": [], "unk_token": "a"}}))
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)


def test_vocabulary_of_another_model_is_refused():
    check_vocabulary(CharTokenizer("ab"), 2, "here")
    with pytest.raises(UserError) as error:
        check_vocabulary(CharTokenizer("ab"), 3000, "here")
    assert str(error.value) == ("the tokenizer and the model in here do not fit each other: 2 and "
                                "3,000 tokens")


@pytest.mark.parametrize(("n", "rows", "fits"), [
    (270, 270, True), (270, 320, True), (270, 269, False), (270, 271, False), (270, 319, False),
    (270, 256, False), (270, 1280, True), (270, 1344, False), (319, 320, True), (320, 1344, False),
])
def test_model_may_have_rows_up_to_a_multiple_of_64_that_stand_for_no_token(n, rows, fits):
    tokenizer = BPETokenizer.train(["the quick brown fox jumps over the lazy dog and runs away, "
                                    "as nobody had ever seen it do before that day in May"], n)
    assert tokenizer.vocab_size == n
    if fits:
        check_vocabulary(tokenizer, rows, "here")
        assert tokenizer.decode([rows, 0, rows + 1]) == "<|endoftext|>"
        return
    with pytest.raises(UserError, match="do not fit each other"):
        check_vocabulary(tokenizer, rows, "here")


def test_tokenizer_is_named_by_its_kind_or_its_directory(tmp_path):
    assert named_tokenizer("chars") is None
    tokenizer = BPETokenizer.train(["the quick brown fox"], 260)
    tokenizer.save(tmp_path)
    assert named_tokenizer(str(tmp_path)).digest == tokenizer.digest
    with pytest.raises(UserError) as error:
        named_tokenizer("nowhere")
    assert error.value.message == ("`tokenizer` must be chars or a directory with a tokenizer, got "
                                   "'nowhere'")


def test_file_in_the_place_of_a_directory_is_a_gguf_file(tmp_path):
    metadata = tokenizer_metadata()
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", metadata))
    assert tokenizer.vocab_size == len(metadata["tokenizer.ggml.tokens"])


def test_chat_template_needs_no_other_settings(tmp_path):
    BPETokenizer.train(["the quick brown fox"], 260).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("hello")
    assert load_tokenizer(tmp_path).settings["chat_template"] == "hello"


def test_characters_of_a_model_are_never_padded():
    with pytest.raises(UserError, match="do not fit each other"):
        check_vocabulary(CharTokenizer("ab"), 64, "here")


def test_digest_is_that_of_the_alphabet():
    assert CharTokenizer("ab").digest == hashlib.sha256(b"characters ab").hexdigest()
    assert CharTokenizer("ab").digest == CharTokenizer("abba").digest != CharTokenizer("a").digest


@pytest.mark.parametrize("unknown", ["é", "a", "\U0001f600", "\x00", "\udcff"])
def test_unknown_character_is_named_with_its_position(unknown):
    with pytest.raises(UserError) as error:
        CharTokenizer("bcd").encode(f"cb{unknown}d")
    assert f"{unknown!r}, character 3 of the text" in str(error.value)
    assert "'bcd'" in str(error.value)


def test_character_after_the_last_one_is_unknown():
    with pytest.raises(UserError, match="'z', character 1 of the text, is not among the 3 char"):
        CharTokenizer("bcd").encode("z")


def test_message_lists_a_hundred_characters_in_full():
    characters = "".join(map(chr, range(0x4e00, 0x4e00 + 100)))
    with pytest.raises(UserError) as error:
        CharTokenizer(characters).encode("x")
    assert str(error.value).endswith(f"{characters}'")


def test_message_lists_no_more_than_the_first_hundred_characters():
    characters = "".join(map(chr, range(0x4e00, 0x4e00 + 1200)))
    with pytest.raises(UserError) as error:
        CharTokenizer(characters).encode("x")
    assert str(error.value).endswith(f"{characters[:100]}' and 1,100 more")


def test_text_starts_from_a_line_break_if_there_is_one():
    assert CharTokenizer("ab\n\t").start.tolist() == [1]
    assert CharTokenizer("ba").decode(CharTokenizer("ba").start) == "a"


@given(st.text(min_size=1, max_size=30))
def test_saved_tokenizer_is_loaded_unchanged(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("tokenizer")
    CharTokenizer(text).save(folder)
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, CharTokenizer)
    assert tokenizer.characters == CharTokenizer(text).characters


def test_files_say_what_hugging_face_needs_to_know(tmp_path):
    CharTokenizer("é\n").save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    assert text.startswith('{\n "version"') and text.endswith("}\n") and "é" in text
    assert json.loads(text) == {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>",
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False,
                  "vocab": {"\n": 0, "é": 1}, "merges": []},
    }
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_tokenizer_of_an_older_npgpt_is_loaded(tmp_path):
    """Without tokenizer_config.json, and without an unknown token."""
    old = Path(__file__).parents[1] / "training/runs/muon-1/checkpoint-6/tokenizer.json"
    assert json.loads(old.read_text(encoding="utf-8"))["model"]["unk_token"] is None
    shutil.copy(old, tmp_path)
    text = (Path(__file__).parents[1] / "training/runs/text.txt").read_text(encoding="utf-8")
    assert load_tokenizer(tmp_path).characters == "".join(sorted(set(text)))


@pytest.mark.parametrize(("name", "holds"), [
    ("tokenizer.json", True), ("vocab.json", True), ("merges.txt", False), ("config.json", False)])
def test_directory_holds_a_tokenizer_in_either_form(tmp_path, name, holds):
    (tmp_path / name).symlink_to("nowhere")              # it is refused when it is read
    assert holds_tokenizer(tmp_path) is holds
    assert holds_tokenizer(str(tmp_path)) is holds


@pytest.mark.parametrize("half", ["\ud800", "\udbff", "\udc80", "\udfff"])
def test_half_of_a_surrogate_pair_is_refused_before_anything_is_trained(half):
    with pytest.raises(UserError) as error:
        CharTokenizer(f"ab{half}\ue000")
    assert str(error.value) == (f"the text contains {half!r}, half of a surrogate pair, which "
                                "UTF-8 cannot represent; remove it")
    assert CharTokenizer("\ud7ff\ue000").vocab_size == 2


def test_model_without_a_type_is_of_characters_too(tmp_path):
    CharTokenizer("ab").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text())
    del found["model"]["type"]
    path.write_text(json.dumps(found))
    assert load_tokenizer(tmp_path).characters == "ab"


@pytest.mark.parametrize("content", [
    "", "{", "[]", '{"model": 3}', '{"model": {"vocab": {}}}',
    '{"model": {"vocab": {}, "merges": []}}',
    json.dumps({"model": {"vocab": {"a": 0, "b": 2}, "merges": ["a b"]}}),
    json.dumps({"model": {"vocab": {"b": 0, "a": 1}, "merges": []}}),
    json.dumps({"model": {"vocab": {"a": 0, "b": 2}, "merges": []}}),
    json.dumps({"model": {"vocab": {"ab": 0}, "merges": []}}),
    json.dumps({"model": {"vocab": {"a": "0"}, "merges": []}}),
    json.dumps({"model": {"vocab": {"a": 1, "b": 2}, "merges": []}}),
    json.dumps({"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}),
    json.dumps({"model": {"vocab": {"a": 0, "\ud800": 1}, "merges": []}}),
    json.dumps({"model": {"vocab": ["a"], "merges": []}}),
    "[" * 100_000,
    b"\xff",
])
def test_file_that_is_not_a_character_tokenizer_is_refused(content, tmp_path):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=REFUSED):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("part", "value"), [
    ("normalizer", {"type": "Lowercase"}), ("pre_tokenizer", {"type": "Whitespace"}),
    ("added_tokens", [{"id": 0, "content": "a"}]),
])
def test_tokenizer_that_does_more_than_look_up_characters_is_refused(part, value, tmp_path):
    CharTokenizer("ab").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    with pytest.raises(UserError, match=REFUSED):
        load_tokenizer(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(UserError, match=r"tokenizer\.json is a directory"):
        load_tokenizer(tmp_path)


def test_ids_are_numpy_integers():
    assert CharTokenizer("abc").encode("cab").dtype == np.int64
    assert CharTokenizer("abc").encode("").dtype == np.int64
