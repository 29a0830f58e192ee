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
