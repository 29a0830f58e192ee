"""Checks numerically that a backward pass is the derivative of its forward pass.

For a forward y = f(x) and a backward that returns dx for dy, draw a random direction u of the shape
of x and a random dy. Two numbers must agree:

    <J u, dy>     the derivative of <y, dy> along u: from the forward alone
    <u, dx>       the same by the chain rule: from the backward

J u is computed in one of two ways, in float64:

    "complex"   Im f(x + i h u) / h, h = 1e-20      no subtraction, so no cancellation: exact to
                                                    rounding (Squire and Trapp 1998)
    "central"   four points around x, h = 1e-5      works for any function; error of order h⁴

The complex step needs a forward that works with complex numbers: no abs, no casts to float, no
comparison that depends on the imaginary part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

TOLERANCES = {"complex": 1e-12, "central": 1e-7}
STEPS = {"complex": (1e-20,), "central": (1e-5, 1e-6, 1e-4)}     # if one fails, the next is tried:
                 # a smaller step is better at high curvature, a larger one elsewhere
FLOOR = 1e-3     # smallest scale of an error, relative to u and dy: a gradient that is exactly zero
                 # is computed as a rounding error


class GradientError(AssertionError):
    """A backward pass is not the derivative of its forward pass."""


@dataclass
class Report:
    """What was checked, and the largest differences found."""

    method: str
    examples: int = 1        # number of points checked
    directions: int = 0      # random directions in total
    errors: dict[str, float] = field(default_factory=dict)     # argument -> largest relative error

    @property
    def error(self):
        """The largest relative error over all arguments."""
        return max(self.errors.values(), default=0.0)

    def __add__(self, other):
        """Combine two reports of the same method."""
        names = self.errors | other.errors
        return Report(
            self.method, self.examples + other.examples, self.directions + other.directions,
            {name: max(self.errors.get(name, 0.0), other.errors.get(name, 0.0)) for name in names},
        )


def check_gradients(forward, backward, inputs, *, method="complex", names=None, tolerance=None,
                    seed=0, directions=2):
    """Check backward against forward at `inputs` -> Report, or raise GradientError.

    forward(*inputs) -> y, cache. y: an array, or a tuple of arrays.
    backward(dy, cache) -> the gradients of the differentiable inputs, in their order; dy is a
        tuple if y is.
    inputs: arrays, or mappings of names to arrays for composites, nested to any depth. Float arrays
        are differentiated; everything else (token ids, masks, options) is passed on unchanged.
    method: "complex" or "central", see above.
    names: names of the inputs for messages. Default: the argument names of `forward`, if known.
    tolerance: largest relative error. Default: 1e-12 for "complex", 1e-7 for "central".

        >>> import numpy as np
        >>> def forward(x): return x * x, (x,)
        >>> def backward(dy, cache): return 3 * cache[0] * dy      # should be 2
        >>> check_gradients(forward, backward, [np.ones(3)])
        Traceback (most recent call last):
        npgpt.gradcheck.check.GradientError: the gradient of x (3,) is wrong: expected ...
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    tolerance = TOLERANCES[method] if tolerance is None else tolerance
    rng = np.random.default_rng(seed)
    inputs = [_as_float64(x) for x in inputs]
    names = names or _argument_names(forward, len(inputs))
    report = Report(method)

    for _ in range(directions):
        y, cache = forward(*inputs)
        dy = _like(y, lambda a: rng.standard_normal(a.shape))
        gradients = _gradients_by_leaf(backward(dy, cache), inputs)

        for i, name, path in _leaves(inputs, names):
            x, dx = _leaf(inputs, i, path), gradients[i, path]
            if dx.shape != x.shape:
                raise GradientError(f"the gradient of {name} {x.shape} has the shape {dx.shape}")
            u = rng.standard_normal(x.shape)
            found = float(np.vdot(u, dx))
            for h in STEPS[method]:
                ju = METHODS[method](_along(u, forward, inputs, i, path), h)
                expected = _dot(ju, dy)
                scale = max(_norm(ju) * _norm(dy), _norm(u) * _norm(dx),
                            FLOOR * _norm(u) * _norm(dy))
                error = abs(expected - found) / scale if scale else 0.0
                if error <= tolerance:
                    break
            else:                               # also if the error is NaN
                raise GradientError(
                    f"the gradient of {name} {x.shape} is wrong: expected a directional derivative "
                    f"of {expected:.9g}, found {found:.9g}, relative error {error:.1e} > "
                    f"{tolerance:.0e} ({method})"
                )
            report.errors[name] = max(report.errors.get(name, 0.0), error)
        report.directions += 1
    return report


def _along(u, forward, inputs, i, path):
    """-> function of a step that returns y with one of the inputs moved by step * u."""
    return lambda step: forward(*_moved(inputs, i, path, step * u))[0]


def _complex_step(along, h):
    """along: step -> f(x + step u). Without a subtraction the step can be this small."""
    return _like(along(1j * h), lambda a: a.imag / h)


def _central_differences(along, h):
    """The four-point stencil: its error is of order h⁴, that of two points of order h²."""
    far_left, left, right, far_right = (_arrays(along(step * h)) for step in (-2, -1, 1, 2))
    return tuple(
        ((c - b) * 8 - (d - a)) / (12 * h)
        for a, b, c, d in zip(far_left, left, right, far_right)
    )


METHODS = {"complex": _complex_step, "central": _central_differences}


def _is_differentiable(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _as_float64(x):
    if isinstance(x, Mapping):
        return {name: _as_float64(a) for name, a in x.items()}
    return x.astype(np.float64) if _is_differentiable(x) else x


def _leaves(inputs, names):
    """-> (index of the input, displayed name, path in the mapping) for each array."""
    for i, x in enumerate(inputs):
        if isinstance(x, Mapping):
            yield from ((i, ".".join(map(str, path)), path) for path, a in _flat(x).items()
                        if _is_differentiable(a))
        elif _is_differentiable(x):
            yield i, names[i], ()


def _flat(mapping, path=()):
    """A nested mapping -> mapping of paths, tuples of keys, to what lies there."""
    found = {}
    for key, x in mapping.items():
        found |= _flat(x, (*path, key)) if isinstance(x, Mapping) else {(*path, key): x}
    return found


def _leaf(inputs, i, path):
    x = inputs[i]
    for key in path:
        x = x[key]
    return x


def _moved(inputs, i, path, step):
    """The inputs with one array moved by step. If the step is complex, all become complex."""
    dtype = np.result_type(step.dtype, np.float64)

    def copied(x):
        if isinstance(x, Mapping):
            return {key: copied(part) for key, part in x.items()}
        return x.astype(dtype) if _is_differentiable(x) else x

    inputs = [copied(x) for x in inputs]
    *branch, last = i, *path
    _leaf([inputs], 0, branch)[last] = _leaf(inputs, i, path) + step
    return inputs


def _gradients_by_leaf(gradients, inputs):
    """The result of a backward -> mapping of (index of the input, path) to gradient."""
    if not isinstance(gradients, tuple):
        gradients = (gradients,)
    gradients = [g for g in gradients if g is not None]
    owners = [(i, x) for i, x in enumerate(inputs)
              if isinstance(x, Mapping) or _is_differentiable(x)]
    if len(gradients) != len(owners):
        raise GradientError(f"{len(gradients)} gradients for {len(owners)} differentiable inputs")
    by_leaf = {}
    for (i, x), gradient in zip(owners, gradients):
        if isinstance(x, Mapping):
            found = _flat(gradient)
            if found.keys() != _flat(x).keys():
                paths = found.keys() ^ _flat(x).keys()
                different = sorted(".".join(map(str, path)) for path in paths)
                raise GradientError("gradients and parameters differ in their names: "
                                    + ", ".join(different))
            by_leaf.update({(i, path): a for path, a in found.items()})
        else:
            by_leaf[i, ()] = gradient
    return by_leaf


def _argument_names(forward, count):
    code = getattr(getattr(forward, "__wrapped__", forward), "__code__", None)
    found = code.co_varnames[:code.co_argcount] if code else ()
    return found if len(found) >= count else [f"input {i}" for i in range(count)]


def _arrays(y):
    return y if isinstance(y, tuple) else (y,)


def _like(y, make):
    return tuple(make(np.asarray(a)) for a in y) if isinstance(y, tuple) else make(np.asarray(y))


def _dot(a, b):
    return float(sum(np.vdot(p, q) for p, q in zip(_arrays(a), _arrays(b))))


def _norm(a):
    return float(np.sqrt(_dot(a, a)))
