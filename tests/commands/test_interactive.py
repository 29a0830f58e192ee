"""sample.py --interactive as a process: with lines from a pipe, and in a terminal."""

import os
import pty
import subprocess

import pytest

from tests.commands.tiny import ENVIRONMENT, command, process

OPTIONS = ["--model=run", "--interactive", "--seed=1"]


@pytest.fixture(autouse=True)
def trained(train):
    train("--max-iters=5", "--out-dir=run")


class Terminal:
    """sample.py in a pseudo-terminal, without the escape codes of a real one."""

    def __init__(self, *words, **streams):
        self._main, other = pty.openpty()
        self._process = subprocess.Popen(
            command(*OPTIONS, *words, script="sample.py"), stdin=other, start_new_session=True,
            env=ENVIRONMENT | {"TERM": "dumb"}, preexec_fn=_take_terminal,
            **{"stdout": other, "stderr": other} | streams)
        os.close(other)

    def until(self, expected):
        """-> what is shown up to some text."""
        shown = ""
        while expected not in shown:
            try:
                part = os.read(self._main, 1).decode(errors="replace")
            except OSError:                                   # the process has ended
                part = ""
            assert part, f"{expected!r} is not in {shown!r}"
            shown += part
        return shown.replace("\r\n", "\n")

    def type(self, keys):
        os.write(self._main, keys.encode())

    def status(self):
        """Wait for the end -> exit status."""
        try:
            while os.read(self._main, 1000):
                pass
        except OSError:
            pass
        os.close(self._main)
        return self._process.wait()


def _take_terminal():
    """Make standard input the terminal that Ctrl-C comes from."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def piped(lines):
    """Run sample.py with these lines -> its CompletedProcess."""
    return subprocess.run(command(*OPTIONS, "--max-new-tokens=9", script="sample.py"), input=lines,
                          capture_output=True, text=True, env=ENVIRONMENT)


def test_every_line_of_a_pipe_is_a_prompt():
    def text(*words):
        return process("--model=run", "--seed=1", *words, "--max-new-tokens=9",
                       script="sample.py").stdout

    result = piped("the\nFOX\n\nfox")
    assert (result.returncode, result.stdout) == (
        0, text("--prompt=the") + text() + text("--prompt=fox"))
    lines = result.stderr.splitlines()
    assert len(lines) == 5 and lines[2].startswith("'F', character 1 of the prompt, is not among")


def test_terminal_shows_a_marker_and_goes_on_after_errors_until_ctrl_d():
    terminal = Terminal("--max-new-tokens=9")
    assert terminal.until("> ").endswith(" parameters\n> ")
    terminal.type("the\n")
    assert "\nthe" in terminal.until("> ")
    terminal.type("FOX\n")
    assert terminal.until("> ").startswith("FOX\n'F', character 1 of the prompt, is not among")
    terminal.type("fox\n")
    assert terminal.until("> ").startswith("fox\nfox")
    terminal.type("\x04")
    assert terminal.status() == 0


def test_ctrl_c_ends_a_text_and_at_the_marker_the_program():
    terminal = Terminal("--max-new-tokens=1000000000")
    terminal.until("> ")
    for _ in range(2):
        terminal.type("the qu\n")
        terminal.until("the qu\r\nthe qu")                       # typed, and printed
        terminal.type("\x03")
        shown = terminal.until("> ")
        assert shown.endswith("\n> ") and "Traceback" not in shown and "tokens/s" not in shown
    terminal.type("\x03")
    assert terminal.status() == 130


def test_marker_is_not_written_into_a_file(home):
    with open("text.txt", "wb") as file:
        terminal = Terminal("--max-new-tokens=9", stdout=file)
        terminal.until(" parameters")
        terminal.type("the\n")
        terminal.until(" tokens/s")
        terminal.type("\x04")
        assert terminal.status() == 0
    text = (home / "text.txt").read_text()
    assert text.startswith("the") and len(text) == len("the") + 9 + 1
