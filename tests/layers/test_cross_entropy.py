import math

import numpy as np
import pytest

from npgpt.layers import cross_entropy_backward, cross_entropy_forward


def test_loss_of_a_uniform_prediction_is_the_logarithm_of_the_vocabulary_size():
    loss, _ = cross_entropy_forward(np.zeros((2, 3, 65)), np.ones((2, 3), int))
    assert loss == pytest.approx(math.log(65))


def test_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    loss, cache = cross_entropy_forward(logits, np.array([0, 1]))
    assert loss == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)
    np.testing.assert_allclose(cross_entropy_backward(1.0, cache),
                               np.array([[-0.5, 0.25, 0.25], [0.1, -0.2, 0.1]]) / 2)


def test_ignored_targets_count_in_neither_sum_nor_count():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((5, 7)), np.array([3, -1, 0, -1, 6])
    loss, cache = cross_entropy_forward(logits, targets)
    kept = targets >= 0
    assert loss == pytest.approx(cross_entropy_forward(logits[kept], targets[kept])[0])
    assert not cross_entropy_backward(1.0, cache)[~kept].any()


def test_single_target_counts_as_one():
    loss, cache = cross_entropy_forward(np.zeros((3, 4)), np.array([-1, 2, -1]))
    assert loss == pytest.approx(math.log(4))
    assert cross_entropy_backward(1.0, cache)[1].tolist() == [0.25, 0.25, -0.75, 0.25]


def test_loss_without_targets_is_zero():
    loss, cache = cross_entropy_forward(np.ones((2, 3)), np.full(2, -1))
    assert loss == 0
    assert cross_entropy_backward(1.0, cache).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_give_a_finite_loss(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype)
    loss, cache = cross_entropy_forward(logits, np.array([0, 0]))
    assert loss == pytest.approx(1e4)
    assert np.isfinite(cross_entropy_backward(1.0, cache)).all()


def test_parts_with_the_count_of_the_whole_sum_to_the_whole():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((6, 4)), np.array([0, -1, 3, 2, -1, 1])
    whole, cache = cross_entropy_forward(logits, targets)
    gradient = cross_entropy_backward(1.0, cache)
    parts = [cross_entropy_forward(logits[i:i + 2], targets[i:i + 2], 4) for i in (0, 2, 4)]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole)
    pieces = [cross_entropy_backward(1.0, cache) for _, cache in parts]
    np.testing.assert_allclose(np.concatenate(pieces), gradient)
