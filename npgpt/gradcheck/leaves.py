"""The arrays among the inputs of a forward: an input is an array, a mapping of names to arrays,
nested to any depth, or something that is not differentiated."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Leaf(NamedTuple):
    """Where an array of floats is among the inputs, and how messages call it."""

    i: int                   # the index of the input
    path: tuple              # of keys, if the input is a mapping
    name: str

    def of(self, inputs):
        """This array of some inputs."""
        return _at(inputs, self.i, *self.path)

    def moved(self, inputs, step):
        """A copy of the inputs with this array moved by step. If the step is complex, all arrays of
        floats become complex."""
        inputs = copied(inputs, step.dtype)
        *branch, last = self.i, *self.path
        _at(inputs, *branch)[last] += step
        return inputs


def leaves(inputs, names):
    """-> a Leaf for each array of floats. names: of the inputs."""
    return [Leaf(i, path, ".".join(map(str, path)) or names[i])
            for i, x in enumerate(inputs) for path, a in flat(x).items() if is_floats(a)]


def flat(x, path=()):
    """A nested mapping -> mapping of paths, tuples of keys, to what lies there. Anything else lies
    at the empty path."""
    if not isinstance(x, Mapping):
        return {path: x}
    found = {}
    for key, part in x.items():
        found |= flat(part, (*path, key))
    return found


def has_gradient(x):
    """Whether a backward returns something for this input."""
    return isinstance(x, Mapping) or is_floats(x)


def is_floats(x):
    """Whether x is an array of real floats."""
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def copied(x, dtype=np.float64):
    """A copy of a list or mapping of inputs with its arrays of floats in this dtype."""
    if isinstance(x, Mapping):
        return {key: copied(part, dtype) for key, part in x.items()}
    if isinstance(x, list):
        return [copied(part, dtype) for part in x]
    return x.astype(dtype) if is_floats(x) else x


def _at(x, *path):
    for key in path:
        x = x[key]
    return x
