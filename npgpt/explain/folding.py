"""Where a line that is wider than a terminal is broken."""

import math

from rich.text import Text


def last_space(plain, start, end):
    return plain.rfind(" ", start, end)


def best_space(code, start, end):
    """Where to break a line of code: in as few brackets as possible, after a comma or an equals
    sign rather than elsewhere, and as late as possible. -1 if there is no space."""
    if code.lstrip().startswith("#"):
        return last_space(code, start, end)
    best, depth = (math.inf, -1), 0
    for at, character in enumerate(code[:end]):
        depth += (character in "([{") - (character in ")]}")
        if character == " " and at >= max(start, end // 3):
            cost = 2 * depth + (code[at - 1] not in ",=")
            best = (cost, at) if cost <= best[0] else best
    return best[1]


def folded(text, room, indent, space=last_space):
    """A Text -> Texts of at most `room` columns, all but the first indented. They are broken at a
    space, else after punctuation, else anywhere."""
    indent = min(indent, room // 2)
    while len(text) > room:
        plain = text.plain
        apart = max(plain.find(mark, indent + 1, room + 4) for mark in ("  # ", "    → "))
        blank = space(plain, indent + 1, room + 1)
        mark = max(plain.rfind(mark, indent + 1, room) for mark in "([.,") + 1
        at = apart if apart > 0 else blank if blank > 0 else mark if mark > 0 else room
        first, text = text.divide([at])
        yield first
        text = Text(" " * indent) + text[len(text.plain) - len(text.plain.lstrip()):]
    yield text
