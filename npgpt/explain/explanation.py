"""An explanation: a subject's formula, its forward and backward step by step, and the checks."""

import functools
import inspect
from dataclasses import dataclass

import numpy as np

from npgpt.errors import UserError
from npgpt.explain.inputs import Draw
from npgpt.explain.measure import Check, check_each_number, differentiable, verdict
from npgpt.explain.nested import dotted, label, leaves
from npgpt.explain.subjects import SUBJECTS
from npgpt.explain.trace import Step, trace
from npgpt.explain.values import Seen
from npgpt.models.parameters import Gradients, Param, count, flatten

MOST_NUMBERS = 2000       # of the inputs


@dataclass
class Explanation:
    """Everything that the terminal or the page shows."""

    name: str
    path: str                   # of the source file, from the root of the checkout
    formula: str                # the docstring of that file
    sizes: dict[str, int]
    seed: int
    forward: list[Step]
    backward: list[Step]
    output: str                 # the name of the forward's result
    gradients: list[str]        # the names of the backward's results
    step: float                 # h of the finite differences
    checks: list[Check]
    error: float                # the largest that npgpt.gradcheck found
    message: str                # its error message; "" if the gradients are right

    @property
    def right(self):
        """Whether the backward is the derivative of the forward."""
        return not self.message and all(check.right for check in self.checks)

    @property
    def has_rounding(self):
        """Whether a number is shown that would be 0 without rounding errors."""
        arrays = [value.data for step in (*self.forward, *self.backward) for value in step.values
                  if value.data is not None and value.data.dtype.kind == "f" and not value.brief]
        return any(((array != 0) & (abs(array) < 1e-14)).any() for array in arrays)


def explain(name, sizes, seed):
    """Run a subject's functions on random numbers -> Explanation."""
    subject = SUBJECTS[name]
    draw, seen = Draw(seed), Seen()
    drawn = subject.inputs(sizes, draw)
    constants = {name: drawn[name] for name in subject.constants}
    inputs = {name: x for name, x in drawn.items() if name not in constants}
    size = sum(array.size for x in differentiable(inputs).values() for _, array in leaves(x))
    if size > MOST_NUMBERS:
        raise UserError(f"the inputs must have at most {MOST_NUMBERS} numbers in all, got {size}; "
                        "give smaller sizes in `shape`")
    function, plain_backward = map(inspect.unwrap, subject.functions())
    forward = functools.partial(function, **constants)

    def backward(dy, cache):
        if not subject.adds:
            return plain_backward(dy, cache)
        (p,) = differentiable(inputs).values()
        like = {name: Param(array.shape, "vector") for name, array in flatten(p).items()}
        grads = Gradients(like, np.zeros(count(like)))
        plain_backward(dy, cache, grads)
        return grads.tree

    (y, cache), forward_steps = trace(
        function, lambda: forward(*inputs.values()), seen, [subject.output, "cache"])
    if subject.upstream:
        dy, note = subject.upstream(y, inputs, draw)
    else:
        dy, note = draw(*y.shape), "random"
    names = {key: "grads" if subject.adds else f"d{key}" for key in differentiable(inputs)}
    gradients = list(names.values())
    result, backward_steps = trace(plain_backward, lambda: backward(dy, cache), seen, gradients)

    notes = dict.fromkeys(differentiable(inputs), "random") | subject.notes
    _annotate(forward_steps, notes, subject.brief)
    _annotate(backward_steps, {_first_argument(plain_backward): note,
                               "grads": "the gradients are added to it",
                               "cache": "returned by the forward"}, subject.brief)

    error, message = verdict(forward, backward, inputs)
    found = _by_input(result, inputs)
    step, checks = check_each_number(
        forward, inputs, dy, found,
        lambda key, path: label("grads", [dotted(path)]) if subject.adds
        else label(names[key], path))
    return Explanation(
        name, function.__module__.replace(".", "/") + ".py", subject.text, sizes, seed,
        forward_steps, backward_steps, subject.output, gradients, step, checks, error, message,
    )


def _by_input(result, inputs):
    """What a backward returned -> input -> gradient; {} if the two do not match."""
    gradients = result if isinstance(result, tuple) else (result,)
    gradients = [gradient for gradient in gradients if gradient is not None]
    of = differentiable(inputs)
    if len(gradients) != len(of) or any(
        _paths(gradient) != _paths(x)
        for gradient, x in zip(gradients, of.values())
    ):
        return {}
    return dict(zip(of, gradients))


def _paths(x):
    return {path for path, _ in leaves(x)}


def _annotate(steps, notes, brief):
    """Note where a function's arguments come from. brief: show only the norm of float arrays."""
    for value in steps[0].values:
        value.note = notes.get(value.name.partition("[")[0], "")
    for step in steps:
        for value in step.values:
            value.brief |= brief and value.data is not None and value.data.dtype.kind == "f"


def _first_argument(function):
    return function.__code__.co_varnames[0]
