import numpy as np
import pytest

from npgpt.gradcheck import check_gradients
from npgpt.layers import layernorm_backward, layernorm_forward


def test_mean_zero_variance_one():
    x = np.random.default_rng(0).standard_normal((4, 5, 64)) * 7 + 3
    y, _ = layernorm_forward(x, np.ones(64), np.zeros(64))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(-1), 1, rtol=1e-5)


def test_weight_and_bias_act_on_each_channel():
    x = np.random.default_rng(0).standard_normal((3, 4))
    plain, _ = layernorm_forward(x, np.ones(4), np.zeros(4))
    w, b = np.arange(4.0), np.arange(4.0) + 10
    np.testing.assert_allclose(layernorm_forward(x, w, b)[0], plain * w + b)


def test_constant_row_gives_the_bias_and_a_finite_gradient():
    x = np.full((2, 8), 5.0)
    y, cache = layernorm_forward(x, np.ones(8), np.arange(8.0))
    assert y.tolist() == [list(range(8))] * 2
    dx, dw, db = layernorm_backward(np.ones((2, 8)), cache)
    assert np.isfinite(dx).all() and not dw.any() and db.tolist() == [2.0] * 8


def test_eps_is_added_to_the_variance():
    """Two channels that differ by 2e-3 have a variance of 1e-6; eps is ten times as large."""
    y, _ = layernorm_forward(np.array([1e-3, -1e-3]), np.ones(2), np.zeros(2))
    np.testing.assert_allclose(y, np.array([1e-3, -1e-3]) / (1e-6 + 1e-5) ** 0.5, rtol=1e-12)


def test_one_channel_gives_the_bias():
    y, cache = layernorm_forward(np.array([[3.0]]), np.array([2.0]), np.array([0.5]))
    assert y.tolist() == [[0.5]]
    assert layernorm_backward(np.array([[1.0]]), cache)[0].tolist() == [[0.0]]


def test_a_shift_of_the_input_changes_nothing():
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    w, b = np.ones(16, np.float32), np.zeros(16, np.float32)
    np.testing.assert_allclose(layernorm_forward(x, w, b)[0], layernorm_forward(x + 100, w, b)[0],
                               atol=2e-4)


@pytest.mark.parametrize("method", ["complex", "central"])
def test_two_channels(method):
    """xhat is (1, -1) up to eps: dx is almost 0, and must be correct."""
    x = np.array([[1.0, 1.002], [-0.3, -0.301], [0.5, 0.4]])
    check_gradients(layernorm_forward, layernorm_backward, [x, np.array([0.5, 2.0]), np.ones(2)],
                    method=method, tolerance={"complex": 1e-10, "central": 1e-5}[method])
