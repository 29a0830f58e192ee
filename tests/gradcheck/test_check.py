"""The checker must reject wrong gradients and name the argument."""

import doctest

import numpy as np
import pytest

from npgpt.gradcheck import GradientError, check_gradients
from npgpt.gradcheck import check as checker


def square(x):
    return x * x, (x,)


def product(a, b):
    return a * b, (a, b)


@pytest.mark.parametrize("method", ["complex", "central"])
def test_correct_gradient_passes_and_its_error_is_reported(method):
    report = check_gradients(square, lambda dy, cache: 2 * cache[0] * dy, [np.ones(3)],
                             method=method)
    assert (report.examples, report.directions) == (1, 2)
    both = report + report
    assert (both.examples, both.directions, both.error) == (2, 4, report.error)
    assert report.errors.keys() == {"x"}
    assert report.error < 1e-7


@pytest.mark.parametrize("method", ["complex", "central"])
def test_wrong_factor_is_detected_and_the_argument_is_named(method):
    with pytest.raises(GradientError, match=r"gradient of x \(3,\) is wrong: expected .* found"):
        check_gradients(square, lambda dy, cache: 3 * cache[0] * dy, [np.ones(3)], method=method)


def test_complex_step_detects_an_error_of_1e_10():
    with pytest.raises(GradientError):
        check_gradients(square, lambda dy, cache: (2 + 1e-10) * cache[0] * dy, [np.ones(3)])


def test_gradients_in_the_wrong_order_are_detected():
    a, b = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    check_gradients(product, lambda dy, cache: (dy * cache[1], dy * cache[0]), [a, b])
    with pytest.raises(GradientError, match="gradient of a"):
        check_gradients(product, lambda dy, cache: (dy * cache[0], dy * cache[1]), [a, b])


def test_nan_gradient_is_detected():
    with pytest.raises(GradientError, match="nan"):
        check_gradients(square, lambda dy, cache: np.full(3, np.nan), [np.ones(3)])


def test_zero_instead_of_a_gradient_is_detected():
    with pytest.raises(GradientError):
        check_gradients(square, lambda dy, cache: np.zeros(3), [np.ones(3)])


def test_gradient_of_another_shape_is_detected():
    with pytest.raises(GradientError, match="has the shape"):
        check_gradients(square, lambda dy, cache: (2 * cache[0] * dy).sum(), [np.ones(3)])


def test_missing_gradient_is_detected():
    with pytest.raises(GradientError, match="1 gradients for 2"):
        check_gradients(product, lambda dy, cache: dy * cache[1], [np.ones(2), np.ones(2)])


def test_mappings_are_checked_by_name():
    def forward(x, p):
        return x * p["scale"] + p["shift"], (x, p)

    def backward(dy, cache, wrong=1.0):
        x, p = cache
        return dy * p["scale"], {"scale": dy * x, "shift": dy * wrong}

    inputs = [np.arange(3.0), {"scale": np.full(3, 2.0), "shift": np.ones(3)}]
    assert check_gradients(forward, backward, inputs).errors.keys() == {"x", "scale", "shift"}
    with pytest.raises(GradientError, match="gradient of shift"):
        check_gradients(forward, lambda dy, cache: backward(dy, cache, wrong=1.1), inputs)
    with pytest.raises(GradientError, match="differ in their names: shift"):
        check_gradients(forward, lambda dy, cache: (dy * 2, {"scale": dy * cache[0]}), inputs)


def test_two_mappings_may_share_a_name():
    def forward(p, q):
        return p["w"] * q["w"], (p["w"], q["w"])

    def backward(dy, cache):
        return {"w": dy * cache[1]}, {"w": dy * cache[0]}

    inputs = [{"w": np.arange(3.0)}, {"w": np.full(3, 5.0)}]
    check_gradients(forward, backward, inputs)
    with pytest.raises(GradientError, match="gradient of w"):
        check_gradients(forward, lambda dy, cache: backward(dy, cache)[::-1], inputs)


def test_example_in_the_documentation_runs():
    assert doctest.testmod(checker, optionflags=doctest.ELLIPSIS).attempted > 0
    assert doctest.testmod(checker, optionflags=doctest.ELLIPSIS).failed == 0


def test_tuples_of_outputs_are_checked_together():
    def forward(x):
        return (x * 2, x * x), (x,)

    def backward(dy, cache):
        return 2 * dy[0] + 2 * cache[0] * dy[1]

    check_gradients(forward, backward, [np.arange(4.0)])
    with pytest.raises(GradientError):
        check_gradients(forward, lambda dy, cache: 2 * dy[0], [np.arange(4.0)])


def test_integer_inputs_are_skipped():
    def forward(idx, w):
        return w[idx], (idx, w.shape)

    def backward(dy, cache):
        dw = np.zeros(cache[1])
        np.add.at(dw, cache[0], dy)
        return dw

    inputs = [np.array([0, 2, 2]), np.arange(6.0).reshape(3, 2)]
    assert check_gradients(forward, backward, inputs).errors.keys() == {"w"}


def test_gradient_that_is_exactly_zero_passes():
    """Adding a constant to all logits does not change the softmax."""
    def forward(shift):
        z = np.exp(np.arange(4.0) + shift)
        return z / z.sum(), ()

    check_gradients(forward, lambda dy, cache: np.zeros(1), [np.ones(1)])
    check_gradients(forward, lambda dy, cache: np.zeros(1), [np.ones(1)], method="central")


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method must be one of complex, central"):
        check_gradients(square, None, [np.ones(1)], method="forward")
