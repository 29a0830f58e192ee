"""An explanation as lines for a terminal: each statement with its results below it.

     19 │     xhat *= rstd
        │       xhat (2, 3, 4), changed in place
        │         [0]   1.017   0.2233 …
"""

import re
import textwrap

import numpy as np
from rich.text import Text

from npgpt.explain import wording
from npgpt.explain.arrays import (
    MOST_MATRICES,
    array_lines,
    block_lines,
    of_one_width,
    side_by_side,
    styles_of,
)
from npgpt.explain.folding import best_space, folded, last_space
from npgpt.explain.highlight import parts
from npgpt.explain.numbers import aligned, matrices, norm

STYLES = {"comment": "dim", "string": "green", "keyword": "magenta", "defined": "bold"}
PROSE = 88                            # columns of running text
BAR = "    │ "
INDENT = 6                            # of an array below its statement
NARROWEST = 40                        # columns; a narrower terminal breaks the lines itself


def lines(e, width):
    """An explanation -> Texts, one for each line, of at most `width` columns; width: from 40."""
    width = max(width, NARROWEST)
    yield Text(e.name, "bold")
    yield from folded(Text(wording.origin(e), "dim"), width, 4)
    yield Text()
    yield from _formula(e.formula, width)
    yield from _prose(wording.legend(e), width)
    yield from _section("Forward", width)
    yield from steps(e.forward, width)
    yield from _section("Backward", width)
    yield from _prose(wording.meaning(e), width)
    yield Text()
    yield from steps(e.backward, width)
    yield from _section("Check", width)
    yield from _prose(wording.measured(e), width)
    yield Text()
    yield from checks(e.checks, width)
    yield from verdict(e, width)


def verdict(e, width):
    """Whether all the gradients are right."""
    yield from _prose(wording.verdict(e), width, "bold green" if e.right else "bold red")


def _prose(text, width, style=""):
    for line in textwrap.wrap(text, min(width, PROSE)):
        yield Text(line, style)


def _formula(text, width):
    """A docstring. Paragraphs that are too wide are wrapped again."""
    for paragraph in text.split("\n\n"):
        rows = paragraph.split("\n")
        if paragraph.startswith("    "):
            for row in _squeezed(rows, width):
                first, *more = [row] if len(row) <= width else re.split(r"(?<=\S) {3,}", row)
                if len(first) > width:
                    first = " " * min(8, len(first) - len(first.lstrip())) + first.lstrip()
                for piece in [first, *(" " * 8 + piece for piece in more)]:
                    yield from folded(Text(piece, "bold"), width, 8)
        else:
            wide = max(map(len, rows)) > width
            yield from map(Text, textwrap.wrap(" ".join(rows), width) if wide else rows)
        yield Text()


def _squeezed(rows, width):
    """Formulas in two columns, with the gap between the columns no wider than there is room for."""
    excess = max(map(len, rows)) - width
    gaps = re.finditer(" {4,}(?=#)", "".join(
        " " if all(row[i:i + 1] in ("", " ") for row in rows) else "#"
        for i in range(max(map(len, rows)))))
    gaps = sorted((gap.span() for gap in gaps if gap.start() > 0), key=lambda gap: gap[0] - gap[1])
    if excess <= 0 or not gaps:
        return rows
    start, end = gaps[0]
    cut = min(excess, end - start - 3)
    return [row[:start] + row[start + cut:] for row in rows]


def _section(name, width):
    yield Text()
    yield Text(f"── {name} ".ljust(min(width, PROSE), "─"), "bold")
    yield Text()


def steps(some, width):
    """Steps -> lines: each statement with its results."""
    for step in some:
        yield from _source(step, width)
        room = width - len(BAR)
        brief = [value for value in step.values if value.brief]
        names = max((len(value.name) for value in brief), default=0)
        fits = all(INDENT + names + len(wording.caption(value)) <= room for value in brief)
        for value in step.values:
            text = Text(" " * INDENT)
            text.append(value.name.ljust(names if value.brief and fits else 0), "bold")
            caption = wording.caption(value)
            if value.brief and len(text) + len(caption) > room:      # on a line of its own
                yield from (_barred(line) for line in folded(text, room, INDENT + 4))
                text, caption = Text(" " * (INDENT + 4)), caption.lstrip()
            text.append(caption)
            yield from (_barred(line) for line in folded(text, room, INDENT + 4))
            if value.data is not None and not value.brief and not value.origin:
                for line in array_lines(value.data, value.changed, room - INDENT - 2):
                    yield _barred(Text(" " * (INDENT + 2)) + line)


def _barred(text):
    return Text.assemble((BAR, "dim"), text)


def _source(step, width):
    """The statement as it is in the file, each line with its number."""
    room = width - len(BAR)
    rows = _rows(step, room)
    source = "\n".join(line for _, line in rows)
    code = Text()
    for kind, text in parts(source):
        code.append(text, STYLES.get(kind, ""))
    if step.is_idle:
        code = Text(source + "    (not run)", "dim")
    if step.note:
        code.append(f"    → {step.note}", "bold")
    in_docstring = False
    for (number, _), line in zip(rows, code.split("\n", allow_blank=True)):
        quotes = line.plain.count('"""')
        is_prose = in_docstring or quotes
        in_docstring ^= quotes == 1
        indent = len(line.plain) - len(line.plain.lstrip()) + (0 if is_prose else 8)
        pieces = folded(line, room, indent, last_space if is_prose else best_space)
        for i, piece in enumerate(pieces):
            yield Text.assemble((BAR if i else f"{number:3} │ ", "dim"), piece)


def _rows(step, room):
    """The lines of a statement -> pairs of a number and a line. In the head of a function, lines of
    the signature or of a sentence are joined if one of them is too wide, to be broken again."""
    lines = [line if len(line) <= room else re.sub(r" {3,}#", "  #", line)
             for line in step.source.split("\n")]
    groups = [[lines[0]]]
    for line in lines[1:]:
        last = groups[-1][-1].rstrip()
        is_apart = not last or last[-1] in ".:" or line.strip() in ("", '"""')
        if is_apart or not step.source.lstrip().startswith("def "):
            groups.append([line])
        else:
            groups[-1].append(line)
    rows, number = [], step.first
    for group in groups:
        if max(map(len, group)) > room:
            rows.append((number, " ".join([group[0], *map(str.strip, group[1:])])))
        else:
            rows += enumerate(group, number)
        number += len(group)
    return rows


def checks(some, width):
    """Checks -> lines: each gradient beside the measured one; many of them as a table of norms."""
    for check in some:
        if check.brief:
            continue
        head = Text.assemble((check.name, "bold"), f" {check.found.shape}  ", _outcome(check))
        yield from folded(head, width, 4)
        if check.found.shape == check.measured.shape:
            yield from (Text("  ") + line for line in _pairs(check, width - 2))
        yield Text()
    brief = [check for check in some if check.brief]
    if brief:
        yield from _table_of_norms(brief, width)
        yield Text()


def _table_of_norms(some, width):
    """A row for each gradient. Its name has a line of its own if the row would be too wide."""
    names = max(len(check.name) for check in some)
    head = f"  {'shape':8}  {'norm':9}  {'measured':9}  relative error"
    is_wide = names + len(head) <= width
    yield Text(" " * names + head if is_wide else "shape    norm      measured  error", "dim")
    for check in some:
        name, norms = Text(check.name, "bold"), (norm(check.found), norm(check.measured))
        if is_wide:
            figures = f"  {check.found.shape!s:8}  {norms[0]:9}  {norms[1]:9}  "
            name.pad_right(names - len(name))
        else:
            figures = f"{check.found.shape!s:8} {norms[0]:9} {norms[1]:9} "
            yield from folded(name, width, 4)
            name = Text()
        yield from folded(Text.assemble(name, figures, _outcome(check)), width, 4)


def _outcome(check):
    return wording.outcome(check), "bold green" if check.right else "bold red"


def _pairs(check, room):
    """The gradient from the backward beside the measured one, matrix by matrix."""
    both = np.stack([check.found, check.measured])
    texts = aligned(both)
    far = check.far
    blocks = []
    for n, (label, _) in enumerate(matrices(check.found)[:MOST_MATRICES]):
        pair = []
        for side, name in enumerate(("backward", "measured")):
            numbers = matrices(both[side])[n][1]
            styles = np.where(matrices(far)[n][1], "bold red", styles_of(numbers))
            block = block_lines("", matrices(texts[side])[n][1], styles, room)
            head = Text.assemble((f"{name} {label}".rstrip(), "dim"))
            pair.append(of_one_width([head, *block]))
        gap = 4 if 2 * len(pair[0][0]) + 4 <= room else 2
        blocks.append(of_one_width(list(side_by_side(pair, room, gap))))
    yield from side_by_side(blocks, room)
