"""Products of linear layers in bfloat16: what is rounded, and how much it may matter."""

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.layers import Key, linear
from npgpt.layers import linear_backward as dispatched_backward
from npgpt.layers import linear_forward as dispatched_forward
from npgpt.training.setup import compute_with

EPSILON = 2.0**-8       # bfloat16's


@pytest.fixture
def rounding(device):
    """The device, with bfloat16 installed. Leaving the device takes it out again."""
    return compute_with(device, "bfloat16", fused=False)


def drawn(*shape, dtype="float32"):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def both(device, x, w, b, dy):
    """-> y, dx, dw, db of the plain layer on the host, and of the device's."""
    y, cache = linear.linear_forward(x, w, b)
    plain = (y, *linear.linear_backward(dy, cache))
    move = [None if a is None else device.to_device(a) for a in (x, w, b)]
    y, cache = dispatched_forward(*move)
    found = (y, *dispatched_backward(device.to_device(dy), cache))
    return plain, [None if a is None else device.to_host(a) for a in found]


@pytest.mark.parametrize("b", [drawn(5), None])
def test_products_are_rounded_to_bfloat16_and_nothing_else_is(rounding, b):
    plain, found = both(rounding, drawn(2, 3, 40), drawn(40, 5), b, drawn(2, 3, 5))
    for exact, rounded in zip(plain[:3], found[:3]):
        assert rounded.dtype == np.float32 and rounded.shape == exact.shape
        error = np.abs(rounded - exact).max() / np.abs(exact).max()
        assert 1e-4 < error < 3 * EPSILON
    if b is None:
        assert found[3] is None
    else:
        np.testing.assert_allclose(found[3], plain[3], rtol=1e-6)


def test_float64_stays_in_full(rounding):
    x, w, dy = (drawn(*shape, dtype="float64") for shape in ((2, 3, 40), (40, 5), (2, 3, 5)))
    for exact, found in zip(*both(rounding, x, w, None, dy)):
        if exact is not None:
            np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12)


def test_gradients_of_a_model_point_the_same_way(rounding):
    config = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=32, dropout=0.1)
    idx = np.random.default_rng(0).integers(11, size=(4, 8))
    found = []
    for device in ("cpu", rounding):
        loss, grads = GPT(config, device=device).loss_and_grads(idx, idx, Key(1, 1))
        found.append((float(loss), grads.flat if device == "cpu" else rounding.to_host(grads.flat)))
    (loss, exact), (rounded_loss, rounded) = found
    assert rounded.dtype == np.float32
    assert rounded_loss == pytest.approx(loss, rel=EPSILON) and rounded_loss != loss
    assert exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded) > 0.999
