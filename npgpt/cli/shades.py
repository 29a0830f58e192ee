"""Text whose colour shows a probability."""

import sys

from rich.console import COLOR_SYSTEMS, Console
from rich.style import Style

# From a probability on. The 16 colours of every terminal: it shows them as its user has chosen.
SHADES = ((0.5, Style(color="green")), (0.2, Style(color="cyan")), (0.05, Style(color="yellow")),
          (0.01, Style(color="magenta")), (0, Style(color="red", bold=True)))


class Shades:
    """Colours for a stream. There are none if it is not a terminal, or if NO_COLOR is set;
    FORCE_COLOR takes any stream for a terminal."""

    def __init__(self, stream):
        console = Console(file=stream)
        self._colours = None if console.no_color else COLOR_SYSTEMS.get(console.color_system)
        self.missing = "" if self._colours is not None else (     # why there are none
            "NO_COLOR is set" if console.no_color else
            "the output is not a terminal with colours; FORCE_COLOR=1 takes it for one")

    def paint(self, text, probability):
        """-> the text in the colour of a probability, from 0 to 1."""
        style = next(style for least, style in SHADES if probability >= least)
        return style.render(text, color_system=self._colours)

    def legend(self):
        """-> the meaning of the colours, in colours."""
        words = [self.paint(f"{least:.0%}", least) for least, _ in SHADES[:-1]]
        return f"probability of at least {', '.join(words)}, or {self.paint('less', 0)}"


def say_shades():
    """-> Shades of stdout; None: it has no colours. What they mean, or why there are none, is said
    on stderr."""
    shades = Shades(sys.stdout)
    said = (f"note: no probabilities are shown, because {shades.missing}" if shades.missing else
            f"colours: {Shades(sys.stderr).legend()}")
    print(said, file=sys.stderr)
    return None if shades.missing else shades
