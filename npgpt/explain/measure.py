"""The gradients measured by finite differences: from the forward alone, one number at a time.

    dx[i] = (the change of sum(y * dy) when x[i] changes by h) / h

The differences are the four-point differences of npgpt.gradcheck. They do not use the backward, so
a backward that agrees with them is right.
"""

import math
from dataclasses import dataclass

import numpy as np

from npgpt.explain.nested import leaves, replaced
from npgpt.gradcheck import GradientError, check_gradients
from npgpt.gradcheck.derivative import FLOOR, STEPS, TOLERANCES, central_differences, parts
from npgpt.gradcheck.leaves import has_gradient

TOLERANCE = TOLERANCES["central"]


@dataclass
class Check:
    """The gradient of one array: what the backward returned, and what was measured."""

    name: str                 # of the gradient: dx
    found: np.ndarray         # from the backward
    measured: np.ndarray
    error: float              # relative; nan if the shapes differ
    brief: bool = False       # one of many: only the norms are shown

    @property
    def right(self):
        return self.error <= TOLERANCE

    @property
    def far(self):
        """bool: the elements that differ. All False if the gradient is right."""
        if self.right:
            return np.zeros(self.found.shape, bool)
        near = np.abs(self.found - self.measured) <= TOLERANCE * np.abs(self.measured).max()
        return ~near


def check_each_number(forward, inputs, dy, found, name_of):
    """-> the step h, and a Check for each array.

    found: input -> its gradient from the backward. name_of: (input, path in it) -> the name of that
    gradient. If a check fails, the next step is tried, as in npgpt.gradcheck.
    """
    for h in STEPS["central"]:
        checks = []
        for name in found:
            gradients = dict(leaves(found[name]))
            for path, _ in leaves(inputs[name]):
                measured = _measured(forward, inputs, dy, h, name, path)
                checks.append(
                    _check(name_of(name, path), gradients[path], measured, dy, bool(path)))
        if all(check.right for check in checks):
            break
    return h, checks


def verdict(forward, backward, inputs):
    """The result of npgpt.gradcheck -> largest error of its most exact method, message or ""."""
    try:
        report = check_gradients(forward, backward, list(inputs.values()), names=list(inputs))
    except GradientError as error:
        return math.nan, str(error)
    return min(report.of_method.values()), ""


def differentiable(inputs):
    """The inputs that have a gradient: arrays of floats, and mappings of them."""
    return {name: x for name, x in inputs.items() if has_gradient(x)}


def _measured(forward, inputs, dy, h, name, path):
    """The gradient of sum(y * dy) for the array at a path of one input, number by number."""
    x = dict(leaves(inputs[name]))[path]

    def moved(i, step):
        array = x.copy()
        array.flat[i] += step
        return forward(*{**inputs, name: replaced(inputs[name], path, array)}.values())[0]

    numbers = [sum(np.vdot(dy, part)
                   for part in parts(central_differences(lambda s, i=i: moved(i, s), h)))
               for i in range(x.size)]
    return np.array(numbers).reshape(x.shape)


def _check(name, found, measured, dy, brief):
    if np.shape(found) != measured.shape:
        return Check(name, np.asarray(found), measured, math.nan, brief)
    scale = max(np.linalg.norm(found), np.linalg.norm(measured), FLOOR * np.linalg.norm(dy))
    error = np.linalg.norm(found - measured) / scale if scale else 0.0
    return Check(name, found, measured, float(error), brief)
