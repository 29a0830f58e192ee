import os
import sys
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

from npgpt import UserError, reading
from npgpt.text import load
from npgpt.text.load import load_text, sha256


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty working directory, and no network."""
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_default_without_a_network_is_the_python_manual(offline):
    text = load_text()
    assert text.name == "pydocs"
    assert len(text.text) > 300_000
    assert text.note == ("data/tinyshakespeare.txt is missing and cannot be downloaded (no network)"
                         "; using pydocs, Python's own manual, instead")


def test_shakespeare_by_name_fails_without_a_network(offline):
    with pytest.raises(UserError) as error:
        load_text("shakespeare")
    assert error.value.message == (
        "data/tinyshakespeare.txt is missing and cannot be downloaded (no network); copy it there "
        "from another machine")


class Server:
    """In place of urlopen: answers every request with a content, and records what is asked."""

    def __init__(self, content):
        self.content = content

    def __call__(self, url, timeout):
        self.url, self.timeout = url, timeout
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self, limit):
        self.limit = limit
        return self.content[:limit]


@pytest.fixture
def server(offline, monkeypatch):
    server = Server(b"To be, or not to be, that is the question: whether 'tis nobler in the mind")
    monkeypatch.setattr(urllib.request, "urlopen", server)
    return server


def test_download_is_verified_and_stored(server, monkeypatch):
    with pytest.raises(UserError, match="is not Tiny Shakespeare; "):
        load_text("shakespeare")
    assert not load.SHAKESPEARE.exists()
    text = server.content.decode()
    monkeypatch.setattr(load, "SHAKESPEARE_SHA256", sha256(text))
    for name in (None, "shakespeare"):             # the second time, data/ exists
        assert load_text(name) == ("shakespeare", text, "")
        assert [path.name for path in load.SHAKESPEARE.parent.iterdir()] == ["tinyshakespeare.txt"]
        assert load.SHAKESPEARE.read_bytes() == server.content
        load.SHAKESPEARE.unlink()


def test_download_ends_after_ten_silent_seconds_or_ten_million_bytes(server):
    with pytest.raises(UserError, match="is not Tiny Shakespeare; "):
        load_text("shakespeare")
    assert (server.url, server.timeout, server.limit) == (load.SHAKESPEARE_URL, 10, 10**7)


def test_modified_shakespeare_is_refused(offline):
    load.SHAKESPEARE.parent.mkdir()
    load.SHAKESPEARE.write_text("something else")
    for name in (None, "shakespeare"):
        with pytest.raises(UserError) as error:
            load_text(name)
        assert error.value.message == ("data/tinyshakespeare.txt is not Tiny Shakespeare; remove "
                                       "it, or pass its path as `data`")


def test_python_manual_is_its_topics_in_order(monkeypatch):
    topics = {"while": "The while statement\n\n", "if": "\nThe if statement"}
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", SimpleNamespace(topics=topics))
    assert load_text("pydocs") == ("pydocs", "The if statement\n\nThe while statement", "")


def test_text_is_read_unchanged_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\x00\n")
    text = load_text(str(path))
    assert text.text == "one\r\ntwo\x00\n"
    assert (text.name, text.note) == (str(path), "")


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"), (b"\xef\xbb\xbf", "is empty"),
    (b"abc\xff", r"is not UTF-8 \(byte 3 is 0xff\); convert it with: iconv -f latin1 -t utf-8$"),
    (b"\xef\xbb\xbfab\xff", r"is not UTF-8 \(byte 5 is 0xff\)"),
    (b"caf\xc3", r"is not UTF-8 \(byte 3 is 0xc3\)"),
    (b"\xff\xfea\x00", r"is not UTF-8 \(byte 0 is 0xff\); .* iconv -f utf-16 -t utf-8$"),
    (b"\xfe\xff\x00a", r"is not UTF-8 \(byte 0 is 0xfe\); .* iconv -f utf-16 -t utf-8$"),
])
def test_file_that_is_not_utf_8_is_refused(content, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_text(tmp_path / "a.txt")


def test_directory_pipe_and_missing_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("", "is a directory"), ("pipe", "is not a regular file"),
                          ("nothing", "there is no file"), ("a\x00b", "there is no file"),
                          ("pipe/a", "there is no file")):
        with pytest.raises(UserError, match=message):
            load_text(f"{tmp_path}/{name}")


def test_text_that_is_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "free_memory", lambda: 3)
    monkeypatch.setattr(reading, "LARGEST", 2)
    for content, fits in (("abc", True), ("abcd", False)):
        (tmp_path / "a.txt").write_text(content)
        if fits:
            assert load_text(tmp_path / "a.txt").text == content
        else:
            with pytest.raises(UserError, match="has 4 bytes, and 3 bytes of memory are free"):
                load_text(tmp_path / "a.txt")


@pytest.mark.parametrize("address", ["http://a.b//c", "https://a.b/c.txt", "S3://bucket/c",
                                     "git+ssh://a.b/c"])
def test_address_is_refused_and_quoted(address):
    with pytest.raises(UserError) as error:
        load_text(address)
    assert error.value.message == (
        f"`data` takes a file, got the address {address!r}; download it first")


def test_empty_name_is_refused():
    with pytest.raises(UserError) as error:
        load_text("")
    assert error.value.message == (
        "`data` is empty; it takes shakespeare, pydocs, or the path of a text, a directory of "
        "texts or a token file")


@pytest.mark.parametrize(("name", "hint"), [
    ("shakespear", "; did you mean 'shakespeare'? "), ("pydoc", "; did you mean 'pydocs'? "),
    ("bok.txt", "; did you mean 'book.txt'? "), ("texts/poem", "; did you mean 'texts/poems'? "),
    ("texts/shakespear", "; "), ("no/shakespear", "; "), ("zzz", "; "), ("text", "; "),
])
def test_missing_file_is_refused_with_a_suggestion(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for path in ("book.txt", "texts/poems"):
        (tmp_path / path).write_text("text")
    with pytest.raises(UserError) as error:
        load_text(name)
    assert error.value.message == (f"there is no file {name!r}{hint}`data` takes shakespeare, "
                                   "pydocs, or the path of a text, a directory of texts or a "
                                   "token file")
