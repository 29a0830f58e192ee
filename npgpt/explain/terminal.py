"""An explanation as lines for a terminal: each statement with its results below it.

     19 │     xhat *= rstd
        │       xhat (2, 3, 4), changed in place
        │         [0]   1.017   0.2233 …
"""

import math
import re
import textwrap

import numpy as np
from rich.text import Text

from npgpt.explain import wording
from npgpt.explain.highlight import parts
from npgpt.explain.numbers import aligned, matrices, norm

STYLES = {"comment": "dim", "string": "green", "keyword": "magenta", "defined": "bold"}
MOST_ROWS, MOST_MATRICES = 12, 8      # of an array; "…" stands for the rest
PROSE = 88                            # columns of running text
BAR = "    │ "
INDENT = 6                            # of an array below its statement
NARROWEST = 40                        # columns; a narrower terminal breaks the lines itself
GAP = "  "                            # between columns of numbers


def lines(e, width):
    """An explanation -> Texts, one for each line, of at most `width` columns; width: from 40."""
    width = max(width, NARROWEST)
    yield Text(e.name, "bold")
    yield from _folded(Text(wording.origin(e), "dim"), width, 4)
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
                    yield from _folded(Text(piece, "bold"), width, 8)
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
                yield from (_barred(line) for line in _folded(text, room, INDENT + 4))
                text, caption = Text(" " * (INDENT + 4)), caption.lstrip()
            text.append(caption)
            yield from (_barred(line) for line in _folded(text, room, INDENT + 4))
            if value.data is not None and not value.brief and not value.origin:
                for line in _array(value.data, value.changed, room - INDENT - 2):
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
        pieces = _folded(line, room, indent, _last_space if is_prose else _best_space)
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


def _last_space(plain, start, end):
    return plain.rfind(" ", start, end)


def _best_space(code, start, end):
    """Where to break a line of code: in as few brackets as possible, after a comma or an equals
    sign rather than elsewhere, and as late as possible. -1 if there is no space."""
    if code.lstrip().startswith("#"):
        return _last_space(code, start, end)
    best, depth = (math.inf, -1), 0
    for at, character in enumerate(code[:end]):
        depth += (character in "([{") - (character in ")]}")
        if character == " " and at >= max(start, end // 3):
            cost = 2 * depth + (code[at - 1] not in ",=")
            best = (cost, at) if cost <= best[0] else best
    return best[1]


def _folded(text, room, indent, space=_last_space):
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


def _array(array, changed, room):
    """The matrices of an array, side by side if there is room."""
    texts = aligned(array)
    some = changed is not None and not changed.all()
    styles = _styles(array)
    if some:
        styles = np.where(changed, styles + " bold underline", styles)
    blocks = [_block(label, rows, style, room) for (label, rows), (_, style)
              in zip(matrices(texts)[:MOST_MATRICES], matrices(styles))]
    yield from _side_by_side(blocks, room)
    left_out = len(matrices(texts)) - MOST_MATRICES
    if left_out > 0:
        yield Text(f"… and {left_out} more of these", "dim")


def _styles(array):
    """-> a style for each number: cyan below 0, dim for 0 and -inf."""
    return np.where((array == 0) | (array == -np.inf), "dim", np.where(array < 0, "cyan", "")
                    ).astype(object)


def _block(label, texts, styles, room):
    """A matrix of texts -> Texts of one width of at most `room` columns, the first with the label.
    The label has a line of its own if two numbers would not fit beside it."""
    gap, cell, n_columns = len(GAP), len(texts[0, 0]) + len(GAP), texts.shape[1]
    indent = len(label) + gap if label else 0
    result = []
    if label and indent + min(n_columns * cell - gap, 2 * cell + 1) > room:
        result.append(Text(label, "dim"))
        label, indent = "", 0
    columns = _some(n_columns, (room - indent + gap) // cell, (room - indent - 1) // cell)
    for n, i in enumerate(_some(len(texts), MOST_ROWS, MOST_ROWS - 1)):
        line = Text.assemble(((label if n == 0 else "").ljust(indent), "dim"))
        for m, j in enumerate(columns):
            line.append(GAP if m else "")
            if i is None or j is None:
                line.append("…".rjust(1 if j is None else cell - gap), "dim")
                continue
            before, core, after = texts[i, j].partition(texts[i, j].strip())
            line.append(before)
            line.append(core, styles[i, j])
            line.append(after)
        line.rstrip()
        result.append(line)
    return _of_one_width(result)


def _of_one_width(block):
    widest = max(map(len, block))
    for line in block:
        line.pad_right(widest - len(line))
    return block


def _some(count, most, beside):
    """The indices to show of 0..count-1, None for those left out: all of them if they are at most
    `most`, else so many `beside` the None, the last among them if there are two."""
    if count <= most:
        return range(count)
    return [*range(max(beside - 1, 1)), None, *([count - 1] if beside > 1 else [])]


def _side_by_side(blocks, room, gap=4):
    """Blocks of lines -> lines, with as many blocks side by side as there is room for."""
    rows = [[]]
    for block in blocks:
        used = sum(len(other[0]) + gap for other in rows[-1])
        if rows[-1] and used + len(block[0]) > room:
            rows.append([])
        rows[-1].append(block)
    for row in rows:
        for n in range(max(map(len, row))):
            line = Text()
            for block in row:
                line += block[n] if n < len(block) else Text(" " * len(block[0]))
                line.append(" " * gap)
            line.rstrip()
            yield line


def checks(some, width):
    """Checks -> lines: each gradient beside the measured one; many of them as a table of norms."""
    for check in some:
        if check.brief:
            continue
        head = Text.assemble((check.name, "bold"), f" {check.found.shape}  ", _outcome(check))
        yield from _folded(head, width, 4)
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
            yield from _folded(name, width, 4)
            name = Text()
        yield from _folded(Text.assemble(name, figures, _outcome(check)), width, 4)


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
            styles = np.where(matrices(far)[n][1], "bold red", _styles(numbers))
            block = _block("", matrices(texts[side])[n][1], styles, room)
            head = Text.assemble((f"{name} {label}".rstrip(), "dim"))
            pair.append(_of_one_width([head, *block]))
        gap = 4 if 2 * len(pair[0][0]) + 4 <= room else 2
        blocks.append(_of_one_width(list(_side_by_side(pair, room, gap))))
    yield from _side_by_side(blocks, room)
