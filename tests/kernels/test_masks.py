"""The fused layers with a mask, dropout and attention, agree with the plain ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt import layers
from npgpt.gradcheck import check_gradients
from npgpt.kernels.dropout import CHUNK
from npgpt.layers import Key, causal_mask

few = settings(max_examples=30)
DTYPES = st.sampled_from(["float32", "float64"])
KEYS = st.builds(Key, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 99),
                 st.tuples(st.integers(0, 9)))
KEY = Key(seed=2**40, step=3, row=5, site=(7, 1))
MASKS = ("none", "causal", "padding", "of heads", "nothing seen")


def drawn(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def mask_of(kind, B, H, Tq, Tk, seed=0):
    seen = np.random.default_rng(seed).random((B, H, Tq, Tk)) < 0.6
    return {"none": None, "causal": causal_mask(np, Tq, Tk), "padding": seen[:, :1, :1],
            "of heads": seen[0, :, :, :1], "nothing seen": seen & (np.arange(Tq) % 2 == 0)[:, None],
            }[kind]


def heads(B=2, H=3, Tq=4, Tk=70, D=5, dtype="float32", seed=0, share=1):
    """-> q, k, v and dy. share: the heads of queries that share one of keys."""
    q, dy = (drawn(B, H, Tq, D, dtype=dtype, seed=seed + i) for i in (0, 1))
    k, v = (drawn(B, H // share, Tk, D, dtype=dtype, seed=seed + i) for i in (2, 3))
    return q, k, v, dy


def attended(pair, q, k, v, dy, *options):
    """-> y, dq, dk, dv."""
    y, cache = pair[0](q, k, v, *options)
    return y, *pair[1](dy, cache)


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=256 * np.finfo(b.dtype).eps
                                   * max(np.abs(b).max(initial=0), 1))


@few
@given(B=st.integers(1, 3), E=st.integers(1, 100) | st.sampled_from([CHUNK - 1, CHUNK, 3 * CHUNK]),
       p=st.floats(0.01, 0.99), key=KEYS, dtype=DTYPES)
def test_fused_dropout_gives_the_bits_of_the_plain_one(fused, B, E, p, key, dtype):
    x, dy = drawn(B, E, dtype=dtype), drawn(B, E, dtype=dtype, seed=1)
    (y, cache), (expected, plain) = (f(x, p, key) for f in (
        fused["dropout"][0], layers.dropout_forward))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(fused["dropout"][1](dy, cache),
                                  layers.dropout_backward(dy, plain))


@pytest.mark.parametrize("kind", MASKS)
@few
@given(B=st.integers(1, 2), G=st.integers(1, 3), share=st.integers(1, 3), Tq=st.integers(1, 5),
       Tk=st.sampled_from([1, 31, 32, 33, 65]), D=st.integers(1, 4), dtype=DTYPES,
       p=st.sampled_from([0.0, 0.3]), key=st.none() | KEYS, seed=st.integers(0, 2**32 - 5),
       causal=st.booleans())
def test_fused_attention_equals_the_plain_one(fused, kind, B, G, share, Tq, Tk, D, dtype, p, key,
                                              seed, causal):
    arrays = heads(B, G * share, Tq, Tk, D, dtype, seed, share)
    options = mask_of(kind, B, G * share, Tq, Tk, seed), p, key, causal
    assert_close(attended(fused["attention"], *arrays, *options),
                 attended(layers.LAYERS["attention"], *arrays, *options))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("share", [1, 3])
def test_fused_backward_is_the_derivative_of_the_fused_forward(fused, kind, key, share):
    q, k, v, _ = heads(Tk=40, dtype="float64", share=share)
    mask = mask_of(kind, 2, 3, 4, 40)
    forward, backward = fused["attention"]
    check_gradients(lambda q, k, v: forward(q, k, v, mask, 0.3, key), backward, [q, k, v],
                    method="central")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_input_gives_the_same_bits(fused, dtype):
    arrays = heads(Tq=40, dtype=dtype)
    options = mask_of("causal", 2, 3, 40, 70), 0.2, KEY
    first, second = (attended(fused["attention"], *arrays, *options) for _ in range(2))
    assert [a.tobytes() for a in first] == [a.tobytes() for a in second]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_scores_that_are_not_finite_give_what_the_plain_layer_gives(fused, value):
    q, k, v, dy = heads(Tk=40)
    k[0, 0, 3] = value
    for kind in ("none", "causal"):
        with np.errstate(all="ignore"):
            found, expected = (
                attended(pair, q, k, v, dy, mask_of(kind, 2, 3, 4, 40))[0]
                for pair in (fused["attention"], layers.LAYERS["attention"]))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)


def test_arguments_are_not_changed(fused):
    q, k, v, dy = heads()
    mask = mask_of("causal", 2, 3, 4, 70)
    before = [a.copy() for a in (q, k, v, dy, mask)]
    _, cache = fused["attention"][0](q, k, v, mask, 0.3, KEY)
    first = fused["attention"][1](dy, cache)
    second = fused["attention"][1](dy, cache)            # the cache is not changed, either
    for a, b in zip((q, k, v, dy, mask, *first), (*before, *second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["complex", "mixed", "no keys", "no sequences"])
def test_unsupported_arrays_use_the_plain_layer(fused, kind, causal):
    q, k, v, dy = heads()
    if kind == "complex":
        q, k, v, dy = (a.astype(complex) for a in (q, k, v, dy))
    elif kind == "mixed":
        q, dy = q.astype("float64"), dy.astype("float64")
    elif kind == "no keys":
        k, v = k[:, :, :0], v[:, :, :0]
    else:
        q, k, v, dy = (a[:0] for a in (q, k, v, dy))
    options = None, 0.3, KEY, causal
    assert_close(attended(fused["attention"], q, k, v, dy, *options),
                 attended(layers.LAYERS["attention"], q, k, v, dy, *options))
    y, expected = (f(q, 0.3, KEY)[0] for f in (fused["dropout"][0], layers.dropout_forward))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("wrong", [lambda dy: dy.astype("float64"), lambda dy: dy[:, :, :1]])
def test_gradient_of_another_shape_or_dtype_is_refused(fused, wrong):
    q, k, v, dy = heads()
    _, cache = fused["attention"][0](q, k, v)
    with pytest.raises(ValueError, match="dy must be float32"):
        fused["attention"][1](wrong(dy), cache)
    _, cache = fused["dropout"][0](dy, 0.3, KEY)
    with pytest.raises(ValueError, match="dy must be float32"):
        fused["dropout"][1](wrong(dy), cache)
