"""Products of linear layers in bfloat16: what is rounded, and how large the error is."""

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.backend import to_host
from npgpt.kernels import bfloat16
from npgpt.layers import Key, linear

EPSILON = 2.0**-8       # bfloat16's


def drawn(*shape, dtype="float32"):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def both(device, x, w, b, dy):
    """-> y, dx, dw, db of the plain layer on the host, and of the device's."""
    y, cache = linear.linear_forward(x, w, b)
    plain = (y, *linear.linear_backward(dy, cache))
    move = [None if a is None else device.to_device(a) for a in (x, w, b)]
    y, cache = bfloat16.linear_forward(*move)
    found = (y, *bfloat16.linear_backward(device.to_device(dy), cache))
    return plain, [None if a is None else device.to_host(a) for a in found]


@pytest.mark.parametrize("b", [drawn(5), None])
def test_only_products_are_rounded_to_bfloat16(device, b):
    plain, found = both(device, drawn(2, 3, 40), drawn(40, 5), b, drawn(2, 3, 5))
    for exact, rounded in zip(plain[:3], found[:3]):
        assert rounded.dtype == np.float32 and rounded.shape == exact.shape
        error = np.abs(rounded - exact).max() / np.abs(exact).max()
        assert 1e-4 < error < 3 * EPSILON
    if b is None:
        assert found[3] is None
    else:
        np.testing.assert_allclose(found[3], plain[3], rtol=1e-6)


@pytest.mark.parametrize("b", [drawn(5), None])
def test_frozen_weight_has_no_gradient_and_the_others_have_the_same_bits(device, b):
    x, w, b, dy = (None if a is None else device.to_device(a)
                   for a in (drawn(2, 3, 40), drawn(40, 5), b, drawn(2, 3, 5)))
    y, cache = bfloat16.linear_forward(x, w, b)
    expected = y, *bfloat16.linear_backward(dy, cache)
    y, cache = bfloat16.linear_forward(x, w, b, frozen=True)
    assert not any(a.shape[:1] == (6,) for a in cache if isinstance(a, device.arrays))   # no x
    found = y, *bfloat16.linear_backward(dy, cache)
    assert expected[2].dtype == np.float32 and found[2] is None
    for which in (0, 1) if b is None else (0, 1, 3):
        assert found[which].dtype == np.float32
        assert to_host(found[which]).tobytes() == to_host(expected[which]).tobytes()
    assert (found[3] is None) == (b is None)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}, {"freeze": "embeddings"}])
def test_gradients_of_a_model_have_nearly_the_same_direction(device, options):
    config = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=32, dropout=0.1)
    idx = np.random.default_rng(0).integers(11, size=(4, 8))
    found = []
    for place, dtype in (("cpu", "float32"), (device, "bfloat16")):
        gpt = GPT(config, device=place, dtype=dtype, **options)
        loss, grads = gpt.loss_and_grads(idx, idx, Key(1, 1))
        found.append((float(loss), to_host(grads.flat)))
    (loss, exact), (rounded_loss, rounded) = found
    assert rounded.dtype == np.float32
    assert rounded_loss == pytest.approx(loss, rel=EPSILON) and rounded_loss != loss
    assert exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded) > 0.999
