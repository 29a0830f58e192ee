"""Mappings of arrays, nested to any depth: a model's parameters and their gradients.

A path is the tuple of keys that leads to an array: ("attn", "c_attn.weight"). An array that stands
alone has the path ().
"""

from collections.abc import Mapping


def leaves(x):
    """An array or a nested mapping -> pairs of a path and an array."""
    if not isinstance(x, Mapping):
        yield (), x
        return
    for key, inner in x.items():
        for path, array in leaves(inner):
            yield (key, *path), array


def replaced(x, path, array):
    """x with another array at a path. x itself stays as it is."""
    if not path:
        return array
    return {**x, path[0]: replaced(x[path[0]], path[1:], array)}


def dotted(path):
    """The name of a parameter: ("attn", "c_attn.weight") -> "attn.c_attn.weight"."""
    return ".".join(map(str, path))


def label(name, path):
    """The expression for an array: "p", ("attn", "bias") -> 'p["attn"]["bias"]'."""
    return name + "".join(f'["{key}"]' if isinstance(key, str) else f"[{key}]" for key in path)
