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

import numpy as np

from npgpt.gradcheck.derivative import TOLERANCES, like
from npgpt.gradcheck.direction import check_direction
from npgpt.gradcheck.leaves import copied, leaves
from npgpt.gradcheck.point import Point, called
from npgpt.gradcheck.report import Report

METHODS = {"both": ("complex", "central"), "complex": ("complex",), "central": ("central",)}


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
        npgpt.gradcheck.report.GradientError: the gradient of x (3,) is wrong: expected ...
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
        y, _ = called(forward, copied(inputs))
        dy = like(y, lambda a: rng.standard_normal(a.shape))
        point = Point(forward, backward, inputs, arrays, y, dy)
        for array in arrays:
            shape = array.of(inputs).shape
            for u in _unit_vectors(shape) if every_element else [rng.standard_normal(shape)]:
                check_direction(point, array, u, tolerances, report)
                report.directions += array is arrays[0]
    return report


def _refuses_complex(forward, inputs):
    """-> why the forward does not accept complex numbers, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            called(forward, copied(inputs, np.complex128))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _unit_vectors(shape):
    for i in range(math.prod(shape)):
        u = np.zeros(shape)
        u.flat[i] = 1
        yield u


def _argument_names(forward, count):
    code = getattr(getattr(forward, "__wrapped__", forward), "__code__", None)
    found = code.co_varnames[:code.co_argcount] if code else ()
    return found if len(found) >= count else [f"input {i}" for i in range(count)]
