"""What a statement made or changed: the difference of a function's names before and after it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from npgpt.explain.nested import label, leaves
from npgpt.explain.numbers import number


@dataclass
class Value:
    """A name and its value after a statement."""

    name: str
    data: np.ndarray | None = None      # a copy; None if the value is not an array
    text: str = ""                      # shown instead of an array
    changed: np.ndarray | None = None   # changed in place: bool, the elements that now differ
    origin: tuple | None = None         # shown before: (name, line)
    brief: bool = False                 # one of many: only shape and norm are shown
    note: str = ""                      # where it comes from


class Seen:
    """The arrays that were shown: their names, lines and content at that time."""

    def __init__(self):
        self._shown = {}     # id -> array, copy, name, line. Keeping the array keeps its id unique

    def add(self, array, name, line):
        self._shown[id(array)] = array, array.copy(), name, line

    def origin(self, array):
        """-> (name, line) if the array was shown and has not changed since, else None."""
        _, copy, name, line = self._shown.get(id(array), (None, None, None, None))
        return (name, line) if copy is not None and same(array, copy) else None


def snapshot(names):
    """name -> object  ->  name -> (object, its content)."""
    return {name: (held, _content(held)) for name, held in names.items()}


def differences(before, after, targets, seen, line):
    """Two snapshots -> Values of what is new, changed or deleted. targets: the names that the
    statement assigns to; each is listed, even if its numbers stay the same. An array that has
    several names is listed under the first; the others appear only when they come to share it."""
    values = [Value(name, text=": deleted") for name in before if name not in after]
    listed = {}                 # id of an array changed in place or assigned -> is the name new
    for name in [*targets, *(name for name in after if name not in targets)]:
        if name not in after:
            continue
        held, content = after[name]
        old, old_content = before.get(name, (None, None))
        is_new = name not in before or held is not old
        if is_new:
            values += described(name, held, seen, line)
        elif isinstance(held, Mapping):
            values += _entries(name, held, content, old_content, seen, line)
        elif id(held) in listed:
            values += described(name, held, seen, line) if listed[id(held)] else []
        elif isinstance(held, np.ndarray) and not same(content, old_content):
            values.append(_changed(name, held, old_content, seen, line))
        elif name in targets or (isinstance(held, list) and _identities(content) != old_content):
            values += described(name, held, seen, line)
        if isinstance(held, np.ndarray) and held.ndim:
            listed.setdefault(id(held), is_new)
    return values


def described(name, held, seen, line):
    """A name and its object -> Values: one, or one for each array of a mapping."""
    if isinstance(held, np.ndarray) and held.ndim:
        origin = seen.origin(held)
        if origin is None:
            seen.add(held, name, line)
        return [Value(name, held.copy(), origin=origin)]
    if isinstance(held, Mapping):
        arrays = [array for _, array in leaves(held) if isinstance(array, np.ndarray)]
        if arrays and all(seen.origin(array) for array in arrays):
            return [Value(name, text=f": {_count(arrays)}, all shown above")]
        if arrays and not any(array.any() for array in arrays):
            return [Value(name, text=f": {_count(arrays)}, all 0")]
        values = [value for key in held for value in _described_entry(name, key, held, seen, line)]
        return values or [Value(name, text=": empty")]
    return [Value(name, text=text_of(held))]


def text_of(held):
    """The text after the name of an object that is not an array with axes."""
    if isinstance(held, (bool, np.bool_, int, np.integer, str, type(None))):
        return f" = {held!r}" if isinstance(held, str) else f" = {held}"
    if isinstance(held, (float, np.floating, np.ndarray)):
        return f" = {number(held)}"
    if isinstance(held, (tuple, list)):
        arrays = list(_arrays(held))
        return f": {_count(arrays)}" if arrays else f" = {_plain(held)}"
    if isinstance(held, slice):
        return f" = {_plain(held)}"
    return f": {getattr(held, '__name__', type(held).__name__)}"


def _plain(held):
    """The text of an object without arrays. Slices are written as in an index: [0:1, :, 2:4]."""
    if isinstance(held, slice):
        return ":".join("" if at is None else str(at) for at in (held.start, held.stop))
    if isinstance(held, (tuple, list)):
        text = ", ".join(map(_plain, held))
        is_index = isinstance(held, list) or any(isinstance(part, slice) for part in held)
        return f"[{text}]" if is_index else f"({text}{',' * (len(held) == 1)})"
    return getattr(held, "__name__", repr(held))


def same(a, b):
    """Whether two arrays have the same shape, dtype and bytes."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _content(held):
    if isinstance(held, np.ndarray):
        return held.copy()
    if isinstance(held, Mapping):
        return {key: _content(value) for key, value in held.items()}
    return _identities(held) if isinstance(held, list) else held


def _identities(items):
    return [id(item) if not isinstance(item, int) else item for item in items]


def _entries(name, held, content, old, seen, line):
    """The Values of the entries of a mapping that are new, changed or deleted, at any depth."""
    if old and not held:
        return [Value(name, text=": empty")]
    values = [Value(label(name, [key]), text=": deleted") for key in old if key not in held]
    for key, entry in held.items():
        if key not in old or isinstance(entry, Mapping) != isinstance(old[key], Mapping):
            values += _described_entry(name, key, held, seen, line)
        elif isinstance(entry, Mapping):
            values += _entries(label(name, [key]), entry, content[key], old[key], seen, line)
        elif isinstance(entry, np.ndarray) and not same(content[key], old[key]):
            values.append(_changed(label(name, [key]), entry, old[key], seen, line, True))
    return values


def _described_entry(name, key, held, seen, line):
    values = described(label(name, [key]), held[key], seen, line)
    for value in values:
        value.brief = True
    return values


def _changed(name, held, old, seen, line, brief=False):
    seen.add(held, name, line)
    other = (held != old) if held.shape == old.shape else np.ones(held.shape, bool)
    return Value(name, held.copy(), changed=other, brief=brief)


def _arrays(held):
    """Every array with axes in nested tuples, lists and mappings."""
    if isinstance(held, np.ndarray) and held.ndim:
        yield held
    elif isinstance(held, (tuple, list)):
        for item in held:
            yield from _arrays(item)
    elif isinstance(held, Mapping):
        yield from _arrays(list(held.values()))


def _count(arrays):
    numbers = sum(array.size for array in arrays)
    return f"{len(arrays)} array{'s' * (len(arrays) > 1)}, {numbers} numbers"
