"""A model's parameters: named arrays, all of them views of one flat buffer.

The optimiser, the gradient norm and the exchange between processes see one long array; the layers
see names. Both see the same memory. In the buffer the parameters stand in three groups, so that
each can be had as one slice:

    matrices    weights of the blocks: decayed, and what Muon can orthogonalise
    tables      embeddings and the head: decayed
    vectors     biases and norms: not decayed

Biases begin as 0 and norms as 1. All else is drawn from normal distributions: as in GPT-2 with a
standard deviation of 0.02, divided by √(2L) where a projection ends in one of the 2L residual
additions, or with those that a model gives.
"""

import math
from collections.abc import Mapping

import numpy as np

STD = 0.02
TABLES = ("wte.weight", "wpe.weight", "lm_head.weight")


class Parameters(Mapping):
    """name -> array. `flat` is the buffer (n,) that every array is a view of."""

    def __init__(self, shapes, flat):
        """shapes: mapping of names to shapes; flat: array (n,) of any module and dtype."""
        order = sorted(shapes, key=lambda name: _group(name, shapes[name]))
        self.shapes = {name: shapes[name] for name in order}
        self.flat = flat
        self._views = {}
        self.slices = {}                        # name -> where it is in flat
        self.n_matrices = self.n_decayed = 0    # where the matrices end, and where the tables do
        offset = 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            self.slices[name] = slice(offset, offset + size)
            self._views[name] = flat[self.slices[name]].reshape(shape)
            offset += size
            if _group(name, shape) == 0:
                self.n_matrices = offset
            if _group(name, shape) <= 1:
                self.n_decayed = offset

    def __getitem__(self, name):
        return self._views[name]

    def __setitem__(self, name, value):
        """p[name] = value copies into the buffer; after p[name] -= step it is done already."""
        if value is not self._views[name]:
            self._views[name][...] = value

    def __iter__(self):
        return iter(self._views)

    def __len__(self):
        return len(self._views)

    def on(self, flat):
        """The same names over another buffer: gradients, moments."""
        return Parameters(self.shapes, flat)


def count(shapes):
    """How many numbers arrays of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def under(p, prefix):
    """The part of a mapping whose names start with the prefix, under the rest of their names."""
    return {name[len(prefix):]: p[name] for name in p if name.startswith(prefix)}


def initial_values(shapes, n_layer, seed):
    """Pairs of names and NumPy arrays, float32, as in GPT-2."""
    def std(name, shape):
        return STD / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else STD

    return drawn_values(shapes, std, seed)


def drawn_values(shapes, std, seed):
    """Pairs of names and NumPy arrays, float32; std: name, shape -> standard deviation. Each array
    depends on the seed and its own name alone, so neither the order of the parameters nor the
    presence of others changes it."""
    for name, shape in shapes.items():
        if len(shape) == 1:
            yield name, np.full(shape, name.endswith("weight"), np.float32)
            continue
        draw = np.random.default_rng([seed, *name.encode()]).standard_normal
        yield name, draw(shape, np.float32) * np.float32(std(name, shape))


def is_table(name):
    """Whether a parameter is an embedding or the head, wherever in the model it stands."""
    return name.endswith(TABLES)


def _group(name, shape):
    """0: matrices, 1: tables, 2: vectors."""
    return 2 if len(shape) == 1 else 1 if is_table(name) else 0
