import numpy as np
import pytest

from npgpt.layers import embedding, embedding_backward, embedding_forward


def test_rows_of_the_table():
    w = np.arange(8.0).reshape(4, 2)
    y, _ = embedding_forward(np.array([[3, 0, 3]]), w)
    assert y.tolist() == [[[6.0, 7.0], [0.0, 1.0], [6.0, 7.0]]]


@pytest.mark.parametrize("limit", [0, 1024])      # summed by position; a one-hot product
def test_repeated_tokens_collect_every_gradient(limit, monkeypatch):
    monkeypatch.setattr(embedding, "ONE_HOT_LIMIT", limit)
    idx = np.array([[1, 3, 1], [1, 0, 3]])
    _, cache = embedding_forward(idx, np.zeros((4, 2)))
    dw = embedding_backward(np.arange(12.0).reshape(2, 3, 2), cache)
    assert dw.tolist() == [[8, 9], [0 + 4 + 6, 1 + 5 + 7], [0, 0], [2 + 10, 3 + 11]]
