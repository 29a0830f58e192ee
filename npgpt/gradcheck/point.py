"""One point of a check: the forward at some inputs, and what the backward returns there."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from npgpt.gradcheck.derivative import like
from npgpt.gradcheck.leaves import copied, flat, has_gradient
from npgpt.gradcheck.report import GradientError


@dataclass
class Point:
    """A forward at some inputs with a dy, and the gradients that the backward returns for it. Every
    call gets copies: a function that changes its arguments cannot change what is compared."""

    forward: Callable
    backward: Callable
    inputs: list
    arrays: list             # of Leaf
    y: object
    dy: object

    def __post_init__(self):
        _, cache = called(self.forward, copied(self.inputs))
        gradients = self.backward(like(self.y, np.copy, self.dy), cache)
        self.gradients = _by_leaf(gradients, self.inputs, self.arrays)

    def along(self, array, u):
        """-> t -> y, with one array moved by t u."""
        return lambda t: called(self.forward, array.moved(self.inputs, t * u))[0]

    def without(self, jumps):
        """The same point with a dy of 0 where jumps, of the form of y, is not."""
        dy = like(self.y, lambda a, jump: np.where(jump, 0.0, a), self.dy, jumps)
        return replace(self, dy=dy)


def called(forward, inputs):
    """-> y, cache."""
    result = forward(*inputs)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError("forward must return a tuple of y and the cache")
    return result


def _by_leaf(gradients, inputs, arrays):
    """What a backward returned -> the gradient of each of the arrays, by Leaf. Raises GradientError
    unless the number, the names and the shapes of the gradients are those of the inputs."""
    gradients = list(gradients) if isinstance(gradients, (tuple, list)) else [gradients]
    gradients = [g for g in gradients if g is not None]
    owners = [i for i, x in enumerate(inputs) if has_gradient(x)]
    if len(gradients) != len(owners):
        raise GradientError(f"{len(gradients)} gradients for {len(owners)} differentiable inputs")
    paths = {i: flat(gradient) for i, gradient in zip(owners, gradients)}
    for i in owners:
        different = paths[i].keys() ^ flat(inputs[i]).keys()
        if different:
            names = sorted(".".join(map(str, path)) for path in different)
            raise GradientError(f"gradients and parameters differ in their names: "
                                f"{', '.join(names)}")
    found = {}
    for array in arrays:
        dx, shape = np.asarray(paths[array.i][array.path]), array.of(inputs).shape
        if dx.shape != shape:
            raise GradientError(f"the gradient of {array.name} {shape} has the shape {dx.shape}")
        found[array] = dx
    return found
