"""Text as far as it can be shown: whole characters, and no stop text."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.text.bpe import BPETokenizer
from npgpt.text.stream import Continuation, StopTexts

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


class Bytes:
    """A tokenizer whose tokens are given."""

    ends = (0,)

    def __init__(self, *tokens):
        self.token_bytes = [b"<end>", *tokens].__getitem__


def cut(text, stops):
    """The text before the first stop text in it."""
    return text[:min((text.find(stop) for stop in stops if stop in text), default=len(text))]


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_what_is_shown_is_the_whole_text_cut_at_the_first_stop_text(parts, stops):
    stream, shown = StopTexts(stops), ""
    for part in parts:
        shown += stream.push(part)
    rest = stream.finish()
    assert shown + rest == cut("".join(parts), stops)
    assert stream.found == any(stop in "".join(parts) for stop in stops)


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_only_what_may_begin_a_stop_text_is_held_back(parts, stops):
    stream, shown, read = StopTexts(stops), "", ""
    for part in parts:
        shown += stream.push(part)
        read += part
        if stream.found:
            assert not stream.push("abab") and not stream.finish()
            return
        held = read[len(shown):]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_stop_text_is_found_over_several_parts():
    stream = StopTexts(["\\n\\n", "KING"])
    shown = [stream.push(part) for part in ("to the K", "I", "SS K", "ING", "!")]
    assert shown == ["to the ", "", "KISS ", "", ""] and stream.found


def test_shorter_of_two_stop_texts_waits_for_a_longer_one_that_begins_before():
    for last, expected in (("d", ""), ("x", "a")):
        stream = StopTexts(["bc", "abcd"])
        assert stream.push("abc") == "" and not stream.found
        assert stream.push(last) == expected and stream.found
    stream = StopTexts(["bc", "abcd"])
    assert stream.push("abc") + stream.finish() == "a"


GRIN = "\U0001f600".encode()


def test_character_of_several_tokens_is_shown_whole_with_the_tag_of_the_last():
    text = Continuation(Bytes(GRIN[:1], GRIN[1:3], GRIN[3:] + b"!"))
    assert [text.push(token, tag) for token, tag in ((1, 0.1), (2, 0.2), (3, 0.3))] == [
        [], [], [("\U0001f600!", 0.3)]]
    assert text.tokens == 3 and not text.has_ended


def test_characters_that_were_held_back_keep_their_tags():
    text = Continuation(Bytes(b"xa", b"b", b"y"), ["abc"])
    assert text.push(1, 0.1) == [("x", 0.1)]
    assert text.push(2, 0.2) == []
    assert text.push(3, 0.3) == [("a", 0.1), ("b", 0.2), ("y", 0.3)]
    assert text.push(1, 0.4) == [("x", 0.4)]
    assert text.finish() == [("a", 0.4)]


@pytest.mark.parametrize("finish", [lambda text: text.push(0, 0.9), lambda text: text.finish()])
def test_end_shows_what_was_held_back_and_not_itself(finish):
    text = Continuation(Bytes(b"ab", GRIN[:2]), ["bc"])
    assert text.push(1, 0.1) == [("a", 0.1)]
    assert text.push(2, 0.2) == []
    assert finish(text) == [("b", 0.1), ("\ufffd", 0.2)]
    assert text.has_ended and text.tokens == 2
    assert text.push(1, 0.3) == text.finish() == [] and text.tokens == 2


def test_other_tokens_may_end_it():
    text = Continuation(Bytes(b"a", b"b", b"c"), ends=(2, 3))
    assert text.has_ended is False
    assert text.push(0) == [("<end>", None)] and text.has_ended is False
    assert text.push(3) == [] and text.has_ended is True and text.tokens == 1


def test_text_that_was_shown_is_kept():
    text = Continuation(Bytes(b"xa", b"b", b"y"), ["abc"])
    assert text.shown == ""
    for token, shown in ((1, "x"), (2, "x"), (3, "xaby"), (1, "xabyx")):
        text.push(token, 0.5)
        assert text.shown == shown
    text.finish()
    assert text.shown == "xabyxa"


def test_nothing_is_found_before_it_is_there():
    assert StopTexts(["a"]).found is False


def test_stop_text_ends_it():
    text = Continuation(Bytes(b"a.b"), ["."])
    assert text.push(1) == [("a", None)]
    assert text.has_ended and text.tokens == 1
    assert text.push(1) == text.finish() == []


def test_tokenizer_without_an_end_does_not_end():
    tokenizer = SimpleNamespace(ends=(), token_bytes=lambda token: b"a")
    text = Continuation(tokenizer)
    assert text.push(0) == [("a", None)] and not text.has_ended


@pytest.mark.parametrize(("stop", "expected"), [("\U0001f600", "a"), ("b", "a\U0001f600")])
def test_stop_text_of_several_tokens(stop, expected):
    tokenizer = BPETokenizer.train(["a"], 257)
    text = Continuation(tokenizer, [stop])
    pairs = [pair for token in tokenizer.encode("a\U0001f600bc") for pair in text.push(token)]
    assert "".join(characters for characters, _ in pairs) == expected
