"""Text on the standard output, perhaps in colours that stand for probabilities."""

import os
import sys

from rich.console import Console
from rich.text import Text

# Upper limits of the probability, and colours.
SHADES = ((0.01, "red"), (0.1, "dark_orange"), (0.3, "yellow"), (0.7, "green_yellow"),
          (1.1, "green"))


class Printer:
    """Prints parts of a text as they come, without line breaks of its own."""

    def __init__(self, colours):
        """colours: whether to show probabilities."""
        self._console = None
        if colours:
            plain = {"color_system": None} if os.environ.get("NO_COLOR") else {}
            self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True,
                                    **plain)

    @property
    def has_colours(self):
        """Whether the output is a terminal that shows colours."""
        return bool(self._console and self._console.color_system)

    def legend(self):
        """-> Text: the colours and what they stand for."""
        text = Text("probability:")
        for (limit, colour), below in zip(SHADES, (0, *(limit for limit, _ in SHADES))):
            upper = min(limit, 1)
            text.append(f"  {100 * below:.0f} to {100 * upper:.0f} %", colour)
        return text

    def show(self, text, probability):
        """Print a part of the text. probability: of its token."""
        if not text:
            return
        if not self.has_colours:
            print(text, end="", flush=True)
            return
        colour = next(colour for limit, colour in SHADES if probability < limit)
        with self._console.capture() as capture:
            self._console.print(Text(text, colour), end="")
        sys.stdout.write(capture.get())
        sys.stdout.flush()
