"""sample.py --interactive as a process: with lines from a pipe, and in a terminal."""

import os
import pty
import select
import subprocess
from contextlib import suppress

import pytest

from tests.commands.tiny import ENVIRONMENT, command, process

OPTIONS = ["--model=run", "--interactive", "--seed=1"]
PATIENCE = 20         # seconds for which a program that fails may show nothing


@pytest.fixture(autouse=True)
def trained(train):
    train("--max-iters=5", "--out-dir=run")


class Terminal:
    """sample.py in a pseudo-terminal, without the escape codes of a real one; a context manager
    that ends it."""

    def __init__(self, *words, **streams):
        self._main, other = pty.openpty()
        self._process = subprocess.Popen(
            command(*OPTIONS, *words, script="sample.py"), stdin=other, start_new_session=True,
            env=ENVIRONMENT | {"TERM": "dumb"}, preexec_fn=_take_terminal,
            **{"stdout": other, "stderr": other} | streams)
        os.close(other)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._main)

    def until(self, expected):
        """-> what is shown up to some text."""
        shown = ""
        while expected not in shown:
            part = self._read(1)
            assert part and len(shown) < 10**5, f"{expected!r} is not in {shown!r}"
            shown += part
        return shown.replace("\r\n", "\n")

    def type(self, keys):
        os.write(self._main, keys.encode())

    def end(self, keys):
        """Type keys until the program has ended, because Python misses Ctrl-C while it begins to
        wait for a line -> the exit status, and what is shown."""
        shown = ""
        for _ in range(20):
            self.type(keys)
            while part := self._read(1000, PATIENCE / 40):
                shown += part
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(PATIENCE / 40), shown.replace("\r\n", "\n")
        raise AssertionError(f"it does not end; it shows {shown!r}")

    def _read(self, most, seconds=PATIENCE):
        """-> characters; none: the program has ended, or shows nothing for so long."""
        if not select.select([self._main], [], [], seconds)[0]:
            return ""
        try:
            return os.read(self._main, most).decode(errors="replace")
        except OSError:                                       # the program has ended
            return ""


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
    with Terminal("--max-new-tokens=9") as terminal:
        assert terminal.until("> ").endswith(" parameters\n> ")
        terminal.type("the\n")
        assert "\nthe" in terminal.until("> ")
        terminal.type("FOX\n")
        assert terminal.until("> ").startswith("FOX\n'F', character 1 of the prompt, is not among")
        terminal.type("fox\n")
        assert terminal.until("> ").startswith("fox\nfox")
        status, shown = terminal.end("\x04")
    assert status == 0 and shown.endswith("\n")


def test_ctrl_c_ends_a_text_and_at_the_marker_the_program():
    with Terminal("--max-new-tokens=1000000000") as terminal:
        terminal.until("> ")
        for _ in range(2):
            terminal.type("the qu\n")
            terminal.until("the qu\r\nthe qu")                 # typed, and printed
            terminal.type("\x03")
            shown = terminal.until("> ")
            assert shown.endswith("\n> ") and "Traceback" not in shown and "tokens/s" not in shown
        status, shown = terminal.end("\x03")
    assert status == 130 and shown.endswith("\n") and "Traceback" not in shown


def test_marker_is_not_written_into_a_file(home):
    with (open("text.txt", "wb") as file,
          Terminal("--max-new-tokens=9", stdout=file) as terminal):
        terminal.until(" parameters")
        terminal.type("the\n")
        terminal.until(" tokens/s")
        assert terminal.end("\x04")[0] == 0
    text = (home / "text.txt").read_text()
    assert text.startswith("the") and len(text) == len("the") + 9 + 1
