"""Text for the standard output, perhaps in colours that stand for probabilities."""

import math
import os

from rich.console import COLOR_SYSTEMS, Console
from rich.style import Style
from rich.text import Text

# Upper limits of the probability, and colours.
SHADES = ((0.01, "red"), (0.1, "dark_orange"), (0.3, "yellow"), (0.7, "green_yellow"),
          (math.inf, "green"))


class Shades:
    """The colours of probabilities on the standard output."""

    def __init__(self):
        plain = {"color_system": None} if os.environ.get("NO_COLOR") else {}
        self._system = COLOR_SYSTEMS.get(Console(**plain).color_system)
        self._styles = [(limit, Style(color=colour)) for limit, colour in SHADES]

    @property
    def are_shown(self):
        """Whether the output is a terminal that shows colours."""
        return self._system is not None

    def legend(self):
        """-> Text: the colours and what they stand for."""
        text = Text("probability:")
        for (limit, colour), below in zip(SHADES, (0, *(limit for limit, _ in SHADES))):
            upper = min(limit, 1)
            text.append(f"  {100 * below:.0f} to {100 * upper:.0f} %", colour)
        return text

    def paint(self, text, probability):
        """-> a text in the colour of its probability. Its characters stay as they are, tabs and
        control characters too."""
        style = next(style for limit, style in self._styles if probability < limit)
        return style.render(text, color_system=self._system)
