import os
import urllib.error
import urllib.request

import numpy as np
import pytest

from npgpt import UserError
from npgpt.backend import get_device
from npgpt.text import data
from npgpt.text.data import Dataset, load_text

CPU = get_device("cpu")
ALPHABET = "".join(chr(ord("a") + i % 26) for i in range(1000))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty directory to stand in, and no network."""
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_without_a_network_the_default_is_pythons_manual(offline):
    text = load_text()
    assert text.name == "pydocs"
    assert len(text.text) > 300_000
    assert "cannot be downloaded (no network)" in text.note and "manual" in text.note


def test_without_a_network_shakespeare_asked_for_by_name_fails(offline):
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_text("shakespeare")


class Answer:
    def __init__(self, content):
        self.content = content

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self, limit):
        return self.content


def test_download_is_checked_and_kept(offline, monkeypatch):
    content = b"To be, or not to be"
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **o: Answer(content))
    with pytest.raises(UserError, match="is not Tiny Shakespeare"):
        load_text("shakespeare")
    assert not data.SHAKESPEARE.exists()
    digest = data.Text("", content.decode()).sha256
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", digest)
    assert load_text().text == content.decode()
    assert data.SHAKESPEARE.read_bytes() == content
    assert [path.name for path in data.SHAKESPEARE.parent.iterdir()] == ["tinyshakespeare.txt"]


def test_shakespeare_that_was_changed_is_not_taken_for_it(offline):
    data.SHAKESPEARE.parent.mkdir()
    data.SHAKESPEARE.write_text("something else")
    for name in (None, "shakespeare"):
        with pytest.raises(UserError, match="is not Tiny Shakespeare"):
            load_text(name)


def test_text_is_read_as_it_is_but_for_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\x00\n")
    text = load_text(str(path))
    assert text.text == "one\r\ntwo\x00\n"
    assert (text.name, text.note) == (str(path), "")


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"), (b"\xef\xbb\xbf", "is empty"),
    (b"abc\xff", "not UTF-8: byte 3 is 0xff"),
    (b"\xef\xbb\xbfab\xff", "not UTF-8: byte 5 is 0xff"),
    (b"caf\xc3", "not UTF-8: byte 3 is 0xc3"),
])
def test_file_that_is_no_text_is_refused(content, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_text(tmp_path / "a.txt")


def test_directory_pipe_and_nothing_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("", "is a directory"), ("pipe", "no regular file"),
                          ("nothing", "there is no text"), ("a\x00b", "cannot be read")):
        with pytest.raises(UserError, match=message):
            load_text(f"{tmp_path}/{name}")


def test_splits_are_the_first_nine_tenths_and_the_rest():
    d = Dataset(ALPHABET, 8, CPU)
    assert (len(d.train), len(d.val)) == (900, 100)
    assert d.tokenizer.decode(np.concatenate([d.train, d.val])) == ALPHABET


def test_targets_are_the_tokens_one_place_later():
    d = Dataset(ALPHABET, 8, CPU)
    idx, targets = d.batch(seed=1, step=0, rows=50)
    assert idx.shape == targets.shape == (50, 8)
    np.testing.assert_array_equal(idx[:, 1:], targets[:, :-1])
    np.testing.assert_array_equal((idx + 1) % 26, targets)


def test_batch_is_a_function_of_seed_and_step():
    d = Dataset(ALPHABET, 8, CPU)
    first = d.batch(1, 5, 16)[0]
    np.testing.assert_array_equal(first, d.batch(1, 5, 16)[0])
    assert not np.array_equal(first, d.batch(1, 6, 16)[0])
    assert not np.array_equal(first, d.batch(2, 5, 16)[0])
    np.testing.assert_array_equal(first[4:9], d.batch(1, 5, 16, 4, 9)[0])


def test_batches_reach_the_first_and_the_last_token_and_stay_inside():
    d = Dataset("".join(map(chr, range(100, 200))), 8, CPU)       # every character another
    idx, targets = d.batch(0, 0, 20_000)
    assert idx.min() == 0 and targets.max() == 89


def test_windows_follow_one_another_through_the_split():
    d = Dataset(ALPHABET, 8, CPU)
    idx, targets = d.windows(d.val, d.offsets(d.val))
    np.testing.assert_array_equal(idx.ravel(), d.val[:96])
    np.testing.assert_array_equal(targets.ravel(), d.val[1:97])


def test_fixed_windows_are_spread_over_the_split():
    d = Dataset(ALPHABET, 8, CPU)
    some = d.offsets(d.train, 10)
    assert len(set(some)) == 10 and some[0] == 0 and some[-1] == d.offsets(d.train)[-1]
    assert set(some) <= set(d.offsets(d.train))
    assert len(d.offsets(d.train, 10**6)) == len(d.offsets(d.train))


@pytest.mark.parametrize(("length", "split"), [
    (8, "training"), (80, "validation"), (1, "training"),
])
def test_text_too_short_for_a_window_is_refused(length, split):
    with pytest.raises(UserError, match=f"its {split} split has"):
        Dataset("a" * length, 8, CPU)


def test_one_window_is_enough():
    d = Dataset("a" * 90, 8, CPU)
    assert d.offsets(d.val).tolist() == [0]
