import math

import numpy as np
import pytest

from npgpt.layers import gelu_backward, gelu_forward, relu_backward, relu_forward


def test_relu_by_hand():
    x = np.array([-2.0, 0.0, 3.0])
    y, cache = relu_forward(x)
    assert y.tolist() == [0.0, 0.0, 3.0]
    assert relu_backward(np.array([5.0, 5.0, 5.0]), cache).tolist() == [0.0, 0.0, 5.0]


# From the tanh form computed with 50 digits. The erf form gives 0.841345 at 1.
@pytest.mark.parametrize(("x", "y"), [
    (0.0, 0.0), (1.0, 0.8411919906082767), (-1.0, -0.1588080093917233),
    (2.0, 1.954597694087775), (-3.0, -0.003637392081773019), (0.5, 0.3457140098251439),
])
def test_gelu_is_the_tanh_form(x, y):
    assert gelu_forward(np.array([x]))[0][0] == pytest.approx(y, abs=1e-14)


def test_gelu_far_out_is_zero_or_the_identity():
    x = np.array([-1e4, -50.0, 50.0, 1e4])
    y, cache = gelu_forward(x)
    assert y.tolist() == [0.0, 0.0, 50.0, 1e4]
    assert gelu_backward(np.ones(4), cache).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_gelu_slope_at_zero_is_one_half():
    _, cache = gelu_forward(np.zeros(1))
    assert gelu_backward(np.ones(1), cache)[0] == 0.5


def test_gelu_has_its_minimum_at_the_known_point():
    x = np.linspace(-1, -0.5, 100_001)
    y, _ = gelu_forward(x)
    assert x[y.argmin()] == pytest.approx(-0.7517, abs=3e-3)
    assert math.isclose(y.min(), -0.17, abs_tol=1e-3)
