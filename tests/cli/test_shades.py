"""The colours of probabilities."""

import io
import re

import pytest

from npgpt.cli.shades import Shades

ESCAPE = re.compile(r"\x1b\[[\d;]*m")
GROUPS = ((0.0, 0.0099), (0.01, 0.099), (0.1, 0.29), (0.3, 0.69), (0.7, 1.0))


class Terminal(io.StringIO):
    """Output that is shown in a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Those of a terminal with 256 colours, whatever the tests run in."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize("kind", ["xterm", "xterm-256color"])       # 16 colours, 256
def test_every_range_of_probabilities_has_its_own_colour(monkeypatch, kind):
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr("sys.stdout", Terminal())
    painted = [[Shades().paint("x", p) for p in group] for group in GROUPS]
    assert all(first == last for first, last in painted)
    assert len({first for first, _ in painted}) == 5


@pytest.mark.parametrize("text", ["a\n[b]é", "\t", "\r\n", "\x07\x0c", " ", "\n"])
def test_characters_stay_as_they_are_between_the_colours(monkeypatch, text):
    monkeypatch.setattr("sys.stdout", Terminal())
    painted = Shades().paint(text, 0.2)
    assert ESCAPE.sub("", painted) == text and painted.endswith("\x1b[0m")


@pytest.mark.parametrize(("output", "variables", "shown"), [
    (Terminal(), {}, True), (io.StringIO(), {}, False), (Terminal(), {"TERM": "dumb"}, False),
    (Terminal(), {"NO_COLOR": "1"}, False), (io.StringIO(), {"FORCE_COLOR": "1"}, True),
    (None, {}, False),
])
def test_colours_depend_on_the_terminal_and_on_the_usual_variables(
        monkeypatch, output, variables, shown):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", output)
    assert Shades().are_shown == shown
    assert (Shades().paint("a", 0.5) != "a") == shown


def test_legend_names_every_range():
    assert str(Shades().legend()) == (
        "probability:  0 to 1 %  1 to 10 %  10 to 30 %  30 to 70 %  70 to 100 %")
