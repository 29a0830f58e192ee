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


INF, NAN = math.inf, math.nan
WILD = [[-INF, 0, 1], [0, 1, -INF], [-INF] * 3, [INF, 0, 0], [0, NAN, 0], [3e38, -3e38, 0]]


@pytest.mark.parametrize("row", WILD)
def test_logits_of_an_ignored_row_may_be_anything(row):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((3, 3)).astype(np.float32), np.array([2, -1, 0])
    logits[1] = row
    with np.errstate(invalid="ignore", over="ignore"):
        loss, cache = cross_entropy_forward(logits, targets)
    expected, alone = cross_entropy_forward(logits[::2], targets[::2])
    assert loss == pytest.approx(float(expected))
    gradient = cross_entropy_backward(np.float32(1), cache)
    assert gradient[1].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(gradient[::2], cross_entropy_backward(np.float32(1), alone))


@pytest.mark.parametrize("row", WILD)
def test_ignored_row_agrees_with_pytorch(row, torch):
    """In the loss. The gradient of an ignored row with NaN or +inf is NaN in PyTorch, here 0."""
    logits, targets = np.array([[0.5, 1, 2], row], np.float32), np.array([1, -1])
    with np.errstate(invalid="ignore", over="ignore"):
        loss, cache = cross_entropy_forward(logits, targets)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(targets), ignore_index=-1)
    expected.backward()
    assert loss == pytest.approx(expected.item())
    np.testing.assert_allclose(cross_entropy_backward(np.float32(1), cache),
                               theirs.grad.nan_to_num(0).numpy(), atol=1e-7)


def test_impossible_token_beside_the_target_has_no_gradient():
    loss, cache = cross_entropy_forward(np.array([[0.0, -INF, 0.0]]), np.array([2]))
    assert loss == pytest.approx(math.log(2))
    assert cross_entropy_backward(1.0, cache).tolist() == [[0.5, 0, -0.5]]


@pytest.mark.parametrize("row", [[INF, 0, 0], [0, 0, INF], [NAN, 0, 0], [-INF] * 3])
def test_row_without_probabilities_gives_no_finite_loss(row):
    with np.errstate(invalid="ignore"):
        loss, cache = cross_entropy_forward(np.array([row, [0, 0, 0]]), np.array([0, 1]))
    assert np.isnan(loss) and np.isnan(cross_entropy_backward(1.0, cache)[0]).all()


@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("target", [-2, -7])
def test_target_below_minus_one_gives_no_finite_loss(target, count):
    loss, cache = cross_entropy_forward(np.zeros((2, 7)), np.array([1, target]), count)
    assert np.isnan(loss) and np.isnan(cross_entropy_backward(1.0, cache)[1]).all()


@pytest.mark.parametrize("target", [7, 8])
def test_target_beyond_the_vocabulary_never_gives_a_loss(target):
    """NumPy raises IndexError, and on a GPU the index wraps around."""
    try:
        loss, _ = cross_entropy_forward(np.zeros((2, 7)), np.array([1, target]))
    except IndexError:
        return
    assert np.isnan(loss)


def test_unsigned_targets_may_fill_their_type():
    logits = np.zeros((2, 256))
    logits[:, 255] = 1
    loss, _ = cross_entropy_forward(logits, np.array([255, 0], np.uint8))
    assert loss == pytest.approx(math.log(255 + math.e) - 0.5)


def test_loss_of_no_tokens_is_zero():
    loss, cache = cross_entropy_forward(np.zeros((2, 0, 7)), np.zeros((2, 0), int))
    assert loss == 0
    assert cross_entropy_backward(1.0, cache).shape == (2, 0, 7)


@pytest.mark.parametrize("count", [np.array(3), np.float64(3), 3])
def test_count_of_any_type_leaves_float32(count):
    logits, targets = np.ones((2, 7), np.float32), np.array([1, 2])
    loss, cache = cross_entropy_forward(logits, targets, count)
    assert loss.dtype == cross_entropy_backward(np.float32(1), cache).dtype == np.float32
    assert loss == pytest.approx(2 / 3 * math.log(7))
