"""The gradients measured: from the forward alone, one number moved at a time.

    dx[i] = (how sum(y * dy) changes when x[i] moves by h) / h

by the four-point differences of npgpt.gradcheck. They know nothing of the backward, so where both
agree the backward is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from npgpt.gradcheck import GradientError, check_gradients
from npgpt.gradcheck.check import FLOOR, METHODS, STEPS, TOLERANCES

TOLERANCE = TOLERANCES["central"]


@dataclass
class Check:
    """The gradient of one input, as the backward says and as it was measured."""

    name: str                 # of the gradient: dx
    found: np.ndarray
    measured: np.ndarray
    error: float              # relative; nan where the shapes differ
    brief: bool = False       # one of many: the norms are enough

    @property
    def right(self):
        return self.error <= TOLERANCE

    @property
    def far(self):
        """bool, the elements that differ, where any do."""
        if self.right:
            return np.zeros(self.found.shape, bool)
        near = np.abs(self.found - self.measured) <= TOLERANCE * np.abs(self.measured).max()
        return ~near


def check_each_number(forward, inputs, dy, found, names):
    """found, names: for each input that has one, its gradient as the backward says and what that is
    called -> the step taken, and a Check for each array. The next step is taken where one fails, as
    in npgpt.gradcheck."""
    for h in STEPS["central"]:
        checks = []
        for name in found:
            x = inputs[name]
            for key in x if isinstance(x, Mapping) else [None]:
                gradient = found[name] if key is None else found[name][key]
                label = names[name] if key is None else f'{names[name]}["{key}"]'
                measured = _measured(forward, inputs, dy, h, name, key)
                checks.append(_check(label, gradient, measured, dy, key is not None))
        if all(check.right for check in checks):
            break
    return h, checks


def verdict(forward, backward, inputs):
    """What npgpt.gradcheck says, by the complex step -> (largest relative error, message or "")."""
    try:
        report = check_gradients(forward, backward, list(inputs.values()), names=list(inputs))
    except GradientError as error:
        return float("nan"), str(error)
    return report.error, ""


def differentiable(inputs):
    """The inputs that have a gradient: arrays of floats, and mappings of them."""
    return {name: x for name, x in inputs.items()
            if isinstance(x, Mapping) or (isinstance(x, np.ndarray) and x.dtype.kind == "f")}


def _measured(forward, inputs, dy, h, name, key=None):
    """The gradient of sum(y * dy) for one input, or one entry of it, number by number."""
    x = inputs[name] if key is None else inputs[name][key]

    def moved(i, step):
        array = x.copy()
        array.flat[i] += step
        changed = {name: array if key is None else {**inputs[name], key: array}}
        return forward(*{**inputs, **changed}.values())[0]

    flat = [sum(np.vdot(dy, part) for part in METHODS["central"](lambda s, i=i: moved(i, s), h))
            for i in range(x.size)]
    return np.array(flat).reshape(x.shape)


def _check(name, found, measured, dy, brief):
    if np.shape(found) != measured.shape:
        return Check(name, np.asarray(found), measured, float("nan"), brief)
    scale = max(np.linalg.norm(found), np.linalg.norm(measured), FLOOR * np.linalg.norm(dy))
    error = np.linalg.norm(found - measured) / scale if scale else 0.0
    return Check(name, found, measured, float(error), brief)
