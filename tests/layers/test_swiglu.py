import math
import warnings

import numpy as np
import pytest

from npgpt.layers import swiglu_backward, swiglu_forward


def test_matches_the_definition():
    gate, up = np.random.default_rng(0).standard_normal((2, 3, 5)) * 3
    np.testing.assert_allclose(swiglu_forward(gate, up)[0], gate / (1 + np.exp(-gate)) * up,
                               rtol=1e-12)


# SiLU computed with 50 digits.
@pytest.mark.parametrize(("x", "y"), [
    (0.0, 0.0), (1.0, 0.7310585786300049), (-1.0, -0.2689414213699951),
    (2.0, 1.7615941559557649), (-5.0, -0.033464254621424277),
])
def test_silu_by_its_values(x, y):
    assert swiglu_forward(np.array([x]), np.ones(1))[0][0] == pytest.approx(y, abs=1e-14)


def test_slope_of_the_gate_at_zero_is_half_of_up():
    _, cache = swiglu_forward(np.zeros(2), np.array([1.0, -6.0]))
    dgate, dup = swiglu_backward(np.ones(2), cache)
    assert dgate.tolist() == [0.5, -3.0] and dup.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_far_out_the_gate_is_closed_or_linear(dtype):
    """Without a warning: exp(1e4) would overflow."""
    gate, up = np.array([-1e4, -100.0, 100.0, 1e4], dtype), np.full(4, 3.0, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, cache = swiglu_forward(gate, up)
        dgate, dup = swiglu_backward(np.ones(4, dtype), cache)
    assert y.tolist() == [0.0, 0.0, 300.0, 3e4]
    assert dgate.tolist() == [0.0, 0.0, 3.0, 3.0]
    assert dup.tolist() == [0.0, 0.0, 100.0, 1e4]


def test_silu_has_its_minimum_at_the_known_point():
    gate = np.linspace(-1.5, -1, 100_001)
    y, _ = swiglu_forward(gate, np.ones_like(gate))
    assert gate[y.argmin()] == pytest.approx(-1.27846, abs=1e-4)
    assert math.isclose(y.min(), -0.27846, abs_tol=1e-5)


def test_each_input_has_its_own_role():
    """The output is linear in up and not in the gate."""
    gate, up = np.random.default_rng(0).standard_normal((2, 7))
    y, _ = swiglu_forward(gate, up)
    np.testing.assert_allclose(swiglu_forward(gate, 2 * up)[0], 2 * y, rtol=1e-12)
    assert not np.isclose(swiglu_forward(2 * gate, up)[0], 2 * y).any()
