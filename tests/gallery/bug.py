"""One entry of the gallery: a bug found in a public project, the
correct code, and the check that distinguishes them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Kept(NamedTuple):
    """The cache of a layer under test: the layer's own, and what a broken backward needs."""

    own: Any
    inputs: tuple
    y: Any


def keeping(forward):
    """A layer's forward -> the same with a Kept as its cache."""
    def with_inputs(*inputs):
        y, own = forward(*inputs)
        return y, Kept(own, inputs, y)
    return with_inputs


def from_own(backward):
    """A layer's backward -> the same, for a Kept."""
    return lambda dy, kept: backward(dy, kept.own)


@dataclass
class Bug:
    """One bug. `check` takes an implementation and raises AssertionError if it is wrong. `blind` is
    a check that looks reasonable and misses the bug."""

    title: str
    story: str                       # what the code does, why it is wrong, what detects it
    right: str                       # the correct line
    wrong: str                       # and the wrong one
    correct: Any                     # what `check` takes
    broken: Any
    check: Callable
    blind: Callable | None = None
    source: Callable | None = None   # what contains the right line, if not `correct`
    broken_source: Callable | None = None      # what contains the wrong line, if not `broken`

    def page(self):
        """The bug as a section of docs/gallery.md."""
        seen = inspect.getdoc(self.check)
        missed = f" Missed by: {inspect.getdoc(self.blind)}" if self.blind else ""
        return (f"## {self.title}\n\n{self.story}\n\n```python\n{self.wrong}    # wrong\n"
                f"{self.right}    # right\n```\n\nCaught by: {seen}{missed}\n")
