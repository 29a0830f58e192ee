import numpy as np

from npgpt.layers import positional_backward, positional_forward


def test_each_position_gets_its_row():
    x, w = np.zeros((2, 3, 1)), np.array([[1.0], [2.0], [3.0], [4.0]])
    assert positional_forward(x, w)[0][..., 0].tolist() == [[1, 2, 3]] * 2
    assert positional_forward(x, w, 1)[0][..., 0].tolist() == [[2, 3, 4]] * 2


def test_gradient_is_summed_over_the_batch_and_zero_for_unused_positions():
    _, cache = positional_forward(np.zeros((2, 2, 1)), np.zeros((4, 1)), 1)
    dy = np.array([[[1.0], [2.0]], [[10.0], [20.0]]])
    dx, dw = positional_backward(dy, cache)
    assert dx is dy
    assert dw.tolist() == [[0], [11], [22], [0]]
