"""Arrays as lines for a terminal: the matrices side by side, the middle of large ones left out."""

import numpy as np
from rich.text import Text

from npgpt.explain.numbers import aligned, matrices

MOST_ROWS, MOST_MATRICES = 12, 8      # of an array; "…" stands for the rest
GAP = "  "                            # between columns of numbers


def array_lines(array, changed, room):
    """An array -> Texts of at most `room` columns. changed: which numbers to mark, or None."""
    texts = aligned(array)
    some = changed is not None and not changed.all()
    styles = styles_of(array)
    if some:
        styles = np.where(changed, styles + " bold underline", styles)
    blocks = [block_lines(label, rows, style, room) for (label, rows), (_, style)
              in zip(matrices(texts)[:MOST_MATRICES], matrices(styles))]
    yield from side_by_side(blocks, room)
    left_out = len(matrices(texts)) - MOST_MATRICES
    if left_out > 0:
        yield Text(f"… and {left_out} more of these", "dim")


def styles_of(array):
    """-> a style for each number: cyan below 0, dim for 0 and -inf."""
    return np.where((array == 0) | (array == -np.inf), "dim", np.where(array < 0, "cyan", "")
                    ).astype(object)


def block_lines(label, texts, styles, room):
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
    return of_one_width(result)


def of_one_width(block):
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


def side_by_side(blocks, room, gap=4):
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
