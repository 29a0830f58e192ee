"""Checks numerically that a backward pass is the derivative of its forward pass.

For a forward y = f(x) and a backward that returns dx for dy, draw a random direction u of the shape
of x and a random dy. Two numbers must agree:

    <J u, dy>     the derivative of <y, dy> along u: from the forward alone
    <u, dx>       the same by the chain rule: from the backward

J u is measured in two ways, in float64: by the complex step, which is exact but blind to operations
that are not analytic, and by central differences, which work for any forward but lose half of the
digits (derivative.py). Where the two agree, the complex step decides, and otherwise the other.

Limits. A random direction weighs all elements of x at once, so an error is detected only if it
changes <u, dx> by more than the tolerance times the norms of u and dx. One wrong element of a
million changes it by about a millionth of that, times the element's own relative error. The complex
step detects it if it is wrong by a thousandth of its size; central differences alone may miss it
even if it is 0. directions="all" moves each element by itself, and detects it in both ways.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from npgpt.gradcheck.derivative import (
    FLOOR,
    STEPS,
    TOLERANCES,
    central_differences,
    complex_step,
    dot,
    kinks,
    like,
    norm,
    rounding,
)
from npgpt.gradcheck.leaves import copied, flat, has_gradient, leaves

METHODS = {"both": ("complex", "central"), "complex": ("complex",), "central": ("central",)}
DERIVATIVES = {"complex": complex_step, "central": central_differences}
DISAGREE = (
    "the complex step and central differences disagree about the forward: it is not analytic (look "
    "for abs, std, var, norm, .real, a comparison, or a cast to float)"
)


class GradientError(AssertionError):
    """A backward pass is not the derivative of its forward pass."""


@dataclass
class Report:
    """What was checked, the largest differences found, and what was left out."""

    examples: int = 1        # number of points checked
    directions: int = 0      # directions of each array
    errors: dict = field(default_factory=dict)    # argument -> method -> largest relative error
    notes: list = field(default_factory=list)     # sentences: what was left out, and why

    @property
    def error(self):
        """The largest relative error of all."""
        return max(self.of_method.values(), default=0.0)

    @property
    def of_method(self):
        """method -> its largest relative error."""
        largest = {}
        for errors in self.errors.values():
            for method, error in errors.items():
                largest[method] = max(error, largest.get(method, 0.0))
        return largest

    def __add__(self, other):
        """Combine two reports."""
        total = Report(self.examples + other.examples, self.directions + other.directions)
        for report in (self, other):
            for name, errors in report.errors.items():
                for method, error in errors.items():
                    total.record(name, method, error)
            for sentence in report.notes:
                total.note(sentence)
        return total

    def record(self, name, method, error):
        """Keep an error if it is the largest of its argument and method."""
        errors = self.errors.setdefault(name, {})
        errors[method] = max(error, errors.get(method, 0.0))

    def note(self, sentence):
        """Keep a sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)


def check_gradients(forward, backward, inputs, *, method="both", names=None, tolerance=None,
                    seed=0, directions=2):
    """Check backward against forward at `inputs` -> Report, or raise GradientError.

    forward(*inputs) -> y, cache. y: an array, or a tuple of arrays.
    backward(dy, cache) -> the gradients of the differentiable inputs, in their order; dy is a
        tuple if y is.
    inputs: arrays, or mappings of names to arrays for composites, nested to any depth. Float arrays
        are differentiated; everything else (token ids, masks, options) is passed on unchanged.
    method: "both", "central", or "complex", which alone is blind to operations such as abs.
    names: names of the inputs for messages. Default: the argument names of `forward`, if known.
    tolerance: largest relative error. Default: 1e-12 for the complex step, 1e-7 for central
        differences.
    directions: the number of random directions, or "all": each element by itself.

    Outputs at a kink, as of ReLU at 0, have no derivative: they are left out, and the report notes
    it. It also notes if the forward is not analytic or does not accept complex numbers. Raises
    ValueError for an invalid option, and if there is nothing to check.

        >>> import numpy as np
        >>> def forward(x): return x * x, (x,)
        >>> def backward(dy, cache): return 3 * cache[0] * dy      # should be 2
        >>> check_gradients(forward, backward, [np.ones(3)])
        Traceback (most recent call last):
        npgpt.gradcheck.check.GradientError: the gradient of x (3,) is wrong: expected ...
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    every_element = directions == "all"
    if not every_element and directions < 1:
        raise ValueError(f'directions must be at least 1 or "all", got {directions}')
    inputs = copied(list(inputs))
    arrays = leaves(inputs, names or _argument_names(forward, len(inputs)))
    if not arrays:
        raise ValueError("there is nothing to check: no input is an array of floats")
    rng, report = np.random.default_rng(seed), Report()
    tolerances = {m: TOLERANCES[m] if tolerance is None else tolerance for m in METHODS[method]}
    if method == "both" and (reason := _refuses_complex(forward, inputs)):
        report.note(f"the forward does not accept complex numbers ({reason}): its derivative was "
                    "measured by central differences alone")
        tolerances.pop("complex")

    for _ in range(1 if every_element else directions):
        y, _ = _called(forward, copied(inputs))
        dy = like(y, lambda a: rng.standard_normal(a.shape))
        point = _Point(forward, backward, inputs, arrays, y, dy)
        for array in arrays:
            shape = array.of(inputs).shape
            for u in _unit_vectors(shape) if every_element else [rng.standard_normal(shape)]:
                _check_direction(point, array, u, tolerances, report)
                report.directions += array is arrays[0]
    return report


@dataclass
class _Point:
    """A forward at some inputs with a dy, and the gradients that the backward returns for it. Every
    call gets copies: a function that changes its arguments cannot change what is compared."""

    forward: Callable
    backward: Callable
    inputs: list
    arrays: list             # of Leaf
    y: object
    dy: object

    def __post_init__(self):
        _, cache = _called(self.forward, copied(self.inputs))
        gradients = self.backward(like(self.y, np.copy, self.dy), cache)
        self.gradients = _by_leaf(gradients, self.inputs, self.arrays)

    def along(self, array, u):
        """-> t -> y, with one array moved by t u."""
        return lambda t: _called(self.forward, array.moved(self.inputs, t * u))[0]

    def without(self, jumps):
        """The same point with a dy of 0 where jumps, of the form of y, is not."""
        dy = like(self.y, lambda a, jump: np.where(jump, 0.0, a), self.dy, jumps)
        return replace(self, dy=dy)


class _Comparison(NamedTuple):
    """The derivative along a direction as the forward and as the backward have it."""

    ju: object
    expected: float
    found: float
    error: float             # relative
    tolerance: float

    @property
    def agrees(self):
        return self.error <= self.tolerance


def _check_direction(point, array, u, tolerances, report):
    """Compare along u. Raises GradientError."""
    along, hint = point.along(array, u), ""
    found = {m: _compare(m, point, array, u, along, tolerances[m]) for m in tolerances}
    agrees = all(c.agrees for c in found.values())
    if not agrees and norm(jumps := kinks(along, point.y)):
        found = _at_kinks(found, jumps, point, array, u, along, tolerances, report)
    elif len(found) == 2 and not _same_derivative(found, point, u, tolerances["central"]):
        from_complex = found.pop("complex")
        if found["central"].agrees:
            report.note(f"{array.name}: {DISAGREE}; the gradient agrees with central differences")
        else:
            hint = f"; {DISAGREE}"
            hint += ", or too curved here for central differences" if from_complex.agrees else ""
    for method, c in found.items():
        if not c.agrees:
            raise GradientError(
                f"the gradient of {array.name} {u.shape} is wrong: expected a directional "
                f"derivative of {c.expected:.9g}, found {c.found:.9g}, relative error "
                f"{c.error:.1e} > {c.tolerance:.0e} ({method}){hint}"
            )
        report.record(array.name, method, c.error)


def _at_kinks(found, jumps, point, array, u, along, tolerances, report):
    """-> the comparisons without the outputs at a kink, where they did not agree with them."""
    rest = point.without(jumps)
    if norm(rest.dy):
        about = "were left out"
        found |= {m: _compare(m, rest, array, u, along, tolerances[m])
                  for m, c in found.items() if not c.agrees}
    else:
        about = "are all there are; any slope between those on its two sides was accepted"
        slack = dot(like(point.y, np.abs, point.dy), jumps)
        found = {m: c for m, c in found.items() if c.agrees}
        tolerance = tolerances.get("central", TOLERANCES["central"])
        found["central"] = _compare("central", point, array, u, along, tolerance, slack)
    report.note(f"{array.name}: outputs at a kink of the forward, as of ReLU, max or abs, {about}; "
                "move the inputs to check them")
    return found


def _compare(method, point, array, u, along, tolerance, slack=0.0):
    """-> _Comparison by one method: of the first step that agrees, or else of the first. slack: an
    absolute error that does not count."""
    dy, first = point.dy, None
    dx = np.where(u == 0, 0.0, point.gradients[array])         # of the elements that u moves
    found = dot(u, dx)
    for h in STEPS[method]:
        ju = DERIVATIVES[method](along, h)
        expected = dot(ju, dy)
        scale = max(norm(ju) * norm(dy), norm(u) * norm(dx), FLOOR * norm(u) * norm(dy),
                    rounding(method, ju, point.y) * norm(dy))
        error = max(abs(expected - found) - slack, 0.0) / scale if scale else 0.0
        comparison = _Comparison(ju, expected, found, error, tolerance)
        if comparison.agrees:
            return comparison
        first = first or comparison
    return first


def _same_derivative(found, point, u, tolerance):
    """Whether both methods find the same derivative of the forward."""
    exact, central = (found[m].ju for m in ("complex", "central"))
    apart = like(point.y, np.subtract, exact, central)
    return norm(apart) <= tolerance * (norm(central) + FLOOR * norm(u)
                                       + rounding("central", central, point.y))


def _refuses_complex(forward, inputs):
    """-> why the forward does not accept complex numbers, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            _called(forward, copied(inputs, np.complex128))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _called(forward, inputs):
    """-> y, cache."""
    result = forward(*inputs)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError("forward must return a tuple of y and the cache")
    return result


def _unit_vectors(shape):
    for i in range(math.prod(shape)):
        u = np.zeros(shape)
        u.flat[i] = 1
        yield u


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


def _argument_names(forward, count):
    code = getattr(getattr(forward, "__wrapped__", forward), "__code__", None)
    found = code.co_varnames[:code.co_argcount] if code else ()
    return found if len(found) >= count else [f"input {i}" for i in range(count)]
