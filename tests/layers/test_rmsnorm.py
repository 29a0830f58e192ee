import numpy as np
import pytest

from npgpt.gradcheck import check_gradients
from npgpt.layers import layernorm_forward, rmsnorm_backward, rmsnorm_forward


def test_mean_square_is_one_and_the_mean_stays():
    x = np.random.default_rng(0).standard_normal((4, 5, 64)) * 7 + 3
    y, _ = rmsnorm_forward(x, np.ones(64))
    np.testing.assert_allclose((y * y).mean(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(y * ((x * x).mean(-1, keepdims=True) + 1e-5) ** 0.5, x, rtol=1e-12)


def test_equals_layer_norm_where_the_mean_is_zero():
    x = np.random.default_rng(0).standard_normal((3, 16))
    x -= x.mean(-1, keepdims=True)
    w = np.arange(16.0)
    np.testing.assert_allclose(rmsnorm_forward(x, w)[0],
                               layernorm_forward(x, w, np.zeros(16))[0], atol=1e-12)


def test_weight_acts_on_each_channel():
    x = np.random.default_rng(0).standard_normal((3, 4))
    plain, _ = rmsnorm_forward(x, np.ones(4))
    w = np.arange(4.0)
    np.testing.assert_allclose(rmsnorm_forward(x, w)[0], plain * w)


def test_eps_is_added_to_the_mean_square():
    """The mean square of these channels is 1e-6; eps is ten times as large, or as given."""
    x = np.array([1e-3, -1e-3])
    np.testing.assert_allclose(rmsnorm_forward(x, np.ones(2))[0], x / (1e-6 + 1e-5) ** 0.5,
                               rtol=1e-12)
    np.testing.assert_allclose(rmsnorm_forward(x, np.ones(2), 0.5)[0], x / (1e-6 + 0.5) ** 0.5,
                               rtol=1e-12)


def test_row_of_zeros_stays_zero_and_has_a_finite_gradient():
    y, cache = rmsnorm_forward(np.zeros((2, 8)), np.arange(8.0))
    assert not y.any()
    dx, dw = rmsnorm_backward(np.ones((2, 8)), cache)
    np.testing.assert_allclose(dx, np.tile(np.arange(8.0) / 1e-5**0.5, (2, 1)), rtol=1e-12)
    assert not dw.any()


def test_a_factor_of_the_input_changes_nothing():
    x = np.random.default_rng(0).standard_normal((3, 16))
    np.testing.assert_allclose(rmsnorm_forward(x * 1000, np.ones(16))[0],
                               rmsnorm_forward(x, np.ones(16))[0], rtol=1e-4)


@pytest.mark.parametrize("method", ["complex", "central"])
def test_one_channel(method):
    """xhat is 1 or -1 up to eps: dx is almost 0, and must be correct."""
    check_gradients(rmsnorm_forward, rmsnorm_backward,
                    [np.array([[1.0], [-0.3], [0.02]]), np.array([2.0])],
                    method=method, tolerance={"complex": 1e-10, "central": 1e-5}[method])
