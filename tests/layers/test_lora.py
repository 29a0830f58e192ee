"""LoRA adds x @ (A @ B). Its gradients are projections of the gradient of A @ B, which is never
there."""

import numpy as np
import pytest

from npgpt.layers import linear_backward, linear_forward, lora_backward, lora_forward

I, R, O = 7, 2, 5


def drawn(*leading):
    """-> x, A, B, dy."""
    normal = np.random.default_rng(0).standard_normal
    return normal((*leading, I)), normal((I, R)), normal((R, O)), normal((*leading, O))


def arrays(value):
    """-> the arrays in nested tuples."""
    return [a for v in value for a in arrays(v)] if isinstance(value, tuple) else [value]


def test_one_token_by_hand():
    x, A, B = np.array([[1.0, 2.0]]), np.array([[3.0], [1.0]]), np.array([[2.0, 0.0, 4.0]])
    y, cache = lora_forward(x, A, B)
    assert y.tolist() == [[10.0, 0.0, 20.0]]
    dx, dA, dB = lora_backward(np.array([[1.0, 5.0, 0.5]]), cache)
    assert dB.tolist() == [[5.0, 25.0, 2.5]]
    assert dA.tolist() == [[4.0], [8.0]]
    assert dx.tolist() == [[12.0, 4.0]]


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3)])
def test_it_is_a_linear_layer_whose_weight_is_the_product(leading):
    x, A, B, dy = drawn(*leading)
    y, cache = lora_forward(x, A, B)
    expected, linear = linear_forward(x, A @ B)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    dx, dA, dB = lora_backward(dy, cache)
    expected, dw, _ = linear_backward(dy, linear)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dA, dw @ B.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dB, A.T @ dw, rtol=0, atol=1e-12)
    assert y.shape == dy.shape and dx.shape == x.shape
    assert (dA.shape, dB.shape) == (A.shape, B.shape)


def test_at_the_start_nothing_is_added_and_only_B_has_a_gradient():
    """With A = 0 as well, neither would ever change."""
    x, A, B, dy = drawn(2, 3)
    y, cache = lora_forward(x, A, np.zeros_like(B))
    dx, dA, dB = lora_backward(dy, cache)
    assert not y.any() and not dx.any() and not dA.any()
    assert dB.all()


def test_no_array_has_the_size_of_the_weight():
    x, A, B, dy = drawn(2, 3)
    y, cache = lora_forward(x, A, B)
    found = arrays((y, cache, lora_backward(dy, cache)))
    assert all(a.size != I * O for a in found)
