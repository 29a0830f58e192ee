import numpy as np
import pytest

from npgpt.layers import linear_backward, linear_forward


def test_one_token_by_hand():
    x, w, b = np.array([[1.0, 2.0]]), np.array([[3.0, 0.0, 1.0], [4.0, 5.0, 1.0]]), np.arange(3.0)
    y, cache = linear_forward(x, w, b)
    assert y.tolist() == [[11.0, 11.0, 5.0]]
    dx, dw, db = linear_backward(np.array([[1.0, 0.0, 2.0]]), cache)
    assert dx.tolist() == [[5.0, 6.0]]
    assert dw.tolist() == [[1.0, 0.0, 2.0], [2.0, 0.0, 4.0]]
    assert db.tolist() == [1.0, 0.0, 2.0]


def test_without_bias_there_is_no_bias_gradient():
    y, cache = linear_forward(np.ones((2, 3)), np.ones((3, 4)))
    assert y.shape == (2, 4)
    assert linear_backward(y, cache)[2] is None


@pytest.mark.parametrize("b", [None, np.arange(5.0)])
@pytest.mark.parametrize("transposed", [False, True])
def test_frozen_weight_has_no_gradient_and_the_others_have_the_same_bits(b, transposed):
    normal = np.random.default_rng(0).standard_normal
    x, dy = normal((2, 3, 4)), normal((2, 3, 5))
    w = normal((5, 4)).T if transposed else normal((4, 5))
    y, cache = linear_forward(x, w, b)
    dx, _, db = linear_backward(dy, cache)
    frozen_y, frozen = linear_forward(x, w, b, frozen=True)
    found, dw, frozen_db = linear_backward(dy, frozen)
    assert dw is None
    assert frozen_y.tobytes() == y.tobytes() and found.tobytes() == dx.tobytes()
    assert frozen_db is None if b is None else frozen_db.tobytes() == db.tobytes()


@pytest.mark.parametrize("frozen", [False, True])
def test_cache_has_the_input_unless_the_weight_is_frozen(frozen):
    x, w = np.ones((2, 3)), np.ones((3, 4))
    _, cache = linear_forward(x, w, None, frozen)
    kept = [getattr(a, "shape", None) for a in cache]
    assert w.shape in kept and (x.shape in kept) == (not frozen)


def test_leading_axes_are_tokens():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5)), rng.standard_normal(5)
    np.testing.assert_allclose(linear_forward(x, w, b)[0], np.einsum("bti,io->bto", x, w) + b)
    np.testing.assert_allclose(linear_forward(x[0, 0], w, b)[0], x[0, 0] @ w + b)


def test_gradient_has_the_memory_layout_of_the_weight(device):
    """A tied head is the transposed embedding, and adding dw to its gradient is then fast."""
    for put in (np.asarray, device.to_device):
        x, w, wte = put(np.ones((2, 3, 4))), put(np.ones((4, 5))), put(np.ones((5, 4)))
        for weight in (w, wte.T):
            y, cache = linear_forward(x, weight)
            _, dw, _ = linear_backward(y, cache)
            assert dw.strides == weight.strides
