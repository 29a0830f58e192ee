"""What explain measures by finite differences, and its verdict."""

import math

import numpy as np
import pytest

from npgpt.explain.measure import Check, check_each_number, differentiable, verdict

X = np.array([0.5, -1.0, 2.0])
DY = np.array([1.0, -2.0, 0.5])


def checks_of(forward, found, inputs=None):
    inputs = inputs or {"x": X}
    return check_each_number(forward, inputs, DY, {"x": found},
                             lambda name, path: "d" + ".".join([name, *path]))


@pytest.mark.parametrize(("factor", "error"), [(1.0, 0.0), (0.5, 0.5), (2.0, 0.5), (0.0, 1.0)])
def test_error_is_relative_to_the_larger_gradient(factor, error):
    _, (check,) = checks_of(lambda x: (3 * x, ()), 3 * DY * factor)
    assert check.error == pytest.approx(error, abs=1e-9)
    assert check.right == (factor == 1)
    assert check.name == "dx" and not check.brief
    np.testing.assert_allclose(check.measured, 3 * DY)
    assert check.found.tolist() == (3 * DY * factor).tolist()


def test_rounding_errors_of_a_gradient_of_zero_are_right():
    """They are relative to a hundredth of dy."""
    _, (check,) = checks_of(lambda x: (0 * x, ()), np.array([1e-12, 0, 0]))
    assert check.right
    assert check.error == pytest.approx(1e-12 / (1e-2 * np.linalg.norm(DY)))


def test_nothing_to_differ_is_right():
    _, (check,) = check_each_number(lambda x: (x, ()), {"x": X}, np.zeros(3), {"x": np.zeros(3)},
                                    lambda name, path: name)
    assert check.error == 0


def test_measured_gradient_has_the_shape_of_the_input():
    x = X[:, None]
    _, (check,) = checks_of(lambda x: (x[:, 0], ()), DY[:, None], {"x": x})
    assert check.right and check.measured.shape == (3, 1)


def test_arrays_of_floats_and_mappings_are_differentiable():
    inputs = {"x": X, "p": {"w": X}, "idx": np.arange(3), "n": 2, "rate": 0.5, "mask": X > 0}
    assert differentiable(inputs).keys() == {"x", "p"}


@pytest.mark.parametrize(("frequency", "step"), [(1, 1e-5), (6000, 1e-6)])
def test_smaller_step_is_tried_where_the_curvature_is_high(frequency, step):
    h, (check,) = checks_of(lambda x: (np.sin(frequency * x), ()),
                            frequency * np.cos(frequency * X) * DY)
    assert check.right and h == step


def test_parameters_of_a_mapping_are_brief():
    def forward(p):
        return p["w"] * 2, ()

    for gradient, right in ((2 * DY, True), (np.zeros(2), False)):
        _, (check,) = checks_of(forward, {"w": gradient}, {"x": {"w": X}})
        assert (check.name, check.brief, check.right) == ("dx.w", True, right)


def test_gradient_of_another_shape_is_wrong_and_has_no_error():
    _, (check,) = checks_of(lambda x: (x, ()), np.zeros(2))
    assert math.isnan(check.error) and not check.right and check.brief is False
    assert check.found.tolist() == [0, 0]
    np.testing.assert_allclose(check.measured, DY)


def test_elements_that_differ_are_marked():
    found, measured = np.array([1.0, 2.0, 5.0]), np.array([1.0, 1.0, 5.0])
    assert Check("dx", found, measured, 0.2).far.tolist() == [False, True, False]
    assert Check("dx", found, measured, 0.0).far.tolist() == [False, False, False]


def test_verdict_names_the_input():
    def forward(*inputs):
        return inputs[0] * inputs[1], inputs

    def backward(dy, cache, wrong=1.0):
        return dy * cache[1], dy * cache[0] * wrong

    inputs = {"first": X, "second": X + 1}
    error, message = verdict(forward, backward, inputs)
    assert error < 1e-12 and message == ""
    error, message = verdict(forward, lambda dy, cache: backward(dy, cache, 1.1), inputs)
    assert math.isnan(error) and "the gradient of second (3,) is wrong" in message
