"""Parameters: a table that describes them, and named arrays that are views of one flat buffer.

An architecture is a table, name -> Param. It says what code would otherwise have to infer from
names: the group, which decides what decays and what Muon updates, and how many matrices are side by
side in one array.

    matrix    weights of the blocks: they decay, and Muon can orthogonalise them
    table     embeddings and the head: they decay
    vector    biases and norms: they do not decay

In the buffer the groups are in this order, so each is a slice. Frozen parameters are last, so
gradients and moments cover only the trainable ones. The optimiser, the gradient norm and the
communicator use the buffer. The layers use the tree: names are split at all dots but the last, so
p["h"][3]["attn"]["c_attn.weight"] is the array "h.3.attn.c_attn.weight".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

GROUPS = ("matrix", "table", "vector")
STD = 0.02                   # of GPT-2's initial weights


@dataclass(frozen=True)
class Param:
    """The description of a parameter. Its initial value is mean + std * normal numbers."""

    shape: tuple[int, ...]
    group: str                              # "matrix", "table" or "vector"
    std: float = 0.0
    mean: float = 0.0
    parts: tuple[int, ...] = ()             # the widths of matrices side by side, as of q, k and v
    uses: int = 1                           # its gradient is the sum of this number of parts
    trainable: bool = True

    @property
    def widths(self):
        """The widths of the matrices in it, from left to right."""
        return self.parts or self.shape[-1:]

    def draw(self, name, seed):
        """-> its initial value, a NumPy array, float32. It depends only on the seed and the name,
        not on other parameters or their order."""
        if not self.std:
            return np.full(self.shape, self.mean, np.float32)
        normal = np.random.default_rng([seed, *name.encode()]).standard_normal
        value = normal(self.shape, np.float32) * np.float32(self.std)
        return value + np.float32(self.mean) if self.mean else value


def linear(n_in, n_out, std=STD, bias=True, parts=()):
    """-> the parameters of a linear layer."""
    weight = {"weight": Param((n_in, n_out), "matrix", std, parts=parts)}
    return weight | ({"bias": Param((n_out,), "vector", parts=parts)} if bias else {})


def table(rows, columns, std=STD, uses=1):
    """-> the parameters of an embedding: a row for each token or position."""
    return {"weight": Param((rows, columns), "table", std, uses=uses)}


def norm(n):
    """-> the parameters of a layer norm over n channels."""
    return rms_norm(n) | {"bias": Param((n,), "vector")}


def rms_norm(n):
    """-> the parameters of an RMSNorm over n channels."""
    return {"weight": Param((n,), "vector", mean=1.0)}


def flatten(tree, prefix=""):
    """{"attn": {"c_attn": {"weight": x}}} -> {"attn.c_attn.weight": x}."""
    flat = {}
    for name, value in tree.items():
        flat |= (flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping)
                 else {f"{prefix}{name}": value})
    return flat


def nest(flat):
    """{"h.3.attn.c_attn.weight": x} -> {"h": {3: {"attn": {"c_attn.weight": x}}}}: what the models'
    functions take. The inverse of flatten."""
    tree = {}
    for name, value in flat.items():
        *path, module, leaf = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(int(part) if part.isdecimal() else part, {})
        branch[f"{module}.{leaf}"] = value
    return tree


def count(architecture):
    """The total number of elements of the parameters."""
    return sum(math.prod(param.shape) for param in architecture.values())


class Parameters(Mapping):
    """name -> array, all of them views of the buffer `flat` (n,)."""

    def __init__(self, architecture, flat):
        """architecture: name -> Param, in the order in which the model uses them; flat: array (n,)
        of any module and dtype."""
        self.architecture = architecture
        order = sorted(architecture, key=lambda name: (not architecture[name].trainable,
                                                       GROUPS.index(architecture[name].group)))
        self._flat = flat
        self._views = {}
        self.slices = {}                        # name -> where it is in flat
        self.n_matrices = self.n_decayed = self.n_trainable = 0      # where each of these ends
        offset = 0
        for name in order:
            param = architecture[name]
            self.slices[name] = slice(offset, offset + math.prod(param.shape))
            self._views[name] = flat[self.slices[name]].reshape(param.shape)
            offset = self.slices[name].stop
            if param.trainable:
                self.n_trainable = offset
                self.n_decayed = offset if param.group != "vector" else self.n_decayed
                self.n_matrices = offset if param.group == "matrix" else self.n_matrices
        self._tree = nest(self._views)

    @property
    def flat(self):
        """The buffer."""
        return self._flat

    @property
    def tree(self):
        """The same arrays, nested by the parts of their names."""
        return self._tree

    def __getitem__(self, name):
        return self._views[name]

    def __setitem__(self, name, value):
        """p[name] = value copies into the buffer. p[name] -= update calls this with the view."""
        if value is not self._views[name]:
            self._views[name][...] = value

    def __contains__(self, name):
        return name in self._views               # without reading it, which would fill gradients

    def __iter__(self):
        return iter(self._views)

    def __len__(self):
        return len(self._views)

    def on(self, flat):
        """The same names as views of another buffer."""
        return Parameters(self.architecture, flat)

    def gradients(self, flat):
        """Gradients of the trainable parameters over a buffer (n_trainable,)."""
        return Gradients({name: param for name, param in self.architecture.items()
                          if param.trainable}, flat)


class Gradients(Parameters):
    """name -> gradient; a backward adds to it. After `zero` the first gradient of a name is
    assigned and later ones are added, so that no time is spent on writing zeros."""

    def __init__(self, architecture, flat):
        super().__init__(architecture, flat)
        self._unwritten = set()
        self._missing, self._completed = {}, None

    def zero(self, passes=1, completed=None):
        """Set every gradient to 0. completed(name): called when the gradient of a name is complete,
        during the last of this number of backward passes; None: nobody waits for it."""
        self._unwritten = set(self._views)
        self._completed = completed
        self._missing = {name: passes * param.uses for name, param in self.architecture.items()
                         } if completed else {}

    def add(self, name, d):
        """Add d to a gradient. d: an array of its shape, None, or a tree of these under the name,
        whose parts are removed as they are added. Gradients of frozen parameters are ignored."""
        if isinstance(d, dict):
            while d:
                key, part = d.popitem()
                self.add(f"{name}.{key}", part)
        elif d is not None and name in self._views:
            view = self._views[name]
            if d.shape != view.shape:
                raise ValueError(f"the gradient of {name} {view.shape} has the shape {d.shape}")
            if name in self._unwritten:
                self._unwritten.remove(name)
                view[...] = d
            else:
                view += d
            if self._completed:
                self._count(name)

    def _count(self, name):
        """One part less is missing of a gradient."""
        self._missing[name] -= 1
        if self._missing[name] < 0:
            raise ValueError(f"the gradient of {name} has more parts than the parameter has uses")
        if self._missing[name] == 0:
            self._completed(name)

    def fill(self):
        """Write 0 to the gradients to which nothing was added."""
        for name in self._unwritten:
            self._views[name][...] = 0
        self._unwritten.clear()

    @property
    def flat(self):
        self.fill()
        return self._flat

    @property
    def tree(self):
        self.fill()
        return self._tree

    def __getitem__(self, name):
        if name in self._unwritten:
            self.fill()
        return self._views[name]

    def __setitem__(self, name, value):
        self._unwritten.discard(name)
        super().__setitem__(name, value)
