"""Where prompts come from. tests/commands/test_interactive.py has a terminal."""

import io
import sys

import pytest

from npgpt import UserError
from npgpt.text import prompt as prompts
from npgpt.text.bpe import BPETokenizer
from npgpt.text.characters import CharTokenizer
from npgpt.text.prompt import encode_prompt, for_each_line, read_prompt


@pytest.fixture
def stdin(monkeypatch):
    """-> function: sets the bytes of standard input."""
    def give(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))
    return give


@pytest.mark.parametrize(("content", "text"), [
    ("né\n".encode(), "né"), (b"a\n\n", "a\n"), (b"a\r\n", "a"), (b"a\n\r\n", "a\n"),
    (b"a\r", "a\r"), (b" a\r\nb ", " a\r\nb "), ("\ufeffa".encode(), "a"), (b"\n\n", "\n"),
])
def test_one_line_break_at_the_end_is_left_out_and_nothing_else(stdin, tmp_path, content, text):
    stdin(content)
    assert read_prompt("-", None) == text
    (tmp_path / "prompt").write_bytes(content)
    assert read_prompt(None, str(tmp_path / "prompt")) == text


def test_prompt_of_the_command_line_stays_as_it_is():
    assert read_prompt("a\n", None) == "a\n"
    assert read_prompt(None, None) is None


@pytest.mark.parametrize(("content", "message"), [
    (b"", "^the prompt from standard input is empty; leave it out to start a new text$"),
    (b"\n", "^the prompt from standard input is empty"),
    (b"ab\xe9", r"^standard input is not UTF-8 \(byte 2 is 0xe9\); convert it with: iconv"),
])
def test_unusable_standard_input_is_refused(stdin, content, message):
    stdin(content)
    with pytest.raises(UserError, match=message):
        read_prompt("-", None)


def test_endless_standard_input_is_refused(stdin, monkeypatch):
    monkeypatch.setattr(prompts, "LARGEST", 10)
    stdin(b"a" * 10)
    assert read_prompt("-", None) == "a" * 10
    stdin(b"a" * 11)
    with pytest.raises(UserError, match=r"^standard input has more than 10 bytes, too many"):
        read_prompt("-", None)


@pytest.mark.parametrize("closed", [None, io.StringIO()])
def test_closed_standard_input_is_refused(monkeypatch, closed):
    if closed:
        closed.close()
    monkeypatch.setattr(sys, "stdin", closed)
    for read in (lambda: read_prompt("-", None), lambda: for_each_line(print)):
        with pytest.raises(UserError, match=r"^standard input is closed$"):
            read()


def test_errors_of_tokenizers_speak_of_the_prompt():
    with pytest.raises(UserError, match=r"^'é', character 2 of the prompt, is not among the 2 "):
        encode_prompt(CharTokenizer("ab"), "aé")
    bpe = BPETokenizer.train(["ab"], 300)
    with pytest.raises(UserError, match=r"^the prompt contains '\\ud800', half of a surrogate"):
        encode_prompt(bpe, "a\ud800")
    assert encode_prompt(bpe, "ab").tolist() == bpe.encode("ab").tolist()


def test_text_without_a_prompt_starts_from_the_start_token():
    assert encode_prompt(CharTokenizer("a\nb"), None).tolist() == [0]
    bpe = BPETokenizer.train(["ab"], 300)
    assert encode_prompt(bpe, None).tolist() == [bpe.end]


def test_lines_that_are_not_empty_are_prompts(stdin):
    stdin("a b\n\n \r\n\r\né".encode())
    lines = []
    for_each_line(lines.append)
    assert lines == ["a b", " ", "é"]


def test_line_that_is_not_utf_8_ends_the_loop_with_its_number(stdin):
    stdin(b"a\n\nb\xe9\nc\n")
    lines = []
    with pytest.raises(UserError, match=r"^line 3 of standard input is not UTF-8 \(byte 1 is 0xe9"):
        for_each_line(lines.append)
    assert lines == ["a"]


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt()])
def test_error_or_ctrl_c_ends_the_loop_if_there_is_no_terminal(stdin, error):
    def act(line):
        lines.append(line)
        raise error

    stdin(b"a\nb\n")
    lines = []
    with pytest.raises(type(error)):
        for_each_line(act)
    assert lines == ["a"]
