"""Colours for probabilities."""

import io
import re

import pytest

from npgpt.cli.shades import SHADES, Shades, say_shades

ESCAPE = re.compile(r"\x1b\[[\d;]*m")


class Terminal(io.StringIO):
    """Output that is shown in a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Those of a terminal with colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_every_range_of_probabilities_has_its_own_colour():
    shades = Shades(Terminal())
    assert shades.missing == ""
    painted = [[shades.paint("x", p) for p in group] for group in (
        (1.0, 0.5), (0.49, 0.2), (0.19, 0.05), (0.04, 0.01), (0.009, 0.0))]
    assert all(first == second for first, second in painted)
    assert len({first for first, _ in painted}) == len(SHADES) == 5


def test_text_is_left_as_it_is_between_the_colours():
    painted = Shades(Terminal()).paint("a\n[b]é", 0.3)
    assert ESCAPE.sub("", painted) == "a\n[b]é" and painted.endswith("\x1b[0m")


def test_legend_has_the_colours_that_it_explains():
    shades = Shades(Terminal())
    legend = shades.legend()
    assert ESCAPE.sub("", legend) == "probability of at least 50%, 20%, 5%, 1%, or less"
    for least, text in ((0.5, "50%"), (0.2, "20%"), (0.05, "5%"), (0.01, "1%"), (0, "less")):
        assert shades.paint(text, least) in legend


PLAIN = "the output is not a terminal with colours; FORCE_COLOR=1 takes it for one"


@pytest.mark.parametrize(("stream", "variables", "reason"), [
    (io.StringIO(), {}, PLAIN), (Terminal(), {"TERM": "dumb"}, PLAIN),
    (Terminal(), {"NO_COLOR": "1"}, "NO_COLOR is set"),
    (io.StringIO(), {"FORCE_COLOR": "1"}, ""),
])
def test_colours_depend_on_the_terminal_and_on_the_usual_variables(
        monkeypatch, capsys, stream, variables, reason):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Shades(stream).missing == reason
    monkeypatch.setattr("sys.stdout", stream)
    shades = say_shades()
    assert (shades is None) == bool(reason)
    said = ESCAPE.sub("", capsys.readouterr().err)
    assert said == (f"note: no probabilities are shown, because {reason}\n" if reason else
                    "colours: probability of at least 50%, 20%, 5%, 1%, or less\n")
