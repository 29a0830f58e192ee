"""Numbers as text with four significant digits, and arrays as matrices of such texts."""

import math
import re

import numpy as np

DIGITS = 4


def number(x):
    """A number or a bool as text."""
    if isinstance(x, (bool, np.bool_, int, np.integer)):
        return str(x)
    x = float(f"{x:.9g}")       # 2.6755 and 2.67549999999 give the same text
    return "0" if x == 0 else f"{x:.{DIGITS}g}"      # never -0


def aligned(array):
    """-> array of texts of one width, aligned at the decimal point."""
    texts = [number(x) for x in array.ravel()]
    points = [len(re.match(r"-?\d*", text)[0]) for text in texts]      # index of the point
    left = max(points)
    right = max([len(text) - point for text, point in zip(texts, points) if point > 1
                 or text[0].isdigit()], default=0)
    width = max(left + right, *map(len, texts))
    padded = [text.rjust(width) if text[-1].isalpha()
              else (" " * (left - point) + text).ljust(width) for text, point in zip(texts, points)]
    return np.array(padded, dtype=object).reshape(array.shape)


def matrices(array):
    """-> pairs of a label and a matrix. A vector or a matrix gives one pair; an array with more
    axes gives one for each index of the leading axes, labelled like "[0, 1]"."""
    if array.ndim < 2:
        return [("", array.reshape(1, -1))]
    return [("" if array.ndim == 2 else str(list(index)), array[index])
            for index in np.ndindex(array.shape[:-2])]


def norm(array):
    """The root of the sum of squares as text."""
    return number(math.sqrt(float((array * array).sum())))


def shape(array):
    """The shape as text."""
    return str(array.shape)
