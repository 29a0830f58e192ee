"""The derivative of a function along a direction, from the function's values alone, in float64.

`along` is t -> f(x + t u), with the value y at 0, and its derivative there is J u.

    complex step           Im along(i h) / h, h = 1e-20. No subtraction, so no cancellation: exact
                           to rounding (Squire and Trapp 1998), where f is analytic.
    central differences    four points, h = 1e-5, error of order h⁴. They work for any function, and
                           lose half of the digits.

A function is not analytic if it takes the absolute value of a complex number or one of its parts:
abs, std, var, norm, .real, a comparison, a cast to float. The complex step then misses the part of
the derivative that passes through that operation.

At a kink, as of ReLU at 0, the slopes on the two sides differ, and there is no derivative.
"""

import numpy as np

TOLERANCES = {"complex": 1e-12, "central": 1e-7}     # of a relative error
FLOOR = 1e-2     # smallest scale of an error, relative to u: a gradient that is exactly zero is
                 # computed as a rounding error
ROUNDING = {"complex": 0.0, "central": 1e-4}     # the same, relative to the part of y that changes:
                 # central differences subtract numbers of this size
STEPS = {"complex": (1e-20,), "central": (1e-5, 1e-6, 1e-4)}     # if one fails, the next is tried:
                 # a smaller step is better at high curvature, a larger one elsewhere


def complex_step(along, h):
    """-> J u, of the shape of y."""
    return like(along(1j * h), lambda a: a.imag / h)


def central_differences(along, h):
    """-> J u, of the shape of y. With two points the error would be of order h²."""
    far_left, left, right, far_right = (along(step * h) for step in (-2, -1, 1, 2))
    return like(left, lambda a, b, c, d: ((c - b) * 8 - (d - a)) / (12 * h),
                far_left, left, right, far_right)


def kinks(along, y):
    """-> for each number of y, by how much the slopes on the two sides of 0 differ at a kink, else
    0.

    Over a step h the slope of a smooth function changes by h times its curvature: ten times less
    for a step ten times smaller. At a kink near 0 the change does not depend on the step. A kink
    that is far enough from 0 for the smallest of STEPS may be missed.
    """
    def change_of_slope(h):
        return like(y, lambda a, b, c: np.abs(c - 2 * b + a) / h, along(-h), y, along(h))

    noise = 1e-9 * norm(y)

    def at_kink(small, large):
        return np.where((small > large / 2) & (small < large * 2) & (small > noise), small, 0.0)

    return like(y, at_kink, change_of_slope(1e-5), change_of_slope(1e-4))


def rounding(method, ju, y):
    """The smallest scale of an error in J u, if rounding errors of y are not to count."""
    return ROUNDING[method] * norm(like(y, lambda a, slope: a * (slope != 0), y, ju))


def like(y, function, *arguments):
    """function of y's arrays, or of the arrays of other results of y's form: an array, or a tuple
    of arrays if y is a tuple."""
    arguments = [parts(a) for a in arguments or (y,)]
    results = tuple(map(function, *arguments))
    return results if isinstance(y, tuple) else results[0]


def parts(y):
    """An array or a tuple of arrays -> a tuple of arrays."""
    return tuple(map(np.asarray, y if isinstance(y, tuple) else (y,)))


def dot(a, b):
    """The inner product of two arrays, or of two tuples of arrays."""
    return float(sum(np.vdot(p, q) for p, q in zip(parts(a), parts(b))))


def norm(a):
    """The Euclidean norm of an array, or of a tuple of arrays as one vector."""
    return float(np.sqrt(dot(a, a)))
