import hashlib

import numpy as np
import pytest

from npgpt import UserError
from npgpt.text.characters import CharTokenizer
from npgpt.text.source import TokenSource, load_source

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
