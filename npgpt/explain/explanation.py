"""An explanation: a subject's formula, its forward and backward step by step, and the check."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from npgpt.errors import UserError
from npgpt.explain.measure import Check, check_each_number, differentiable, verdict
from npgpt.explain.subjects import SUBJECTS, Draw
from npgpt.explain.trace import Step, trace
from npgpt.explain.values import Seen

MOST_NUMBERS = 2000       # of the inputs


@dataclass
class Explanation:
    """Everything that a terminal or a page shows."""

    name: str
    path: str                   # of the source file, from the root of the checkout
    formula: str                # its docstring
    sizes: dict[str, int]
    seed: int
    forward: list[Step]
    backward: list[Step]
    output: str                 # what the forward's result is called, and its gradient
    gradients: list[str]        # what the backward's results are called
    step: float                 # of the differences
    checks: list[Check]
    error: float                # the largest that npgpt.gradcheck found, by the complex step
    message: str                # of its error; "" if the gradients are right

    @property
    def right(self):
        """Whether the backward is the derivative of the forward."""
        return not self.message and all(check.right for check in self.checks)

    @property
    def has_rounding(self):
        """Whether a number is shown that is only what rounding left of 0."""
        arrays = [value.data for step in (*self.forward, *self.backward) for value in step.values
                  if value.data is not None and value.data.dtype.kind == "f" and not value.brief]
        return any(((array != 0) & (abs(array) < 1e-14)).any() for array in arrays)


def explain(name, sizes, seed):
    """Run a subject's functions on random numbers -> Explanation."""
    subject = SUBJECTS[name]
    draw, seen = Draw(seed), Seen()
    inputs = subject.inputs(sizes, draw)
    count = sum(_size(x) for x in differentiable(inputs).values())
    if count > MOST_NUMBERS:
        raise UserError(f"--shape makes {count} numbers of the inputs, and the gradient of each is "
                        f"measured; at most {MOST_NUMBERS} are")
    forward, plain_backward = map(inspect.unwrap, subject.functions())

    def backward(dy, cache):
        if not subject.adds:
            return plain_backward(dy, cache)
        grads = {key: np.zeros_like(array, dtype=np.float64) for key, array in inputs["p"].items()}
        plain_backward(dy, cache, grads)
        return grads

    (y, cache), forward_steps = trace(
        forward, lambda: forward(*inputs.values()), seen, [subject.output, "cache"])
    if subject.upstream:
        dy, note = subject.upstream(y, inputs, draw)
    else:
        dy, note = draw(*y.shape), "random"
    names = {key: "grads" if subject.adds else f"d{key}" for key in differentiable(inputs)}
    gradients = list(names.values())
    result, backward_steps = trace(plain_backward, lambda: backward(dy, cache), seen, gradients)

    notes = dict.fromkeys(differentiable(inputs), "random") | subject.notes
    _annotate(forward_steps, notes, subject.brief)
    _annotate(backward_steps, {_first_argument(plain_backward): note, "grads": "to add to",
                               "cache": "what the forward kept"}, subject.brief)

    error, message = verdict(forward, backward, inputs)
    found = _by_input(result, inputs)
    step, checks = check_each_number(forward, inputs, dy, found, names)
    return Explanation(
        name, forward.__module__.replace(".", "/") + ".py", subject.text, sizes, seed,
        forward_steps, backward_steps, subject.output, gradients, step, checks, error, message,
    )


def _size(x):
    return sum(map(_size, x.values())) if isinstance(x, Mapping) else x.size


def _by_input(result, inputs):
    """What a backward returned -> input -> gradient; nothing if they do not belong together."""
    gradients = result if isinstance(result, tuple) else (result,)
    gradients = [gradient for gradient in gradients if gradient is not None]
    of = differentiable(inputs)
    if len(gradients) != len(of) or any(
        getattr(gradient, "keys", dict)() != getattr(x, "keys", dict)()
        for gradient, x in zip(gradients, of.values())
    ):
        return {}
    return dict(zip(of, gradients))


def _annotate(steps, notes, brief):
    """Say of a function's arguments where they come from; brief: arrays of floats in short."""
    for value in steps[0].values:
        value.note = notes.get(value.name.partition("[")[0], "")
    for step in steps:
        for value in step.values:
            value.brief |= brief and value.data is not None and value.data.dtype.kind == "f"


def _first_argument(function):
    return function.__code__.co_varnames[0]
