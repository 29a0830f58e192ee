import numpy as np
import pytest

from npgpt.layers import embedding_backward, embedding_forward


def test_forward_looks_up_rows():
    w = np.arange(12.0).reshape(4, 3)
    y, _ = embedding_forward(np.array([[2, 0]]), w)
    assert y.tolist() == [[[6, 7, 8], [0, 1, 2]]]


@pytest.mark.parametrize("V", [4, 5, 6, 100])      # up to the five tokens, and beyond
def test_gradients_of_repeated_tokens_are_summed(V):
    idx = np.array([[1, 1, 3, 3, 3]])
    _, cache = embedding_forward(idx, np.zeros((V, 2)))
    dw = embedding_backward(np.arange(10.0).reshape(1, 5, 2), cache)
    assert dw.shape == (V, 2)
    assert dw[[1, 3]].tolist() == [[2, 4], [18, 21]]
    assert np.count_nonzero(dw) == 4


@pytest.mark.parametrize("V", [4, 6, 100])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_gradient_that_is_not_finite_stays_with_its_token(V, value):
    idx, dy = np.array([1, 3, 1, 0, 3]), np.arange(10.0).reshape(5, 2)
    _, cache = embedding_forward(idx, np.zeros((V, 2)))
    expected = embedding_backward(dy, cache)
    dy[2, 1] = value
    dw = embedding_backward(dy, cache)
    assert not np.isfinite(dw[1, 1])
    others = np.arange(V) != 1
    np.testing.assert_array_equal(dw[others], expected[others])


@pytest.mark.parametrize("V", [0, 3])
def test_no_tokens_give_a_gradient_of_zero(V):
    y, cache = embedding_forward(np.zeros((2, 0), int), np.ones((V, 4)))
    assert y.shape == (2, 0, 4)
    assert embedding_backward(y, cache).tolist() == [[0.0] * 4] * V
