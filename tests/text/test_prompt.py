"""Where prompts come from. tests/commands/test_interactive.py has a terminal."""

import builtins
import io
import sys
from types import SimpleNamespace

import pytest

from npgpt import UserError
from npgpt.text import files
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


def test_empty_prompt_is_named_by_where_it_comes_from(tmp_path):
    (tmp_path / "prompt").write_text("\n")
    for prompt, path, name in (("", None, "`prompt`"), (None, "", "`prompt_file`"),
                               (None, str(tmp_path / "prompt"), str(tmp_path / "prompt"))):
        with pytest.raises(UserError) as error:
            read_prompt(prompt, path)
        assert error.value.message == (f"{name} is empty; without it the text starts from an "
                                       "end-of-text token or a line break")


def test_file_with_a_prompt_is_read_up_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "LARGEST", 3)
    (tmp_path / "prompt").write_text("abcd")
    with pytest.raises(UserError, match="has 4 bytes; at most 3 are expected"):
        read_prompt(None, str(tmp_path / "prompt"))


def test_prompt_in_several_parts_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BYTES", 2)
    (tmp_path / "prompt").write_text("abcdef")
    assert read_prompt(None, str(tmp_path / "prompt")) == "abcdef"


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
    asked = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(
        read=lambda n: asked.append(n) or b"a")))
    assert read_prompt("-", None) == "a" and asked == [11]


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


@pytest.fixture
def terminal(monkeypatch):
    """-> function: what input() gives or raises, one after the other -> a list of its markers."""
    def give(*answers):
        markers, left = [], iter(answers)

        def answer(marker):
            markers.append(marker)
            found = next(left, EOFError())
            if isinstance(found, BaseException):
                raise found
            return found

        monkeypatch.setattr(sys, "stdin", SimpleNamespace(
            buffer=SimpleNamespace(isatty=lambda: True)))
        monkeypatch.setattr(builtins, "input", answer)
        return markers
    return give


@pytest.mark.parametrize(("is_terminal", "marker"), [(True, "> "), (False, "")])
def test_marker_is_shown_if_the_output_is_a_terminal_too(is_terminal, marker, terminal, capsys,
                                                         monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    markers, lines = terminal("a", "", "b"), []
    for_each_line(lines.append)
    assert lines == ["a", None, "b"] and markers == [marker] * 4
    assert capsys.readouterr().err == "\n"              # the end of the line with Ctrl-D


def test_terminal_needs_no_readline(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "readline", None)
    terminal("a")
    lines = []
    for_each_line(lines.append)
    assert lines == ["a"]


def test_ctrl_c_ends_a_text_in_a_terminal_and_the_program_at_the_marker(terminal, capsys):
    terminal("a", "b", KeyboardInterrupt())
    lines = []

    def act(line):
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for_each_line(act)
    assert lines == ["a", "b"] and capsys.readouterr().err == "\n"


def test_line_that_cannot_be_decoded_is_named_and_the_next_one_follows(terminal, stdin, capsys):
    lines = []
    terminal("a", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "c")
    for_each_line(lines.append)
    stdin(b"d\n\xff\nf\n")
    for_each_line(lines.append)
    assert lines == ["a", "c", "d", "f"]
    assert capsys.readouterr().err == (
        "line 2 of standard input is not utf-8\n\n"
        "line 2 of standard input is not UTF-8 (byte 0 is 0xff); convert it with: iconv -f latin1 "
        "-t utf-8\n")
