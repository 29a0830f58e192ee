"""Where prompts come from. tests/commands/test_interactive.py has a terminal."""

import io
import sys

import pytest

from npgpt import UserError
from npgpt.text import prompt as prompts
from npgpt.text.prompt import for_each_line, read_prompt


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
    (b"", "^standard input is empty; without it the text starts from an end-of-text token or "),
    (b"\n", "^standard input is empty; "),
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


def test_closed_standard_input_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for read in (lambda: read_prompt("-", None), lambda: for_each_line(print)):
        with pytest.raises(UserError, match=r"^standard input is closed, so no prompt can be read"):
            read()


def test_every_line_is_a_prompt_and_an_empty_one_is_none(stdin):
    stdin("a b\n\n \r\n\r\né".encode())
    lines = []
    for_each_line(lines.append)
    assert lines == ["a b", None, " ", None, "é"]


def test_lines_with_errors_are_named_and_the_next_ones_follow(stdin, capsys):
    def act(line):
        lines.append(line)
        if line == "a":
            raise UserError("use another `prompt`")

    stdin(b"a\n\xef\xbb\xbfb\nb\xe9\nc\n")
    lines = []
    for_each_line(act)
    assert lines == ["a", "b", "c"]
    assert capsys.readouterr().err == (
        "use another --prompt\nline 3 of standard input is not UTF-8 (byte 1 is 0xe9); convert it "
        "with: iconv -f latin1 -t utf-8\n")


def test_ctrl_c_ends_the_loop_if_there_is_no_terminal(stdin):
    def act(line):
        lines.append(line)
        raise KeyboardInterrupt

    stdin(b"a\nb\n")
    lines = []
    with pytest.raises(KeyboardInterrupt):
        for_each_line(act)
    assert lines == ["a"]
