import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from npgpt import UserError
from npgpt.text import load, source
from npgpt.text.characters import CharTokenizer
from npgpt.text.source import Found, TokenSource, load_source, look_for
from npgpt.text.token_file import encode_files

ALPHABET = "".join(chr(ord("a") + i % 26) for i in range(1000))


def test_splits_are_the_first_nine_tenths_and_the_rest():
    source = TokenSource.from_text(ALPHABET)
    assert (len(source.train), len(source.val)) == (900, 100)
    assert source.tokenizer.decode(np.concatenate([source.train, source.val])) == ALPHABET


@pytest.mark.parametrize(("length", "border"), [(1, 0), (2, 1), (9, 8), (10, 9), (11, 9), (19, 17),
                                                (20, 18), (1_115_394, 1_003_854)])
def test_border_between_the_splits_is_rounded_down(length, border):
    source = TokenSource.from_text("ab" * (length // 2) + "a" * (length % 2))
    assert (len(source.train), len(source.val)) == (border, length - border)


@pytest.mark.parametrize(("V", "dtype"), [
    (1, np.uint8), (256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32),
])
def test_ids_have_the_smallest_dtype_that_fits_the_vocabulary(V, dtype):
    text = "".join(map(chr, range(100_000, 100_000 + V)))
    source = TokenSource.from_text(text)
    assert source.train.dtype == source.val.dtype == dtype
    assert source.val[-1] == V - 1
    # The dtype depends on the tokenizer, not on the text.
    some = TokenSource.from_text(text[:1], tokenizer=source.tokenizer)
    assert some.val.dtype == dtype and some.tokenizer is source.tokenizer


def test_fingerprint_is_the_sha256_of_the_text_in_utf_8():
    text = "naïve \U0001f600\n"
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert TokenSource.from_text(text).fingerprint == expected


def test_summary_counts_characters_and_distinct_characters():
    text = "the quick brown fox jumps over the lazy dog\n" * 40
    assert TokenSource.from_text(text).summary == "1,760 characters, 28 of them distinct"
    larger = CharTokenizer(text + "XYZ")
    assert TokenSource.from_text(text, tokenizer=larger).summary.endswith(" 28 of them distinct")


def test_source_is_loaded_from_the_path_of_a_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(ALPHABET)
    source = load_source(str(path))
    assert (source.name, source.note) == (str(path), "")
    assert source.fingerprint == TokenSource.from_text(ALPHABET).fingerprint
    assert source.tokenizer.decode(source.train) == ALPHABET[:900]
    larger = CharTokenizer(ALPHABET + "Z")
    assert load_source(str(path), larger).tokenizer is larger


def test_source_of_a_string_has_a_name_and_no_note():
    source = TokenSource.from_text(ALPHABET)
    assert (source.name, source.note) == ("text", "")
    named = TokenSource.from_text(ALPHABET, "book", note="found")
    assert (named.name, named.note) == ("book", "found")


def test_note_of_the_text_is_kept(monkeypatch):
    from npgpt.text import load, source

    monkeypatch.setattr(source, "load_text", lambda name: load.Text("pydocs", "abc", "a note"))
    found = load_source(None)
    assert (found.name, found.note) == ("pydocs", "a note")


def test_tokenizer_that_does_not_know_the_text_is_refused():
    with pytest.raises(UserError, match="'c', character 3 of the text, is not"):
        TokenSource.from_text("abc", tokenizer=CharTokenizer("ab"))
    with pytest.raises(UserError, match="'c', character 3 of the text book, is not"):
        TokenSource.from_text("abc", "book", tokenizer=CharTokenizer("ab"))


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """The working directory, with a text and the same text as a token file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(ALPHABET)
    encode_files([Path("a.txt")], None, Path("tokens"))
    return tmp_path


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_ids_in_a_file_are_left_out_and_found_again(texts):
    source = load_source("tokens")
    assert source.path == Path("tokens")
    sent = source.without_file()
    assert sent.ids is None and (sent.name, sent.path) == (source.name, source.path)
    found = sent.with_file()
    assert found.is_mapped and found.fingerprint == source.fingerprint
    np.testing.assert_array_equal(found.ids, source.ids)
    assert source.with_file() is source


def test_ids_in_memory_stay(texts):
    source = load_source("a.txt")
    assert source.path is None and source.without_file() is source is source.with_file()


@pytest.mark.parametrize("change", [
    {"fingerprint": "0"}, {"tokenizer": CharTokenizer(ALPHABET + "Z")}])
def test_file_with_other_tokens_is_refused(change, texts):
    sent = dataclasses.replace(load_source("tokens").without_file(), **change)
    with pytest.raises(UserError) as error:
        sent.with_file()
    assert error.value.message == ("tokens has other tokens than the first rank's; copy the "
                                   "directory from there")


def test_what_is_there_of_a_text_is_its_fingerprint(texts):
    assert look_for("a.txt") == Found(digest(ALPHABET))


def test_what_is_there_of_a_token_file_is_what_it_says(texts):
    tokens = load_source("tokens")
    assert look_for("tokens") == Found(digest(ALPHABET), tokens.tokenizer.digest, Path("tokens"))


@pytest.mark.parametrize("name", [None, "shakespeare"])
def test_nothing_is_there_of_a_text_that_is_not_downloaded(name, texts):
    assert look_for(name) == Found()


def test_pydocs_is_always_there(texts):
    assert look_for("pydocs") == Found(load_source("pydocs").fingerprint)


@pytest.mark.parametrize("name", [None, "shakespeare"])
def test_shakespeare_is_there_once_it_is_downloaded(name, texts, monkeypatch):
    (texts / "data").mkdir()
    (texts / "data/tinyshakespeare.txt").write_text(ALPHABET)
    monkeypatch.setattr(load, "SHAKESPEARE_SHA256", digest(ALPHABET))
    assert look_for(name) == Found(digest(ALPHABET))


@pytest.mark.parametrize("change", [None, "another text", "another directory"])
def test_large_text_is_there_once_it_is_encoded(change, texts, monkeypatch):
    monkeypatch.setattr(source, "LARGE", 100)
    assert look_for("a.txt", "cache") == Found(path=Path("cache"))
    encoded = load_source("a.txt", cache="cache")
    if change == "another text":
        (texts / "a.txt").write_text(ALPHABET + "Z")
    folder = "other" if change == "another directory" else "cache"
    expected = Found(digest(ALPHABET), encoded.tokenizer.digest, encoded.path)
    assert look_for("a.txt", folder) == (Found(path=Path(folder)) if change else expected)


def test_text_that_is_missing_is_named(texts):
    with pytest.raises(UserError, match=r"there is no file 'b\.txt'"):
        look_for("b.txt")
