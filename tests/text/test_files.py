import errno
import gzip
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import UserError, reading
from npgpt.text import files
from npgpt.text.files import documents, find, read_parts, signature


@pytest.fixture
def tree(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.TXT.gz", "sub/d.py", "sub/more/g.py", ".hidden.txt",
                 ".git/e.txt", "f.bin"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


def test_directory_stands_for_its_texts_at_any_depth_in_order(tree):
    assert find(tree) == [tree / "a.md", tree / "b.txt", tree / "sub/c.TXT.gz"]


def test_pattern_stands_for_the_files_that_match(tree):
    assert find(f"{tree}/**/*.py") == [tree / "sub/d.py", tree / "sub/more/g.py"]
    assert find(f"{tree}/[ab].*") == [tree / "a.md", tree / "b.txt"]
    assert find(f"{tree}/*") == [tree / "a.md", tree / "b.txt", tree / "f.bin"]


def test_file_stands_for_itself_also_with_a_name_like_a_pattern(tree):
    (tree / "[x].txt").write_text("x")
    for path in (tree / "f.bin", tree / "[x].txt", tree / "nowhere"):
        assert find(path) == [path]


def test_directory_or_pattern_without_a_text_is_refused(tree):
    (tree / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find(tree / "empty")
    assert str(error.value) == (
        f"{tree}/empty contains no text files (.txt, .text, .md, .rst, or these with .gz); for "
        f"other files use a pattern such as '{tree}/empty/**/*.py'")
    with pytest.raises(UserError, match=r"^the path of a text is empty$"):
        find("")
    with pytest.raises(UserError, match=r"there is no file that matches '.*/\*\.csv'"):
        find(f"{tree}/*.csv")


@given(st.text(), st.integers(1, 7), st.booleans(), st.booleans())
def test_parts_are_the_text_wherever_it_is_cut(tmp_path_factory, text, size, mark, compress):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    content = (b"\xef\xbb\xbf" if mark else b"") + text.encode()
    path.write_bytes(gzip.compress(content) if compress else content)
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BYTES", size)
        parts = list(read_parts(path, after=done.append))
    assert "".join(parts) == (text if mark else text.removeprefix("\ufeff"))
    assert all(parts) and done == sorted(done)
    assert all(number <= path.stat().st_size for number in done)


def test_mark_in_the_middle_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BYTES", 3)
    (tmp_path / "a.txt").write_bytes("abc\ufeffdef".encode())
    assert list(read_parts(tmp_path / "a.txt")) == ["abc", "\ufeff", "def"]


@pytest.mark.parametrize("size", [2, 3, 100])
@pytest.mark.parametrize(("content", "message"), [
    (b"abc\xff", r"is not UTF-8 \(byte 3 is 0xff\); convert it with: iconv -f latin1 -t utf-8$"),
    (b"\xef\xbb\xbfab\xff", r"byte 5 is 0xff"), (b"caf\xc3", r"byte 3 is 0xc3"),
    ("aé\U0001f600".encode()[:-1], r"byte 3 is 0xf0"),
    (b"\xff\xfea\x00", r"byte 0 is 0xff.* -f utf-16 "),
])
def test_byte_that_is_not_utf_8_has_its_position_in_the_file(content, message, size, tmp_path,
                                                             monkeypatch):
    monkeypatch.setattr(files, "BYTES", size)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_parts(tmp_path / "a.txt"))


def test_damaged_and_cut_gzip_are_refused(tmp_path):
    content = gzip.compress(b"hello " * 1000)
    for damaged in (content[:-9], content[:30], content[:20] + b"\0\0" + content[22:],
                    b"\x1f\x8bnothing"):
        (tmp_path / "a.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.gz is damaged, or no gzip file: "):
            list(read_parts(tmp_path / "a.gz"))


def test_documents_report_the_bytes_of_all_files(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name * 10)
    done = []
    texts = ["".join(p) for p in documents([tmp_path / name for name in "abc"], done.append)]
    assert texts == ["a" * 10, "b" * 10, "c" * 10] and done == [10, 20, 30]


def test_file_that_is_too_large_or_unreadable_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abcd")
    assert list(read_parts(tmp_path / "a.txt", 4)) == ["abcd"]
    with pytest.raises(UserError, match=r"a\.txt has 4 bytes; at most 3 are expected"):
        list(read_parts(tmp_path / "a.txt", 3))
    monkeypatch.setattr(reading, "free_memory", lambda: 0)
    monkeypatch.setattr(reading, "LARGEST", 1)
    assert list(read_parts(tmp_path / "a.txt")) == ["abcd"]

    class Broken:
        def read(self, size):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(UserError, match=r"a\.txt cannot be read: Input/output error$"):
        files._read("a.txt", Broken())


def test_signature_changes_with_size_and_time(tmp_path):
    path = tmp_path / "a"
    path.write_text("a")
    first = signature(path)
    assert first[:2] == [str(path), 1]
    os.utime(path, ns=(0, first[2] + 1))
    assert signature(path)[2] != first[2]
    with pytest.raises(UserError, match="is missing"):
        signature(tmp_path / "b")
