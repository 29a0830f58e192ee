"""Generated text as it is shown. tests/text/test_bpe.py tests characters of several tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.text.bpe import BPETokenizer
from npgpt.text.characters import CharTokenizer
from npgpt.text.stream import Continuation

AB = CharTokenizer("ab")
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(st.text("ab", max_size=30), stops)
def test_text_ends_before_the_first_stop_text_that_is_complete(text, stops):
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    complete = text[:min(ends)] if ends else text           # what is generated until then
    expected = complete[:min((complete.find(s) for s in stops if s in complete), default=None)]
    continuation, shown = Continuation(AB, stops), ""
    for i in AB.encode(text):
        shown += continuation.push(i)
        assert expected.startswith(shown)
        assert continuation.has_ended == (len(expected) < len(complete) or bool(ends)) or (
            not continuation.has_ended)
    assert shown + continuation.finish() == expected
    assert continuation.has_ended and continuation.push(0) == continuation.finish() == ""


def test_only_what_may_begin_a_stop_text_is_held_back():
    continuation = Continuation(AB, ["aab"])
    assert [continuation.push(i) for i in AB.encode("baabb")] == ["b", "", "", "", ""]
    continuation = Continuation(AB, ["aab"])
    assert [continuation.push(i) for i in AB.encode("aaaab")] == ["", "", "a", "a", ""]
    assert continuation.has_ended and continuation.tokens == 5


def test_end_of_text_ends_it_and_is_neither_shown_nor_counted():
    tokenizer = BPETokenizer.train(["ab"], 257)
    continuation = Continuation(tokenizer, ["bc"])
    shown = [continuation.push(i) for i in [*tokenizer.encode("ab"), tokenizer.end, 3]]
    assert shown == ["a", "", "b", ""]
    assert continuation.has_ended and continuation.tokens == 2


@pytest.mark.parametrize(("stop", "expected"), [("\U0001f600", "a"), ("b", "a\U0001f600")])
def test_stop_text_of_several_tokens(stop, expected):
    tokenizer = BPETokenizer.train(["a"], 257)
    continuation = Continuation(tokenizer, [stop])
    assert "".join(map(continuation.push, tokenizer.encode("a\U0001f600bc"))) == expected
