"""The check along one direction: the derivative of the forward against the backward's."""

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
from npgpt.gradcheck.report import GradientError

DERIVATIVES = {"complex": complex_step, "central": central_differences}
DISAGREE = (
    "the complex step and central differences disagree about the forward: it is not analytic (look "
    "for abs, std, var, norm, .real, a comparison, or a cast to float)"
)


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


def check_direction(point, array, u, tolerances, report):
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
