"""A picture in the gallery: a bug that was found in a public GPT with backward passes by hand,
beside the correct code and the check that tells them apart."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Bug:
    """One bug. `check` takes an implementation and raises AssertionError if it is wrong; `blind` is
    a check that looks reasonable and lets the bug through."""

    title: str
    story: str                       # how it looks in the wild, what it does, what sees it
    right: str                       # the line as it should be
    wrong: str                       # and as it was
    correct: Callable
    broken: Callable
    check: Callable
    blind: Callable | None = None
    source: Callable | None = None   # where the right line stands, if not in `correct`
    broken_source: Callable | None = None      # and the wrong one, if not in `broken`

    def page(self):
        """The bug as a section of docs/gallery.md."""
        seen = inspect.getdoc(self.check)
        missed = f" Missed by: {inspect.getdoc(self.blind)}" if self.blind else ""
        return (f"## {self.title}\n\n{self.story}\n\n```python\n{self.wrong}    # wrong\n"
                f"{self.right}    # right\n```\n\nCaught by: {seen}{missed}\n")
