"""The head and the loss as one layer give what the two layers give, in less memory."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import backend
from npgpt.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    linear_backward,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
    linear_forward,
)
from npgpt.layers import linear_cross_entropy as module


def drawn(N=6, C=4, V=5, dtype="float64", seed=0):
    """-> x, w, b, targets."""
    rng = np.random.default_rng(seed)
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((N, C), (C, V), V))
    return x, w, b, rng.integers(0, V, N)


def apart(x, w, b, targets, count=None, dloss=1.0):
    """-> loss, dx, dw, db by the two layers."""
    logits, lin = linear_forward(x, w, b)
    loss, cache = cross_entropy_forward(logits, targets, count)
    return loss, *linear_backward(cross_entropy_backward(dloss, cache), lin)


def together(x, w, b, targets, count=None, dloss=1.0, **options):
    loss, cache = linear_cross_entropy_forward(x, w, b, targets, count, **options)
    return loss, *linear_cross_entropy_backward(dloss, cache)


def assert_close(found, expected, rtol=1e-12):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert np.shape(a) == np.shape(b)
            np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(np.abs(b).max(initial=0), 1))


@given(N=st.integers(0, 9), C=st.integers(1, 5), V=st.integers(1, 9), bias=st.booleans(),
       tokens=st.none() | st.integers(1, 10), count=st.none() | st.integers(1, 20),
       ignored=st.booleans(), dloss=st.sampled_from([1.0, -0.3]), seed=st.integers(0, 2**32 - 1))
def test_equals_the_linear_layer_and_the_loss(N, C, V, bias, tokens, count, ignored, dloss, seed):
    x, w, b, targets = drawn(N, C, V, seed=seed)
    if ignored:
        targets[::2] = -1
    b = b if bias else None
    assert_close(together(x, w, b, targets, count, dloss, tokens=tokens),
                 apart(x, w, b, targets, count, dloss))


@pytest.mark.parametrize("logits", [1, 5, 12, 30])
def test_parts_of_the_default_size_give_the_same(logits, monkeypatch):
    monkeypatch.setattr(module, "LOGITS", logits)
    arrays = drawn()
    assert_close(together(*arrays), apart(*arrays))


@pytest.mark.parametrize("chunk", [1, 5, 12, 30])
def test_rows_at_a_time_in_the_cache_give_the_same(chunk, monkeypatch):
    monkeypatch.setitem(backend._modules, np.ndarray,
                        replace(backend.get_device("cpu"), chunk=chunk))
    arrays = drawn()
    assert_close(together(*arrays), apart(*arrays))


def test_leading_axes_are_kept():
    x, w, b, targets = drawn(24)
    flat = together(x, w, b, targets)
    deep = together(x.reshape(2, 3, 4, 4), w, b, targets.reshape(2, 3, 4))
    assert deep[1].shape == (2, 3, 4, 4)
    assert_close([deep[0], deep[1].reshape(24, 4), *deep[2:]], flat, rtol=0)


def test_without_a_gradient_of_the_loss_it_is_one():
    _, cache = linear_cross_entropy_forward(*drawn())
    assert_close(linear_cross_entropy_backward(None, cache),
                 linear_cross_entropy_backward(1.0, cache), rtol=0)


def test_gradients_are_not_copied_if_the_gradient_of_the_loss_is_one(request):
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the gradients are copied from the GPU")
    _, cache = linear_cross_entropy_forward(*drawn())
    first, second = (linear_cross_entropy_backward(None, cache) for _ in range(2))
    assert all(a is b for a, b in zip(first, second))


@pytest.mark.parametrize(("tokens", "parts"), [(None, 1), (1, 6), (2, 3), (4, 2)])
def test_loss_without_gradients_is_the_same_loss(tokens, parts):
    x, w, b, targets = drawn()
    backwards = []

    def counted(dy, cache):
        backwards.append(dy)
        return linear_backward(dy, cache)

    losses = [linear_cross_entropy_forward(x, w, b, targets, gradients=gradients, tokens=tokens,
                                           linear=(linear_forward, counted))[0]
              for gradients in (False, True)]
    assert losses[0] == losses[1]
    assert len(backwards) == parts                             # of the second call alone


def test_given_functions_are_the_linear_layer():
    x, w, b, targets = drawn()

    def forward(x, w, b, frozen):
        return linear_forward(2 * x, w, b)

    def backward(dy, cache):
        dx, dw, db = linear_backward(dy, cache)
        return 2 * dx, dw, db

    loss, dx, dw, db = together(x, w, b, targets, linear=(forward, backward))
    expected = apart(2 * x, w, b, targets)
    assert_close((loss, dx / 2, dw, db), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dloss", [None, -0.3])
@pytest.mark.parametrize(("tokens", "parts"), [(None, 1), (1, 6), (4, 2)])
def test_frozen_weight_has_no_gradient_and_the_others_have_the_same_bits(tokens, parts, dloss,
                                                                         bias):
    x, w, b, targets = drawn()
    caches = []

    def forward(*arguments):
        y, cache = linear_forward(*arguments)
        caches.append(cache)
        return y, cache

    arrays = x, w, b if bias else None, targets
    options = {"dloss": dloss, "tokens": tokens, "linear": (forward, linear_backward)}
    loss, dx, dw, db = together(*arrays, **options)
    found = together(*arrays, frozen=True, **options)
    assert found[0] == loss and found[1].tobytes() == dx.tobytes()
    assert dw.any() and found[2] is None
    assert found[3].tobytes() == db.tobytes() if bias else found[3] is None
    kept = [any(getattr(a, "shape", ())[1:] == x.shape[1:] for a in cache) for cache in caches]
    assert kept == [True] * parts + [False] * parts


def test_ignored_targets_count_in_neither_sum_nor_count():
    x, w, b, targets = drawn()
    targets[[1, 4]] = -1
    kept = targets >= 0
    loss, dx, dw, db = together(x, w, b, targets, tokens=2)
    expected = apart(x[kept], w, b, targets[kept])
    assert_close((loss, dx[kept], dw, db), expected)
    assert not dx[~kept].any()


def test_loss_without_targets_is_zero():
    x, w, b, _ = drawn()
    assert all(not np.any(a) for a in together(x, w, b, np.full(6, -1), tokens=2))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_ignored_token_may_be_anything(value):
    x, w, b, targets = drawn()
    expected = together(x[::2], w, b, targets[::2])
    x[1::2], targets[1::2] = value, -1
    with np.errstate(invalid="ignore"):
        loss, dx, _, _ = together(x, w, b, targets, tokens=3)
    assert loss == pytest.approx(expected[0])
    assert_close([dx[::2]], [expected[1]])
    assert not dx[1::2].any()


@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("target", [-2, -5])
@pytest.mark.parametrize("tokens", [None, 1])
def test_target_below_minus_one_gives_no_finite_loss(target, count, tokens):
    x, w, b, _ = drawn(2)
    loss, dx, dw, db = together(x, w, b, np.array([1, target]), count, tokens=tokens)
    assert np.isnan(loss) and np.isnan(dx[1]).all() and np.isnan(dw).all() and np.isnan(db).all()


@pytest.mark.parametrize("target", [5, 8])
def test_target_beyond_the_vocabulary_never_gives_a_loss(target):
    """NumPy raises IndexError, and on a GPU the index wraps around."""
    x, w, b, _ = drawn(2)
    try:
        loss = together(x, w, b, np.array([1, target]))[0]
    except IndexError:
        return
    assert np.isnan(loss)


def test_unsigned_targets_may_fill_their_type():
    x, w, b, _ = drawn(2, V=256)
    targets = np.array([255, 0], np.uint8)
    assert_close(together(x, w, b, targets), apart(x, w, b, targets.astype(int)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_logits_give_a_finite_loss(dtype):
    x, w, b, targets = drawn(dtype=dtype)
    found = together(x * np.float32(1e4), w, b, targets, 6, np.float32(1), tokens=4)
    assert all(np.isfinite(a).all() and a.dtype == dtype for a in found)


def test_parts_of_a_batch_with_its_count_sum_to_the_whole():
    x, w, b, targets = drawn()
    targets[2] = -1
    whole = together(x, w, b, targets)
    first, second = (together(x[part], w, b, targets[part], 5)
                     for part in (slice(0, 3), slice(3, 6)))
    sums = [a + b for a, b in zip(first, second)]
    assert_close([sums[0], *sums[2:]], [whole[0], *whole[2:]])
    assert_close([np.concatenate([first[1], second[1]])], [whole[1]])


def test_count_of_the_device_keeps_the_dtype():
    """An int64 count as an array would promote float32 to float64."""
    x, w, b, targets = drawn(dtype="float32")
    for a in together(x, w, b, targets, np.asarray(3), np.float32(1)):
        assert a.dtype == np.float32


def test_logits_are_never_whole_in_memory(request, monkeypatch):
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the memory of the host is traced, and the layers compute elsewhere")
    N, C, V = 1000, 4, 2000
    monkeypatch.setattr(module, "LOGITS", 100 * V)
    arrays = drawn(N, C, V, "float32")
    together(*drawn())                                             # first calls
    tracemalloc.start()
    try:
        together(*arrays)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 100 * V * 4 < peak < 2 * 100 * V * 4 < N * V * 4 / 2
