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


def mapped(function, x):
    """x with function applied to each of its arrays."""
    if isinstance(x, Mapping):
        return {key: mapped(function, inner) for key, inner in x.items()}
    return function(x)


def replaced(x, path, array):
    """x with another array at a path. x itself stays as it is."""
    if not path:
        return array
    return {**x, path[0]: replaced(x[path[0]], path[1:], array)}


def label(name, path):
    """The expression for an array: "p", ("attn", "bias") -> 'p["attn"]["bias"]'."""
    return name + "".join(f'["{key}"]' if isinstance(key, str) else f"[{key}]" for key in path)


def flat(x):
    """A nested mapping -> a mapping of dotted names to arrays. An array stays as it is."""
    if not isinstance(x, Mapping):
        return x
    return {".".join(map(str, path)): array for path, array in leaves(x)}


def unflat(arrays, like):
    """The inverse of `flat`: arrays by dotted name -> a mapping nested as `like` is."""
    for path, _ in leaves(like):
        like = replaced(like, path, arrays[".".join(map(str, path))] if path else arrays)
    return like
